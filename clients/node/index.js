// Client of the otp HTTP API. No dependencies: fetch and node:crypto.

import { createHmac, randomUUID, timingSafeEqual } from 'node:crypto';

const KEY = /^oat_[0-9A-Za-z]{32}$/;

/** What the API answered with an error, or, with status 0, that it could not be reached. */
export class OtpError extends Error {
	constructor(status, error, cause) {
		super(error.message ?? `the API answered ${status}`, cause === undefined ? undefined : { cause });
		this.name = 'OtpError';
		this.status = status;
		this.code = error.code ?? 'unknown';
		this.hint = error.hint ?? null;
		this.retryAfter = error.retry_after ?? null;
		this.limit = error.limit ?? null;
		this.otpId = error.otp_id ?? null;
		this.attemptsRemaining = error.attempts_remaining ?? null;
	}
}

/** A webhook that is not from whom it should be, or too old. */
export class WebhookVerificationError extends Error {
	constructor(message) {
		super(message);
		this.name = 'WebhookVerificationError';
	}
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// The names of the API, also where they were written the JavaScript way
function snake(args) {
	const out = {};
	for (const [name, value] of Object.entries(args)) {
		if (value !== undefined) out[name.replace(/[A-Z]/g, (c) => '_' + c.toLowerCase())] = value;
	}
	return out;
}

function idOf(arg) {
	const id = typeof arg === 'string' ? arg : (arg?.otp_id ?? arg?.otpId);
	if (typeof id !== 'string' || id === '') throw new TypeError('otp_id is missing');
	return id;
}

class Otp {
	#client;

	constructor(client) {
		this.#client = client;
	}

	/** Send a code. Resolves once the provider has taken the message, or the server has waited long enough. */
	send(args, options = {}) {
		// With a key a second try can be no second code
		const headers = { 'idempotency-key': options.idempotencyKey ?? randomUUID() };
		return this.#client.request('POST', '/v1/whatsapp/otp/send', { body: snake(args), headers, safe: true, signal: options.signal });
	}

	/** Check a code. A wrong one resolves to { valid: false }; what can never become valid rejects. */
	verify(args, options = {}) {
		const { otpId, otp_id = otpId, ...rest } = args;
		return this.#client.request('POST', '/v1/whatsapp/otp/verify', { body: { otp_id: idOf({ otp_id }), ...snake(rest) }, signal: options.signal });
	}

	/** Where a verification stands. */
	status(otpId, options = {}) {
		return this.#client.request('GET', `/v1/whatsapp/otp/${encodeURIComponent(idOf(otpId))}`, { safe: true, signal: options.signal });
	}

	/** The same code again, over the same channel or another. */
	resend(otpId, { channel, signal } = {}) {
		return this.#client.request('POST', `/v1/whatsapp/otp/${encodeURIComponent(idOf(otpId))}/resend`, { body: snake({ channel }), signal });
	}

	/** Make a code useless. */
	cancel(otpId, options = {}) {
		return this.#client.request('POST', `/v1/whatsapp/otp/${encodeURIComponent(idOf(otpId))}/cancel`, { body: {}, signal: options.signal });
	}

	/** One page, newest first: { data, has_more, next }. */
	list(args = {}, options = {}) {
		return this.#client.request('GET', '/v1/whatsapp/otp', { query: snake(args), safe: true, signal: options.signal });
	}

	/** All of them, page by page: for await (const otp of client.otp.all()). */
	async *all(args = {}, options = {}) {
		let page = await this.list(args, options);
		for (;;) {
			yield* page.data;
			if (!page.has_more) return;
			page = await this.list({ ...args, after: page.next }, options);
		}
	}
}

export default class OtpClient {
	#apiKey;
	#baseUrl;
	#fetch;
	#timeoutMs;
	#maxRetries;

	constructor({ apiKey, baseUrl, timeoutMs = 40_000, maxRetries = 2, fetch = globalThis.fetch } = {}) {
		if (typeof apiKey !== 'string' || !KEY.test(apiKey)) throw new TypeError('apiKey is no API key: it begins with oat_');
		this.#apiKey = apiKey;
		this.#baseUrl = new URL(baseUrl ?? '').href.replace(/\/+$/, '');
		this.#fetch = fetch;
		this.#timeoutMs = timeoutMs;
		this.#maxRetries = maxRetries;
		this.otp = new Otp(this);
	}

	/**
	 * Any request of the API, those for admin keys among them. With safe it is tried again when it got no answer, and after 429
	 * and 503 when the server says that it is a matter of a few seconds.
	 */
	async request(method, path, { body, query, headers = {}, safe = method === 'GET', signal } = {}) {
		const url = new URL(this.#baseUrl + path);
		for (const [name, value] of Object.entries(query ?? {})) url.searchParams.set(name, String(value));
		const init = {
			method,
			headers: { authorization: `Bearer ${this.#apiKey}`, accept: 'application/json', ...headers },
			redirect: 'error',
		};
		if (body !== undefined) {
			init.headers['content-type'] = 'application/json';
			init.body = JSON.stringify(body);
		}

		for (let attempt = 0; ; attempt++) {
			const timeout = AbortSignal.timeout(this.#timeoutMs);
			const last = !safe || attempt >= this.#maxRetries;
			let response;
			let text;
			try {
				const watched = new AbortController();
				const stop = (event) => watched.abort(event.target.reason);
				timeout.addEventListener('abort', stop, { once: true });
				if (signal?.aborted) watched.abort(signal.reason);
				signal?.addEventListener('abort', stop, { once: true });
				try {
					response = await this.#fetch(url, { ...init, signal: watched.signal });
					text = await response.text();
				} finally {
					signal?.removeEventListener('abort', stop);
				}
			} catch (cause) {
				if (signal?.aborted) throw signal.reason;
				if (last) throw new OtpError(0, { code: 'unreachable', message: 'the API could not be reached' }, cause);
				await sleep(100 * 2 ** attempt * (1 + Math.random()));
				continue;
			}
			if (response.ok) return text === '' ? null : JSON.parse(text);

			let error = {};
			try {
				const answer = JSON.parse(text);
				error = { ...answer, ...answer.error };
			} catch {
				// A proxy in between has words of its own
			}
			const wait = Number(response.headers.get('retry-after') ?? NaN);
			if (last || response.status !== 503 || !(wait <= 5)) throw new OtpError(response.status, error);
			await sleep(1000 * wait);
		}
	}
}

/**
 * Check that a webhook is genuine, and give its event.
 *
 * body is the request's, byte by byte; headers a Headers or an object; secret the endpoint's whsec_…, or several while it is
 * being rotated. Throws WebhookVerificationError.
 */
export function verifyWebhook(body, headers, secret, { toleranceSeconds = 300, now = Date.now() } = {}) {
	const header = (name) => {
		if (typeof headers.get === 'function') return headers.get(name);
		const found = Object.entries(headers).find(([key]) => key.toLowerCase() === name);
		return found === undefined ? null : Array.isArray(found[1]) ? found[1][0] : found[1];
	};
	const id = header('webhook-id');
	const timestamp = header('webhook-timestamp');
	const signatures = header('webhook-signature');
	if (!id || !timestamp || !signatures) throw new WebhookVerificationError('a header is missing');
	if (!/^[0-9]{1,12}$/.test(timestamp) || Math.abs(now / 1000 - Number(timestamp)) > toleranceSeconds)
		throw new WebhookVerificationError('the timestamp is not of now');

	const bytes = typeof body === 'string' ? Buffer.from(body) : Buffer.from(body.buffer ?? body, body.byteOffset ?? 0, body.byteLength);
	const given = signatures.split(' ').filter((s) => s.startsWith('v1,')).map((s) => Buffer.from(s.slice(3), 'base64'));
	let genuine = false;
	for (const one of [secret].flat()) {
		const key = Buffer.from(one.replace(/^whsec_/, ''), 'base64');
		const right = createHmac('sha256', key).update(`${id}.${timestamp}.`).update(bytes).digest();
		for (const signature of given)
			if (signature.length === right.length && timingSafeEqual(signature, right)) genuine = true;
	}
	if (!genuine) throw new WebhookVerificationError('the signature is not valid');
	return JSON.parse(bytes.toString('utf8'));
}

export { OtpClient };

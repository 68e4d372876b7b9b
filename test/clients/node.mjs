// Our Node client against the live listener.

import { createServer } from 'node:http';
import { once } from 'node:events';
import OtpClient, { OtpError, verifyWebhook, WebhookVerificationError } from '../../clients/node/index.js';
import { assert, done, env, phones, test } from './say.mjs';

const client = new OtpClient({ apiKey: env.key, baseUrl: env.url });
const rejects = (promise, wanted) => assert.rejects(promise, (error) => {
	assert(error instanceof OtpError, String(error));
	for (const [name, value] of Object.entries(wanted)) assert.deepEqual(error[name], value, name);
	return true;
});

await test('send and verify as in the reference', async () => {
	const { otp_id, channel, message_id, expires_in } = await client.otp.send({
		phone: phones.delivered,
		template: 'otp_verification',
		length: 6,
		expiresIn: 300,
		fallbackSms: true,
	});
	assert.match(otp_id, /^otp_[0-9A-HJKMNP-TV-Z]{26}$/);
	assert.equal(channel, 'whatsapp');
	assert.equal(expires_in, 300);
	assert.equal(typeof message_id, 'string');

	const wrong = await client.otp.verify({ otp_id, code: env.code === '000000' ? '000001' : '000000' });
	assert.deepEqual(wrong, { valid: false, otp_id, error: 'invalid_code', attempts_remaining: 2 });
	const right = await client.otp.verify({ otpId: otp_id, code: env.code });
	assert.equal(right.valid, true);
	assert.equal(right.phone, phones.delivered);
	assert.match(right.verified_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/);
	await rejects(client.otp.verify({ otp_id, code: env.code }), { status: 422, code: 'otp_already_verified' });

	const status = await client.otp.status(otp_id);
	assert.equal(status.status, 'verified');
	assert.equal(status.fallback_used, false);
	assert.equal(status.attempts, 2);
});

await test('snake_case, context, metadata and phone', async () => {
	const { otp_id } = await client.otp.send({
		phone: phones.delivered, expires_in: 120, fallback_sms: false, context: 'pay 4711', metadata: { user: 'ä€😀' },
	});
	assert.deepEqual((await client.otp.status({ otp_id })).metadata, { user: 'ä€😀' });
	await rejects(client.otp.verify({ otp_id, code: env.code, context: 'pay 4711', phone: phones.failed }), { status: 404, code: 'otp_not_found' });
	assert.equal((await client.otp.verify({ otp_id, code: env.code, context: 'login' })).valid, false);
	assert.equal((await client.otp.verify({ otp_id, code: env.code, context: 'pay 4711', phone: phones.delivered })).valid, true);
});

await test('the fallback shows', async () => {
	const { otp_id, channel } = await client.otp.send({ phone: phones.sms_fallback, fallbackSms: true });
	assert.equal(channel, 'sms');
	assert.equal((await client.otp.status({ otpId: otp_id })).fallback_used, true);
});

await test('errors have a code and what comes with it', async () => {
	await rejects(client.otp.send({ phone: '12' }), { status: 400, code: 'invalid_phone' });
	await rejects(client.otp.send({ phone: phones.rate_limit_exceeded }), { status: 429, code: 'rate_limit_exceeded', retryAfter: 42, limit: 'sends_per_phone_hour' });
	await rejects(client.otp.send({ phone: phones.insufficient_credits }), { status: 402, code: 'insufficient_credits' });
	const impatient = new OtpClient({ apiKey: env.key, baseUrl: env.url, maxRetries: 0 });
	await rejects(impatient.otp.send({ phone: phones.meta_api_unavailable }), { status: 503, code: 'meta_api_unavailable' });
	await rejects(client.otp.status('otp_01HXK7QZRN8V4M2P9D3Y5F6G7H'), { status: 404, code: 'otp_not_found' });
	await rejects(client.request('GET', '/v1/api-keys'), { status: 403, code: 'permission_denied' });
	const stranger = new OtpClient({ apiKey: `oat_${'a'.repeat(32)}`, baseUrl: env.url });
	await rejects(stranger.otp.send({ phone: phones.delivered }), { status: 401, code: 'invalid_api_key' });
	const nobody = new OtpClient({ apiKey: env.key, baseUrl: 'http://127.0.0.1:1', maxRetries: 1 });
	await rejects(nobody.otp.status('otp_x'), { status: 0, code: 'unreachable' });
	assert.throws(() => new OtpClient({ apiKey: 'nonsense', baseUrl: env.url }), TypeError);
});

await test('one idempotency key, one code', async () => {
	const args = { phone: phones.pending, context: 'once' };
	const first = await client.otp.send(args, { idempotencyKey: 'node-1' });
	assert.deepEqual(await client.otp.send(args, { idempotencyKey: 'node-1' }), first);
	await rejects(client.otp.send({ ...args, context: 'twice' }, { idempotencyKey: 'node-1' }), { status: 409, code: 'idempotency_key_reused' });
	assert.notEqual((await client.otp.send(args)).otp_id, first.otp_id);
});

await test('resend, cancel and list', async () => {
	const sent = await client.otp.send({ phone: phones.delivered, context: 'node list' });
	assert.equal((await client.otp.resend(sent.otp_id)).otp_id, sent.otp_id);
	assert.deepEqual(await client.otp.cancel(sent), { otp_id: sent.otp_id, canceled: true });
	await rejects(client.otp.verify({ otp_id: sent.otp_id, code: env.code, context: 'node list' }), { status: 409, code: 'otp_canceled' });

	const page = await client.otp.list({ phone: phones.delivered, limit: 1 });
	assert.deepEqual(page.data.map((otp) => [otp.otp_id, otp.status]), [[sent.otp_id, 'canceled']]);
	assert.equal(page.has_more, true);
	const all = [];
	for await (const otp of client.otp.all({ phone: phones.delivered, limit: 1 })) all.push(otp.otp_id);
	assert.equal(new Set(all).size, all.length);
	assert(all.length >= 3);
});

await test('a caller can lose patience', async () => {
	await assert.rejects(client.otp.status('otp_x', { signal: AbortSignal.abort(new Error('enough')) }), /enough/);
});

await test('a request without an answer is repeated with the same key', async () => {
	const seen = [];
	const flaky = new OtpClient({
		apiKey: env.key, baseUrl: env.url,
		fetch: async (url, init) => {
			const response = await fetch(url, init);
			seen.push(init.headers['idempotency-key']);
			if (seen.length > 1) return response;
			await response.arrayBuffer();
			throw new TypeError('the connection broke');
		},
	});
	const { otp_id } = await flaky.otp.send({ phone: phones.pending, context: 'flaky' });
	assert.equal(seen.length, 2);
	assert.equal(seen[0], seen[1]);
	const page = await client.otp.list({ phone: phones.pending, limit: 100 });
	assert.equal(page.data.filter((otp) => otp.otp_id === otp_id).length, 1);
});

await test('a webhook that the server has signed', async () => {
	const got = [];
	const server = createServer(async (request, response) => {
		const chunks = [];
		for await (const chunk of request) chunks.push(chunk);
		got.push([request.headers, Buffer.concat(chunks)]);
		response.writeHead(204).end();
		server.emit('hook');
	}).listen(0, '127.0.0.1');
	await once(server, 'listening');
	const admin = new OtpClient({ apiKey: env.admin, baseUrl: env.url });
	const endpoint = await admin.request('POST', '/v1/webhook-endpoints', {
		body: { url: `http://127.0.0.1:${server.address().port}/`, events: ['otp.verified'] },
	});
	try {
		const heard = once(server, 'hook', { signal: AbortSignal.timeout(120_000) });
		await admin.request('POST', `/v1/webhook-endpoints/${endpoint.endpoint_id}/test`, { body: { event: 'otp.verified' } });
		await heard;
		const [headers, body] = got[0];
		assert.equal(verifyWebhook(body, headers, endpoint.secret).event, 'otp.verified');
		assert.equal(verifyWebhook(body.toString(), new Headers(Object.entries(headers).filter(([, v]) => typeof v === 'string')),
			['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw', endpoint.secret]).event, 'otp.verified');
		for (const [b, h, s, o] of [
			[Buffer.concat([body, Buffer.from(' ')]), headers, endpoint.secret],
			[body, { ...headers, 'webhook-id': 'other' }, endpoint.secret],
			[body, { ...headers, 'webhook-signature': undefined }, endpoint.secret],
			[body, headers, 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw'],
			[body, headers, endpoint.secret, { now: Date.now() + 301_000 }],
			[body, headers, endpoint.secret, { now: Date.now() - 301_000 }],
		]) assert.throws(() => verifyWebhook(b, h, s, o), WebhookVerificationError);
	} finally {
		await admin.request('DELETE', `/v1/webhook-endpoints/${endpoint.endpoint_id}`);
		server.close();
		server.closeAllConnections();
	}
});

done();

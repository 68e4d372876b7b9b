#!/usr/bin/env node
// receiver.js - play an application's web tier: take the providers' receipts and otp's webhooks
//
// Usage: receiver.js --port-file=FILE [OPTION...]
//
//   --port=N               where to listen on 127.0.0.1; any free port unless said
//   --port-file=FILE       write the port there, once it listens
//   --socket=DIRECTORY     of PostgreSQL; without it, receipts are not taken
//   --pg-port=N  --user=ROLE  --database=NAME     5432, web, postgres
//   --public-url=URL       what callers are told: Twilio signs it; http(s)://127.0.0.1:PORT unless said
//   --tls-cert=FILE --tls-key=FILE                serve https
//   --die-with-parent      end when standard input does
//
// README.md has the requests that it understands. It holds no secret of a
// provider: signatures of receipts are checked by the database.
'use strict';

const fs = require('fs');
const http = require('http');
const https = require('https');
const { parseArgs } = require('util');

const { Pool } = require('pg');
const { Webhook } = require('standardwebhooks');

const MAX_BODY = 8 * 1024 * 1024;
const HUGE_CHUNK = Buffer.alloc(64 * 1024, 'x');

const option = parseArgs({
	options: Object.fromEntries([
		...['port', 'port-file', 'socket', 'pg-port', 'user', 'database', 'public-url', 'tls-cert', 'tls-key']
			.map((name) => [name, { type: 'string' }]),
		['die-with-parent', { type: 'boolean' }],
	]),
}).values;

// What came in, what is waited for, how to answer
const records = { hooks: [], callbacks: [] };
const waiting = new Set();
const behaviours = new Map();
const secrets = new Map();
let last = 0;
let publicUrl;

const pool = option.socket && new Pool({
	host: option.socket,
	port: Number(option['pg-port'] || 5432),
	user: option.user || 'web',
	database: option.database || 'postgres',
	max: 4,
});
// a connection that breaks while nobody uses it is made anew when somebody does
if (pool) pool.on('error', () => {});

// ---------- helpers ----------

// Read a request's body as it came
async function bodyOf(request) {
	const chunks = [];
	let length = 0;
	for await (const chunk of request) {
		length += chunk.length;
		if (length > MAX_BODY) throw new Error('the body is too long');
		chunks.push(chunk);
	}
	return Buffer.concat(chunks);
}

// Answer with a text, or with JSON
function answer(response, status, body = '', headers = {}) {
	const text = typeof body === 'string' ? body : JSON.stringify(body);
	const type = typeof body === 'string' ? 'text/plain' : 'application/json';
	response.writeHead(status, body === '' ? headers : { 'content-type': type, ...headers });
	response.end(text);
}

// Keep what came in, and tell those who wait
function keep(kind, what) {
	const record = { n: ++last, at: Date.now() / 1000, ...what };
	records[kind].push(record);
	for (const look of [...waiting]) look();
	return record;
}

// Tell what was kept, once there is enough of it
function tell(kind, query, response) {
	const count = Number(query.get('count') || 0);
	const since = Number(query.get('since') || 0);
	const filters = ['name', 'event', 'otp_id', 'account'].filter((field) => query.has(field));
	const found = () => records[kind].filter((r) => r.n > since &&
		filters.every((field) => String(r[field]) === query.get(field)));
	let timer;

	const finish = () => {
		clearTimeout(timer);
		waiting.delete(look);
		if (!response.destroyed) answer(response, 200, found());
	};
	const look = () => {
		if (found().length >= count) finish();
	};
	timer = setTimeout(finish, Number(query.get('wait_ms') || 0));
	waiting.add(look);
	response.on('close', () => {
		clearTimeout(timer);
		waiting.delete(look);
	});
	look();
}

// ---------- what providers post ----------

// The statement for a provider's request; only the database can check the signature
const statement = {
	meta: 'SELECT otp.receive_meta($1, $2::bytea, $3) AS result',
	handshake: 'SELECT otp.receive_meta_handshake($1, $2, $3, $4) AS result',
	twilio: 'SELECT otp.receive_twilio($1, $2, $3::bytea, $4) AS result',
};

// Hand a request to the database, and answer as its provider wants it
async function receipt(kind, account, values, success, response) {
	let status, result = null, error = null;
	try {
		result = (await pool.query(statement[kind], [account, ...values])).rows[0].result;
		status = success;
	} catch (e) {
		// wrong signature: go away; anything else: please come again
		error = { sqlstate: e.code || null, message: e.message, hint: e.hint || null };
		status = e.code === '42501' ? 403 : 500;
	}
	// Meta wants its challenge back; 204 may have no body
	answer(response, status, kind === 'handshake' && status === 200 ? result : '');
	const body = values.find((value) => Buffer.isBuffer(value));
	keep('callbacks', { kind, account, body: body && body.toString(), status, result, error });
}

// ---------- webhooks ----------

// Check a webhook with every secret of its name
function check(name, headers, body) {
	const known = secrets.get(name) || [];
	const signedBy = [];
	let parsed = null, error = known.length ? null : 'no secret is known';

	known.forEach((secret, i) => {
		try {
			parsed = new Webhook(secret).verify(body, headers);
			signedBy.push(i);
		} catch (e) {
			error = e.message;
		}
	});
	return { valid: signedBy.length > 0, error: signedBy.length ? null : error, signed_by: signedBy, parsed };
}

// Answer as told for this name: the newest that is not used up
function behaviour(name) {
	const rules = behaviours.get(name) || [];
	const rule = rules.findLast((r) => r.times !== 0) || {};
	if (rule.times > 0) rule.times--;
	return rule;
}

// Take a webhook
function webhook(name, request, body, response) {
	const text = body.toString();
	const rule = behaviour(name);
	const headers = { ...rule.headers };
	const checked = check(name, request.headers, text);
	let parsed = checked.parsed;

	if (!parsed) try { parsed = JSON.parse(text); } catch { /* it says what came, whatever that is */ }
	const record = keep('hooks', {
		name, method: request.method, headers: request.headers, body: text, ...checked, parsed,
		event: parsed && parsed.event, otp_id: parsed && parsed.data && parsed.data.otp_id,
		connection: request.socket.number,
	});
	response.on('close', () => {
		record.status = response.headersSent ? response.statusCode : null;
		record.answered = response.writableFinished;
		record.ended_at = Date.now() / 1000;
	});

	const go = () => {
		if (rule.hang || response.destroyed) return;
		if (rule.reset) return request.socket.resetAndDestroy();
		if (rule.retry_after) headers['retry-after'] = String(rule.retry_after);
		if (rule.redirect_to) headers.location = rule.redirect_to;
		if (rule.huge_bytes) return huge(response, rule.status || 200, rule.huge_bytes);
		answer(response, rule.status || (rule.redirect_to ? 302 : 200), rule.body || '', headers);
	};
	if (rule.delay_ms) setTimeout(go, rule.delay_ms);
	else go();
}

// Answer with that many bytes, as fast as they are taken
function huge(response, status, bytes) {
	let written = 0;
	const more = () => {
		while (written < bytes) {
			written += HUGE_CHUNK.length;
			if (!response.write(HUGE_CHUNK)) return;
		}
		response.end();
	};
	response.writeHead(status, { 'content-type': 'text/plain' });
	response.on('drain', more);
	more();
}

// ---------- requests ----------

// What tests ask and tell
async function control(request, url, response) {
	const what = `${request.method} ${url.pathname.slice('/_rx/'.length)}`;
	const told = request.method === 'POST' ? JSON.parse(await bodyOf(request) || '{}') : {};
	const list = (map) => map.get(told.name) || map.set(told.name, []).get(told.name);

	switch (what) {
		case 'GET hooks': return tell('hooks', url.searchParams, response);
		case 'GET callbacks': return tell('callbacks', url.searchParams, response);
		case 'DELETE hooks': records.hooks = []; break;
		case 'DELETE callbacks': records.callbacks = []; break;
		case 'POST secret': list(secrets).push(told.secret); break;
		case 'POST behave': list(behaviours).push({ times: -1, ...told }); break;
		case 'DELETE behave':
			if (url.searchParams.has('name')) behaviours.delete(url.searchParams.get('name'));
			else behaviours.clear();
			break;
		case 'GET healthz': break;
		default: return answer(response, 404, { error: `there is no ${what}` });
	}
	answer(response, 200, { ok: true });
}

// Look who it is for
async function handle(request, response) {
	const url = new URL(request.url, publicUrl);
	const [, room, name] = url.pathname.split('/').map(decodeURIComponent);
	const post = request.method === 'POST';
	const header = (field) => request.headers[field] || null;

	if (room === '_rx') return control(request, url, response);
	if (room === 'hook') return webhook(name, request, await bodyOf(request), response);
	if (room === 'meta' && request.method === 'GET') {
		const said = ['mode', 'verify_token', 'challenge'].map((field) => url.searchParams.get(`hub.${field}`));
		return receipt('handshake', name, said, 200, response);
	}
	if (room === 'meta' && post) {
		return receipt('meta', name, [await bodyOf(request), header('x-hub-signature-256')], 200, response);
	}
	if (room === 'twilio' && post) {
		// Twilio signs the address that it was given, not the one that a proxy makes of it
		const values = [publicUrl + request.url, await bodyOf(request), header('x-twilio-signature')];
		return receipt('twilio', name, values, 204, response);
	}
	return answer(response, 404);
}

// ---------- the server ----------

const tls = option['tls-cert'] && {
	cert: fs.readFileSync(option['tls-cert']),
	key: fs.readFileSync(option['tls-key']),
};
const listener = (request, response) => {
	handle(request, response).catch((e) => {
		if (!response.headersSent) answer(response, 500, e.message);
		else response.destroy();
	});
};
const server = tls ? https.createServer(tls, listener) : http.createServer(listener);

// Connections are numbered, so that one can see which requests shared one
let connections = 0;
server.on(tls ? 'secureConnection' : 'connection', (socket) => { socket.number = ++connections; });
server.keepAliveTimeout = 60000;
server.listen(Number(option.port || 0), '127.0.0.1', () => {
	const { port } = server.address();
	publicUrl = (option['public-url'] || `${tls ? 'https' : 'http'}://127.0.0.1:${port}`).replace(/\/$/, '');
	if (option['port-file']) {
		fs.writeFileSync(`${option['port-file']}.new`, `${port}\n`);
		fs.renameSync(`${option['port-file']}.new`, option['port-file']);
	}
});

process.on('SIGTERM', () => process.exit(0));
process.on('SIGINT', () => process.exit(0));
if (option['die-with-parent']) process.stdin.resume().on('end', () => process.exit(0));

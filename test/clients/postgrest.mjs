// @supabase/postgrest-js calls /rpc in all its forms.

import { createRequire } from 'node:module';
import { assert, done, env, phones, test } from './say.mjs';

const { PostgrestClient } = createRequire(process.env.NODE_PATH + '/')('@supabase/postgrest-js');
const client = new PostgrestClient(`${env.url}/rpc/..`.replace('/rpc/..', ''), {
	schema: 'otp_api',
	headers: { 'X-API-Key': env.key },
});
const good = ({ data, error, status }, wanted = 200) => {
	assert.equal(error, null, JSON.stringify(error));
	assert.equal(status, wanted);
	return data;
};

let id;
await test('rpc(name, arguments)', async () => {
	const sent = good(await client.rpc('otp_send', { phone: phones.delivered, length: 6, fallback_sms: true, metadata: { a: [1] }, context: 'rpc' }));
	assert.equal(sent.success, true);
	id = sent.otp_id;
	const wrong = good(await client.rpc('otp_verify', { otp_id: id, code: env.code }));
	assert.deepEqual([wrong.valid, wrong.error, wrong.attempts_remaining], [false, 'invalid_code', 2]);
	assert.equal(good(await client.rpc('otp_verify', { otp_id: id, code: env.code, context: 'rpc' })).valid, true);
});

await test('get: true', async () => {
	assert.equal(good(await client.rpc('otp_status', { otp_id: id }, { get: true })).status, 'verified');
	const { error, status } = await client.rpc('otp_verify', { otp_id: id, code: env.code }, { get: true });
	assert.equal(status, 405);
	assert.equal(typeof error.message, 'string');
});

await test('select', async () => {
	assert.deepEqual(good(await client.rpc('otp_status', { otp_id: id }).select('otp_id, status')), { otp_id: id, status: 'verified' });
	assert.equal(good(await client.rpc('otp_status', { otp_id: id }, { get: true }).select()).otp_id, id);
	assert.deepEqual(good(await client.rpc('otp_status', { otp_id: id }, { get: true }).select('status').single()), { status: 'verified' });
	const { data } = good(await client.rpc('otp_list', { phone: phones.delivered, limit: 1 }).select('otp_id'));
	assert.deepEqual([data.length, Object.keys(data[0])], [1, ['otp_id']]);
	assert.deepEqual(good(await client.rpc('otp_status', { otp_id: id }).select('no_such_column')), { no_such_column: null });
	const { error, status } = await client.rpc('otp_status', { otp_id: id }).select('status, otp(id)');
	assert.deepEqual([status, error.code], [400, 'PGRST100']);
	assert.equal((await client.rpc('otp_status', { otp_id: id }).eq('status', 'verified')).status, 400);
});

await test('single and maybeSingle', async () => {
	assert.equal(good(await client.rpc('otp_status', { otp_id: id }).single()).otp_id, id);
	assert.equal(good(await client.rpc('otp_status', { otp_id: id }, { get: true }).maybeSingle()).otp_id, id);
});

await test('head and count', async () => {
	const { data, error, status } = await client.rpc('otp_status', { otp_id: id }, { head: true, count: 'exact' });
	assert.equal(error, null);
	assert.equal(status, 200);
	assert(data === null || data === '');
});

await test('no arguments', async () => {
	const { error, status } = await client.rpc('otp_send');
	assert(status === 400 || status === 404, String(status));
	assert.equal(typeof error.code, 'string');
	assert.equal(typeof error.message, 'string');
	good(await client.rpc('rate_limit_status'));
});

await test('throwOnError and errors with their codes', async () => {
	const { error, status, data } = await client.rpc('otp_send', { phone: '12' });
	assert.deepEqual([status, error.code, data], [400, 'invalid_phone', null]);
	assert('details' in error && 'hint' in error);
	const refused = await client.rpc('otp_send', { phone: phones.rate_limit_exceeded });
	assert.deepEqual([refused.status, refused.error.code, refused.error.retry_after], [429, 'rate_limit_exceeded', 42]);
	await assert.rejects(async () => client.rpc('otp_status', { otp_id: 'nonsense' }).throwOnError());
	const missing = await client.rpc('no_such_function', {});
	assert.deepEqual([missing.status, missing.error.code], [404, 'PGRST202']);
	const unknown = await client.rpc('otp_status', { otp_id: id, nonsense: 1 });
	assert.deepEqual([unknown.status, unknown.error.code], [404, 'PGRST202']);
	const typed = await client.rpc('otp_status', { otp_id: 1 });
	assert.deepEqual([typed.status, typed.error.code], [400, 'invalid_request']);
});

await test('a schema that is not there', async () => {
	const { error, status } = await client.schema('public').rpc('otp_status', { otp_id: id });
	assert.deepEqual([status, error.code], [406, 'PGRST106']);
});

await test('nothing is won by tx=rollback', async () => {
	const sent = good(await client.rpc('otp_send', { phone: phones.delivered, context: 'tx' }));
	const { status } = await client.rpc('otp_verify', { otp_id: sent.otp_id, code: env.code, context: 'tx' }).rollback();
	assert.equal(status, 400);
	assert.equal(good(await client.rpc('otp_status', { otp_id: sent.otp_id })).verified_at ?? null, null);
});

await test('Bearer in place of X-API-Key, and none', async () => {
	const bearer = new PostgrestClient(env.url, { schema: 'otp_api', headers: { Authorization: `Bearer ${env.key}` } });
	assert.equal(good(await bearer.rpc('otp_status', { otp_id: id })).otp_id, id);
	const { error, status } = await new PostgrestClient(env.url).rpc('otp_status', { otp_id: id });
	assert.deepEqual([status, error.code], [401, 'invalid_api_key']);
});

await test('csv of a list', async () => {
	const lines = good(await client.rpc('otp_list', { phone: phones.delivered }, { get: true }).csv()).split('\n');
	assert.match(lines[0], /^otp_id,status,phone,/);
	assert(lines.length > 1 && lines[1].startsWith('otp_'));
});

done();

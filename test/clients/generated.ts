// A client that openapi-typescript has generated from /openapi.json: it must compile, strictly, and work.

import createClient from 'openapi-fetch';
import type { paths } from './schema.js';
import { assert, done, env, phones, test } from './say.mjs';

const client = createClient<paths>({ baseUrl: env.url!, headers: { Authorization: `Bearer ${env.key}` } });

await test('send, verify and status, typed', async () => {
	const sent = await client.POST('/v1/whatsapp/otp/send', {
		body: { phone: phones.delivered, length: 6, expires_in: 300, fallback_sms: true, metadata: { user_id: 'u1' } },
	});
	assert.equal(sent.response.status, 200);
	assert(sent.data);
	const otp_id: string = sent.data.otp_id;
	const channel: 'whatsapp' | 'sms' = sent.data.channel;
	assert.equal(channel, 'whatsapp');
	const message_id: string | null = sent.data.message_id;
	assert.equal(typeof message_id, 'string');

	const verified = await client.POST('/v1/whatsapp/otp/verify', { body: { otp_id, code: env.code! } });
	const valid: boolean | undefined = verified.data?.valid;
	assert.equal(valid, true);

	const status = await client.GET('/v1/whatsapp/otp/{otp_id}', { params: { path: { otp_id } } });
	const word: 'pending' | 'delivered' | 'verified' | 'expired' | 'failed' | 'canceled' | undefined = status.data?.status;
	assert.equal(word, 'verified');
});

await test('an error, typed', async () => {
	const { error, response } = await client.POST('/v1/whatsapp/otp/send', { body: { phone: phones.rate_limit_exceeded } });
	assert.equal(response.status, 429);
	assert(error);
	const code: string = error.error.code;
	assert.equal(code, 'rate_limit_exceeded');
	assert.equal(error.error.retry_after, 42);
});

await test('a list, typed', async () => {
	const { data } = await client.GET('/v1/whatsapp/otp', { params: { query: { phone: phones.delivered, limit: 1 } } });
	assert(data);
	const more: boolean = data.has_more;
	assert.equal(typeof more, 'boolean');
	assert.equal(data.data.length, 1);
});

await test('what the compiler must refuse', async () => {
	// @ts-expect-error phone is required
	const without = await client.POST('/v1/whatsapp/otp/send', { body: {} });
	assert.equal(without.response.status, 400);
	// @ts-expect-error nobody has such a length
	const five = await client.POST('/v1/whatsapp/otp/send', { body: { phone: phones.delivered, length: 5 } });
	assert.equal(five.response.status, 400);
});

done();

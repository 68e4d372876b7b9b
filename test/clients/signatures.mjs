// The official library of Standard Webhooks signs, ours checks; Python's, too, of what is printed here.

import { createRequire } from 'node:module';
import { execFileSync } from 'node:child_process';
import { verifyWebhook } from '../../clients/node/index.js';
import { assert, done, test } from './say.mjs';

const { Webhook } = createRequire(process.env.NODE_PATH + '/')('standardwebhooks');
const secret = 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw';
const body = JSON.stringify({ event: 'otp.verified', timestamp: '2026-06-02T19:14:18Z', data: { name: 'ä€😀/' } });
const at = new Date();
const headers = {
	'Webhook-Id': 'msg_1',
	'webhook-timestamp': String(Math.floor(at / 1000)),
	'webhook-signature': 'v1a,bm9uc2Vuc2U= v1,short ' + new Webhook(secret).sign('msg_1', at, body),
};

await test('what the official library has signed', () => {
	assert.equal(verifyWebhook(body, headers, secret).data.name, 'ä€😀/');
	assert.equal(verifyWebhook(Buffer.from(body), headers, [secret]).event, 'otp.verified');
});

await test('the same in Python', () => {
	const program = 'import sys, json; sys.path.insert(0, sys.argv[1]); sys.dont_write_bytecode = True; import otp_client;'
		+ 'a = json.load(sys.stdin); print(otp_client.verify_webhook(a["body"], a["headers"], a["secret"])["data"]["name"])';
	const said = execFileSync('python3', ['-c', program, new URL('../../clients/python', import.meta.url).pathname],
		{ input: JSON.stringify({ body, headers, secret }), env: { ...process.env, PYTHONIOENCODING: 'utf-8' } });
	assert.equal(said.toString(), 'ä€😀/\n');
});

done();

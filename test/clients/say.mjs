// What the programs here share: one line for each thing that was looked at, and one that says that all were.

import assert from 'node:assert/strict';

export { assert };

let failed = 0;

export async function test(name, body) {
	try {
		await body();
		console.log(`ok - ${name}`);
	} catch (error) {
		failed++;
		console.log(`not ok - ${name}`);
		console.log(String(error.stack ?? error).replace(/^/gm, '# '));
	}
}

export function done() {
	console.log('done');
	process.exitCode = failed === 0 ? 0 : 1;
}

export const env = {
	url: process.env.OTP_URL,
	key: process.env.OTP_API_KEY,
	admin: process.env.OTP_ADMIN_KEY,
	code: process.env.OTP_CODE,
};

// Test numbers, by what comes of them
export const phones = {
	delivered: '+15550124001',
	sms_fallback: '+15550124002',
	rate_limit_exceeded: '+15550124003',
	meta_api_unavailable: '+15550124004',
	insufficient_credits: '+15550124005',
	failed: '+15550124006',
	pending: '+15550124007',
};

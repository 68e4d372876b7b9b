// What the types of our Node client promise; this file is compiled only.

import OtpClient, { OtpError, verifyWebhook, type Otp, type Sent, type Verification } from '../../clients/node/index.js';

const client = new OtpClient({ apiKey: 'oat_x', baseUrl: 'https://otp.example.com' });
const sent: Sent = await client.otp.send({ phone: '+919876543210', template: 'otp_verification', length: 6, expiresIn: 300, fallbackSms: true });
const verification: Verification = await client.otp.verify({ otp_id: sent.otp_id, code: '482915' });
if (verification.valid) console.log(verification.phone.length, verification.verified_at);
else console.log(verification.attempts_remaining + 1);
for await (const otp of client.otp.all({ status: 'pending' })) {
	const one: Otp = otp;
	console.log(one.message_id?.length);
}
console.log(verifyWebhook(new Uint8Array(), new Headers(), ['whsec_x']).data.otp_id);
if (({} as unknown) instanceof OtpError) console.log('never');

// @ts-expect-error a code has 4, 6 or 8 digits
await client.otp.send({ phone: '+919876543210', length: 5 });
// @ts-expect-error no id
await client.otp.verify({ code: '482915' });
// @ts-expect-error only of a valid one
console.log(verification.phone);

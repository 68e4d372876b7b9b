// server.js
//	The least that a web tier of one's own would be: http, pg, and the same verbs.
//
//	node server.js SOCKET_DIRECTORY DATABASE USER POOL PORT_FILE

const http = require('node:http');
const fs = require('node:fs');
const { Pool } = require('pg');

const [, , host, database, user, max, portFile] = process.argv;
const pool = new Pool({ host, database, user, max: Number(max) });
const verbs = {
	'/v1/whatsapp/otp/verify': (b) => ({ name: 'verify', text: 'SELECT * FROM otp_verify($1, $2)', values: [b.otp_id, b.code] }),
	'/v1/whatsapp/otp/send': (b) => ({ name: 'send', text: 'SELECT * FROM otp_send($1)', values: [b.phone] }),
};

const server = http.createServer((request, response) => {
	const chunks = [];
	request.on('data', (chunk) => chunks.push(chunk));
	request.on('end', async () => {
		let status = 200;
		let answer;
		try {
			answer = (await pool.query(verbs[request.url](JSON.parse(Buffer.concat(chunks))))).rows[0];
		} catch (error) {
			status = 500;
			answer = { error: error.message };
		}
		const body = JSON.stringify(answer);
		response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) });
		response.end(body);
	});
});
server.listen(0, '127.0.0.1', () => fs.writeFileSync(portFile, String(server.address().port)));

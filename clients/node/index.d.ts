export type Channel = 'whatsapp' | 'sms';
export type OtpStatus = 'pending' | 'delivered' | 'verified' | 'expired' | 'failed' | 'canceled';
export type ErrorCode =
	| 'invalid_request' | 'invalid_json' | 'invalid_phone' | 'template_not_found' | 'invalid_api_key' | 'insufficient_credits'
	| 'module_inactive' | 'workspace_suspended' | 'policy_denied' | 'permission_denied' | 'not_found' | 'otp_not_found'
	| 'method_not_allowed' | 'otp_canceled' | 'idempotency_key_reused' | 'otp_expired' | 'payload_too_large'
	| 'unsupported_media_type' | 'otp_already_verified' | 'otp_failed' | 'rate_limit_exceeded' | 'internal_error'
	| 'key_unavailable' | 'meta_api_unavailable' | 'unavailable' | 'unreachable' | 'unknown' | (string & {});

export interface ClientOptions {
	/** `oat_…`; from otp.create_api_key. Never in a browser. */
	apiKey: string;
	/** Where the API is, such as https://otp.example.com */
	baseUrl: string;
	/** Of one try; longer than the server's otp.http_send_wait. Default 40000. */
	timeoutMs?: number;
	/** How often a request that can be repeated is. Default 2. */
	maxRetries?: number;
	fetch?: typeof globalThis.fetch;
}

export interface CallOptions {
	signal?: AbortSignal;
}

export interface SendOptions extends CallOptions {
	/** The same key and arguments within 24 hours send no second code. Default: one for each call. */
	idempotencyKey?: string;
}

export interface SendArgs {
	/** E.164: +919876543210 */
	phone: string;
	template?: string;
	length?: 4 | 6 | 8;
	/** Seconds, 60 to 900 */
	expiresIn?: number;
	expires_in?: number;
	fallbackSms?: boolean;
	fallback_sms?: boolean;
	metadata?: Record<string, unknown>;
	channel?: Channel;
	/** What the code may be used for; to be given at verify, too. */
	context?: string;
	language?: string;
	/** Such as ip:203.0.113.7; the workspace has limits for the prefix. */
	limitKeys?: string[];
	limit_keys?: string[];
}

export interface Sent {
	success: true;
	otp_id: string;
	channel: Channel;
	phone: string;
	expires_at: string;
	expires_in: number;
	/** The provider's; null when it had not taken the message by the time of the answer. */
	message_id: string | null;
}

export type VerifyArgs = ({ otp_id: string } | { otpId: string }) & {
	code: string;
	context?: string;
	/** A code that was sent to another phone is otp_not_found. */
	phone?: string;
};

export type Verification =
	| { valid: true; otp_id: string; phone: string; verified_at: string; channel: Channel }
	| { valid: false; otp_id: string; error: 'invalid_code'; attempts_remaining: number };

export interface Otp {
	otp_id: string;
	status: OtpStatus;
	phone: string;
	channel: Channel;
	created_at: string;
	expires_at: string;
	verified_at: string | null;
	attempts: number;
	fallback_used: boolean;
	template?: string;
	language?: string;
	message_id?: string;
	sent_at?: string;
	delivered_at?: string;
	ended_at?: string;
	attempts_remaining?: number;
	error?: string;
	error_detail?: string;
	metadata?: Record<string, unknown>;
}

export interface ListArgs {
	phone?: string;
	status?: OtpStatus;
	/** 1 to 100, default 20 */
	limit?: number;
	/** The otp_id that the page before ended with. */
	after?: string;
}

export interface Page<T> {
	data: T[];
	has_more: boolean;
	next: string | null;
}

export interface RequestOptions extends CallOptions {
	body?: unknown;
	query?: Record<string, string | number | boolean>;
	headers?: Record<string, string>;
	/** It may be tried again. Default: GET only. */
	safe?: boolean;
}

export interface OtpVerbs {
	send(args: SendArgs, options?: SendOptions): Promise<Sent>;
	verify(args: VerifyArgs, options?: CallOptions): Promise<Verification>;
	status(otpId: string | { otp_id: string } | { otpId: string }, options?: CallOptions): Promise<Otp>;
	resend(otpId: string | { otp_id: string } | { otpId: string }, options?: CallOptions & { channel?: Channel }): Promise<Sent>;
	cancel(otpId: string | { otp_id: string } | { otpId: string }, options?: CallOptions): Promise<{ otp_id: string; canceled: boolean }>;
	list(args?: ListArgs, options?: CallOptions): Promise<Page<Otp>>;
	all(args?: ListArgs, options?: CallOptions): AsyncGenerator<Otp, void, undefined>;
}

export class OtpClient {
	constructor(options: ClientOptions);
	readonly otp: OtpVerbs;
	request<T = unknown>(method: string, path: string, options?: RequestOptions): Promise<T>;
}
export default OtpClient;

export class OtpError extends Error {
	/** HTTP; 0 when there was no answer. */
	readonly status: number;
	readonly code: ErrorCode;
	readonly hint: string | null;
	/** Seconds */
	readonly retryAfter: number | null;
	readonly limit: string | null;
	readonly otpId: string | null;
	readonly attemptsRemaining: number | null;
}

export class WebhookVerificationError extends Error {}

export type WebhookEvent = {
	event: 'otp.sent' | 'otp.delivered' | 'otp.verified' | 'otp.expired' | 'otp.failed' | 'otp.sms_fallback' | (string & {});
	timestamp: string;
	data: { otp_id?: string; phone?: string; channel?: Channel; [key: string]: unknown };
};

export interface WebhookOptions {
	/** How old or young the timestamp may be. Default 300. */
	toleranceSeconds?: number;
	/** Milliseconds since 1970; for tests. */
	now?: number;
}

export function verifyWebhook(
	body: string | Uint8Array | ArrayBuffer,
	headers: Headers | Record<string, string | string[] | undefined>,
	secret: string | string[],
	options?: WebhookOptions
): WebhookEvent;

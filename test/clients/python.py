"""Our Python client against the live listener."""

import http.server
import os
import pathlib
import sys
import threading
import traceback
import urllib.error
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "clients/python"))
sys.dont_write_bytecode = True

import otp_client  # noqa: E402

URL, KEY, ADMIN, CODE = (os.environ["OTP_" + name] for name in ("URL", "API_KEY", "ADMIN_KEY", "CODE"))
WRONG = "000001" if CODE == "000000" else "000000"
client = otp_client.Client(api_key=KEY, base_url=URL)
failed = False


def test(body):
    global failed
    name = body.__doc__
    try:
        body()
        print(f"ok - {name}")
    except Exception:
        failed = True
        print(f"not ok - {name}")
        print("# " + traceback.format_exc().replace("\n", "\n# "))


def raises(call, **wanted):
    try:
        call()
    except otp_client.OtpError as error:
        for name, value in wanted.items():
            assert getattr(error, name) == value, (name, getattr(error, name), value)
        return
    raise AssertionError("it raised nothing")


@test
def reference():
    "send and verify as in the reference"
    result = client.otp.send(phone="+15550124001", template="otp_verification", length=6, expires_in=300, fallback_sms=True)
    assert result.channel == "whatsapp" and result.expires_in == 300 and result.message_id
    verification = client.otp.verify(otp_id=result.otp_id, code=WRONG)
    assert not verification.valid and verification.attempts_remaining == 2 and verification.error == "invalid_code"
    verification = client.otp.verify(otp_id=result.otp_id, code=CODE)
    assert verification.valid and verification.phone == "+15550124001"
    raises(lambda: client.otp.verify(otp_id=result.otp_id, code=CODE), status=422, code="otp_already_verified")
    assert client.otp.status(result.otp_id).status == "verified"


@test
def everything():
    "context, metadata, fallback"
    sent = client.otp.send(phone="+15550124002", fallback_sms=True, context="pay", metadata={"user": "ä€😀"}, language="en_US")
    assert sent.channel == "sms"
    status = client.otp.status(sent.otp_id)
    assert status.fallback_used and status.metadata == {"user": "ä€😀"}
    assert not client.otp.verify(otp_id=sent.otp_id, code=CODE).valid
    assert client.otp.verify(otp_id=sent.otp_id, code=CODE, context="pay", phone="+15550124002").valid


@test
def errors():
    "errors have a code and what comes with it"
    raises(lambda: client.otp.send(phone="12"), status=400, code="invalid_phone")
    raises(lambda: client.otp.send(phone="+15550124003"), status=429, code="rate_limit_exceeded", retry_after=42)
    impatient = otp_client.Client(api_key=KEY, base_url=URL, max_retries=0)
    raises(lambda: impatient.otp.send(phone="+15550124004"), status=503, code="meta_api_unavailable")
    raises(lambda: client.otp.send(phone="+15550124005"), status=402, code="insufficient_credits")
    raises(lambda: client.otp.status("otp_01HXK7QZRN8V4M2P9D3Y5F6G7H"), status=404, code="otp_not_found")
    raises(lambda: client.request("GET", "/v1/api-keys"), status=403, code="permission_denied")
    stranger = otp_client.Client(api_key="oat_" + 32 * "a", base_url=URL)
    raises(lambda: stranger.otp.send(phone="+15550124001"), status=401, code="invalid_api_key")
    nobody = otp_client.Client(api_key=KEY, base_url="http://127.0.0.1:1", max_retries=1)
    raises(lambda: nobody.otp.status("otp_x"), status=0, code="unreachable")
    assert KEY not in repr(client)
    try:
        otp_client.Client(api_key="nonsense", base_url=URL)
    except ValueError:
        return
    raise AssertionError("it took nonsense for a key")


@test
def idempotency():
    "one idempotency key, one code"
    first = client.otp.send(phone="+15550124007", context="once", idempotency_key="python-1")
    assert client.otp.send(phone="+15550124007", context="once", idempotency_key="python-1") == first
    raises(lambda: client.otp.send(phone="+15550124007", context="twice", idempotency_key="python-1"), status=409)
    assert client.otp.send(phone="+15550124007", context="once").otp_id != first.otp_id


@test
def repeated():
    "a request without an answer is repeated with the same key"
    seen = []

    class Flaky(urllib.request.HTTPHandler):
        def http_open(self, request):
            response = super().http_open(request)
            seen.append(request.get_header("Idempotency-key"))
            if len(seen) > 1:
                return response
            response.read()
            raise urllib.error.URLError("the connection broke")

    flaky = otp_client.Client(api_key=KEY, base_url=URL, opener=urllib.request.build_opener(Flaky()))
    sent = flaky.otp.send(phone="+15550124007", context="flaky")
    assert len(seen) == 2 and seen[0] == seen[1] and seen[0]
    assert sum(otp.otp_id == sent.otp_id for otp in client.otp.all(phone="+15550124007", limit=100)) == 1


@test
def rest():
    "resend, cancel and list"
    sent = client.otp.send(phone="+15550124001", context="python list")
    assert client.otp.resend(sent.otp_id).otp_id == sent.otp_id
    assert client.otp.cancel(sent.otp_id) is True
    raises(lambda: client.otp.verify(otp_id=sent.otp_id, code=CODE, context="python list"), status=409, code="otp_canceled")
    page = client.otp.list(phone="+15550124001", limit=1)
    assert [(otp.otp_id, otp.status) for otp in page.data] == [(sent.otp_id, "canceled")] and page.has_more
    ids = [otp.otp_id for otp in client.otp.all(phone="+15550124001", limit=1)]
    assert len(set(ids)) == len(ids) >= 2


@test
def webhook():
    "a webhook that the server has signed"
    got = []
    heard = threading.Event()

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            heard.set()

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    admin = otp_client.Client(api_key=ADMIN, base_url=URL)
    body = {"url": f"http://127.0.0.1:{server.server_port}/", "events": ["otp.failed"]}
    endpoint = admin.request("POST", "/v1/webhook-endpoints", body=body)
    try:
        admin.request("POST", f"/v1/webhook-endpoints/{endpoint['endpoint_id']}/test", body={"event": "otp.failed"})
        assert heard.wait(120)
        headers, raw = got[0]
        now = float(headers.get("webhook-timestamp") or headers["Webhook-Timestamp"])
        right, other = endpoint["secret"], "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
        assert otp_client.verify_webhook(raw, headers, right)["event"] == "otp.failed"
        assert otp_client.verify_webhook(raw.decode(), headers, [other, right])["event"] == "otp.failed"
        for args, options in (
            ((raw + b" ", headers, right), {}),
            ((raw, {}, right), {}),
            ((raw, headers, other), {}),
            ((raw, headers, right), {"now": now + 301}),
            ((raw, headers, right), {"now": now - 301}),
        ):
            try:
                otp_client.verify_webhook(*args, **options)
            except otp_client.WebhookVerificationError:
                continue
            raise AssertionError("it took a webhook that is not genuine")
    finally:
        admin.request("DELETE", f"/v1/webhook-endpoints/{endpoint['endpoint_id']}")
        server.shutdown()


print("done")
sys.exit(1 if failed else 0)

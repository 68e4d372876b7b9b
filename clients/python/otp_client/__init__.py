"""Client of the otp HTTP API: phone verification by WhatsApp and SMS.

Standard library only. A Client may be shared by threads.

    client = otp_client.Client(api_key=os.environ["OTP_API_KEY"], base_url="https://otp.example.com")
    sent = client.otp.send(phone="+919876543210", fallback_sms=True)
    if client.otp.verify(otp_id=sent.otp_id, code=code).valid: ...
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import json
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Type, TypeVar, Union

__all__ = ["Client", "Otp", "OtpError", "Page", "Sent", "Verification", "WebhookVerificationError", "verify_webhook"]

_KEY = re.compile(r"oat_[0-9A-Za-z]{32}\Z")
_MAX_ANSWER = 16 * 1024 * 1024

T = TypeVar("T")


class OtpError(Exception):
    """What the API answered with an error; status 0: it could not be reached."""

    def __init__(self, status: int, error: Mapping[str, Any]) -> None:
        super().__init__(error.get("message") or f"the API answered {status}")
        self.status = status
        self.code: str = error.get("code") or "unknown"
        self.hint: Optional[str] = error.get("hint")
        self.retry_after: Optional[int] = error.get("retry_after")
        self.limit: Optional[str] = error.get("limit")
        self.otp_id: Optional[str] = error.get("otp_id")
        self.attempts_remaining: Optional[int] = error.get("attempts_remaining")


class WebhookVerificationError(Exception):
    """A webhook that is not from whom it should be, or too old."""


@dataclasses.dataclass(frozen=True)
class Sent:
    """message_id is None when the provider had not taken the message by the time of the answer."""

    success: bool
    otp_id: str
    channel: str
    phone: str
    expires_at: str
    expires_in: int
    message_id: Optional[str] = None


@dataclasses.dataclass(frozen=True)
class Verification:
    valid: bool
    otp_id: str
    phone: Optional[str] = None
    verified_at: Optional[str] = None
    channel: Optional[str] = None
    error: Optional[str] = None
    attempts_remaining: Optional[int] = None


@dataclasses.dataclass(frozen=True)
class Otp:
    otp_id: str
    status: str
    phone: str
    channel: str
    created_at: str
    expires_at: str
    verified_at: Optional[str] = None
    attempts: int = 0
    fallback_used: bool = False
    template: Optional[str] = None
    language: Optional[str] = None
    message_id: Optional[str] = None
    sent_at: Optional[str] = None
    delivered_at: Optional[str] = None
    ended_at: Optional[str] = None
    attempts_remaining: Optional[int] = None
    error: Optional[str] = None
    error_detail: Optional[str] = None
    metadata: Optional[Dict[str, Any]] = None


@dataclasses.dataclass(frozen=True)
class Page:
    data: List[Otp]
    has_more: bool
    next: Optional[str]


def _make(cls: Type[T], answer: Mapping[str, Any]) -> T:
    """Take what we know; a later server may tell more."""
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in answer.items() if name in names})


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key must not follow anybody anywhere."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class Client:
    """timeout (seconds) is of one try, and longer than the server's otp.http_send_wait."""

    def __init__(
        self,
        api_key: str,
        base_url: str,
        *,
        timeout: float = 40.0,
        max_retries: int = 2,
        opener: Optional[urllib.request.OpenerDirector] = None,
    ) -> None:
        if not isinstance(api_key, str) or not _KEY.match(api_key):
            raise ValueError("api_key is no API key: it begins with oat_")
        if urllib.parse.urlsplit(base_url).scheme not in ("http", "https"):
            raise ValueError("base_url is no http or https URL")
        self._api_key = api_key
        self._base_url = base_url.rstrip("/")
        self._timeout = timeout
        self._max_retries = max_retries
        self._opener = opener or urllib.request.build_opener(_NoRedirect())
        self.otp = _Otp(self)

    def __repr__(self) -> str:
        return f"Client(base_url={self._base_url!r})"

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Optional[Mapping[str, Any]] = None,
        query: Optional[Mapping[str, Any]] = None,
        headers: Optional[Mapping[str, str]] = None,
        safe: Optional[bool] = None,
    ) -> Any:
        """Any request of the API, those for admin keys among them.

        A safe one (GET, unless said otherwise) is tried again when it got no answer, and after 503 when the server says that it
        is a matter of a few seconds.
        """
        if safe is None:
            safe = method == "GET"
        url = self._base_url + path
        if query:
            url += "?" + urllib.parse.urlencode({k: v for k, v in query.items() if v is not None})
        all_headers = {"Authorization": f"Bearer {self._api_key}", "Accept": "application/json", **(headers or {})}
        data = None
        if body is not None:
            data = json.dumps({k: v for k, v in body.items() if v is not None}).encode()
            all_headers["Content-Type"] = "application/json"

        attempt = 0
        while True:
            last = not safe or attempt >= self._max_retries
            request = urllib.request.Request(url, data=data, headers=all_headers, method=method)
            try:
                with self._opener.open(request, timeout=self._timeout) as response:
                    text = response.read(_MAX_ANSWER)
                return json.loads(text) if text else None
            except urllib.error.HTTPError as answer:
                error: Dict[str, Any] = {}
                with answer:
                    try:
                        parsed = json.loads(answer.read(_MAX_ANSWER))
                        error = {**parsed, **parsed.get("error", {})}
                    except (ValueError, AttributeError, TypeError, OSError):
                        pass  # a proxy in between has words of its own
                wait = answer.headers.get("Retry-After", "")
                if last or answer.code != 503 or not wait.isdigit() or int(wait) > 5:
                    raise OtpError(answer.code, error) from None
                time.sleep(int(wait))
            except (OSError, ValueError, urllib.error.URLError) as cause:
                if last:
                    raise OtpError(0, {"code": "unreachable", "message": "the API could not be reached"}) from cause
                time.sleep(0.1 * 2**attempt * (1 + random.random()))
            attempt += 1


class _Otp:
    def __init__(self, client: Client) -> None:
        self._client = client

    def send(
        self,
        *,
        phone: str,
        template: Optional[str] = None,
        length: Optional[int] = None,
        expires_in: Optional[int] = None,
        fallback_sms: Optional[bool] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        channel: Optional[str] = None,
        context: Optional[str] = None,
        language: Optional[str] = None,
        limit_keys: Optional[Sequence[str]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Sent:
        """Send a code; returns once the provider has taken the message, or the server has waited long enough."""
        body = {
            "phone": phone,
            "template": template,
            "length": length,
            "expires_in": expires_in,
            "fallback_sms": fallback_sms,
            "metadata": metadata,
            "channel": channel,
            "context": context,
            "language": language,
            "limit_keys": None if limit_keys is None else list(limit_keys),
        }
        # With a key a second try can be no second code
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        return _make(Sent, self._client.request("POST", "/v1/whatsapp/otp/send", body=body, headers=headers, safe=True))

    def verify(self, *, otp_id: str, code: str, context: Optional[str] = None, phone: Optional[str] = None) -> Verification:
        """Check a code. A wrong one gives valid False; what can never become valid raises OtpError."""
        body = {"otp_id": otp_id, "code": code, "context": context, "phone": phone}
        return _make(Verification, self._client.request("POST", "/v1/whatsapp/otp/verify", body=body))

    def status(self, otp_id: str) -> Otp:
        return _make(Otp, self._client.request("GET", self._path(otp_id)))

    def resend(self, otp_id: str, *, channel: Optional[str] = None) -> Sent:
        """The same code again, over the same channel or another."""
        return _make(Sent, self._client.request("POST", self._path(otp_id) + "/resend", body={"channel": channel}))

    def cancel(self, otp_id: str) -> bool:
        """Make a code useless; False when it has ended already."""
        return bool(self._client.request("POST", self._path(otp_id) + "/cancel", body={})["canceled"])

    def list(
        self,
        *,
        phone: Optional[str] = None,
        status: Optional[str] = None,
        limit: Optional[int] = None,
        after: Optional[str] = None,
    ) -> Page:
        """One page, newest first."""
        query = {"phone": phone, "status": status, "limit": limit, "after": after}
        answer = self._client.request("GET", "/v1/whatsapp/otp", query=query)
        return Page([_make(Otp, row) for row in answer["data"]], answer["has_more"], answer.get("next"))

    def all(self, *, phone: Optional[str] = None, status: Optional[str] = None, limit: Optional[int] = None) -> Iterator[Otp]:
        """All of them, page by page."""
        after: Optional[str] = None
        while True:
            page = self.list(phone=phone, status=status, limit=limit, after=after)
            yield from page.data
            if not page.has_more:
                return
            after = page.next

    @staticmethod
    def _path(otp_id: str) -> str:
        if not otp_id:
            raise ValueError("otp_id is missing")
        return "/v1/whatsapp/otp/" + urllib.parse.quote(otp_id, safe="")


def verify_webhook(
    body: Union[bytes, str],
    headers: Mapping[str, str],
    secret: Union[str, Sequence[str]],
    *,
    tolerance: float = 300,
    now: Optional[float] = None,
) -> Dict[str, Any]:
    """Check that a webhook is genuine, and give its event.

    body is the request's, byte by byte; secret the endpoint's whsec_..., or several while it is being rotated; tolerance in
    seconds. Raises WebhookVerificationError.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp, signatures = (lower["webhook-" + name] for name in ("id", "timestamp", "signature"))
    except KeyError:
        raise WebhookVerificationError("a header is missing") from None
    if not re.fullmatch(r"[0-9]{1,12}", timestamp) or abs((time.time() if now is None else now) - int(timestamp)) > tolerance:
        raise WebhookVerificationError("the timestamp is not of now")

    raw = body.encode() if isinstance(body, str) else bytes(body)
    given = []
    for signature in signatures.split(" "):
        if signature.startswith("v1,"):
            try:
                given.append(base64.b64decode(signature[3:], validate=True))
            except (binascii.Error, ValueError):
                pass
    genuine = False
    for one in [secret] if isinstance(secret, str) else secret:
        key = base64.b64decode(one[6:] if one.startswith("whsec_") else one)
        right = hmac.new(key, f"{message_id}.{timestamp}.".encode() + raw, hashlib.sha256).digest()
        for signature_bytes in given:
            genuine |= hmac.compare_digest(signature_bytes, right)
    if not genuine:
        raise WebhookVerificationError("the signature is not valid")
    event: Dict[str, Any] = json.loads(raw)
    return event

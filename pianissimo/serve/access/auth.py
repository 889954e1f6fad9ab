"""Who may use the server: API keys, short-lived secrets for browsers, and origins.

A key is compared with all known keys, by their digests and in constant time: the time of a refusal
does not depend on the guess.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.keys import ANYONE, ApiKey, Limits
from pianissimo.serve.errors import POLICY, Refusal
from pianissimo.serve.versions.experiments import Caller

SECRET_PREFIX = "ek_"
LONGEST_SECRET = 6000
"""Letters of a client secret: browsers send it in a header."""
SHORTEST_SECRET_SECONDS, LONGEST_SECRET_SECONDS = 10, 7200
KEY_PROTOCOLS = ("openai-insecure-api-key.", "pianissimo-key.")
"""Prefixes of keys among the subprotocols that a browser offers."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


class KeyRing:
    """The API keys of the server; without any it is open to every client that can connect.

    Each of several `replicas` allows its share of every limit.
    """

    def __init__(
        self, keys: Iterable[ApiKey], admin_key: str | None = None, replicas: int = 1
    ) -> None:
        self._known = [
            (digest(key.key), Account(key.name, key.limits.divided(replicas))) for key in keys
        ]
        self._anyone = Account(ANYONE, Limits())
        self._admin = None if admin_key is None else digest(admin_key)

    @property
    def accounts(self) -> tuple[Account, ...]:
        """One per key; on an open server the one that all clients share."""
        return tuple(account for _, account in self._known) or (self._anyone,)

    def named(self, name: str) -> Account | None:
        """The account of that name."""
        return next((each for each in self.accounts if each.name == name), None)

    def account(self, key: str | None) -> Account | None:
        """The account of this key, or of a client without one; None if it is not admitted."""
        if not self._known:
            return self._anyone
        given = digest(key or "")
        matches = [hmac.compare_digest(given, digest) for digest, _ in self._known]
        return self._known[matches.index(True)][1] if any(matches) and key else None

    @property
    def has_admin(self) -> bool:
        return self._admin is not None

    def admits_admin(self, key: str | None) -> bool:
        """Whether this key opens /metrics, which is open to every client without an admin key."""
        if self._admin is None:
            return True
        return hmac.compare_digest(digest(key or ""), self._admin) and bool(key)


@dataclass(frozen=True)
class ClientSecret:
    """A secret's session, its expiry in seconds since 1970, and the account it is metered on."""

    expires: float
    session: dict[str, object]
    account: Account


class ClientSecrets:
    """Short-lived keys for the realtime socket, each with the session it was made for.

    A secret carries its session and a signature. Nothing is remembered, so every server with the
    same `signing_key` and API keys accepts it; without a key only the process that made it does.
    """

    def __init__(self, keys: KeyRing, signing_key: str | None = None) -> None:
        self._keys = keys
        self._key = secrets.token_bytes(32) if signing_key is None else digest(signing_key)

    def make(self, session: dict[str, object], seconds: float, account: Account) -> tuple[str, int]:
        """Make a secret; returns it and its expiry in seconds since 1970.

        Raises Refusal if the session is too large to travel in a header.
        """
        expires = time.time() + seconds
        content = {
            "session": session,
            "expires": expires,
            "account": account.name,
            "nonce": secrets.token_hex(8),
        }
        body = _text(zlib.compress(json.dumps(content).encode(), 9))
        secret = f"{SECRET_PREFIX}{body}.{_text(self._signature(body))}"
        if len(secret) > LONGEST_SECRET:
            raise Refusal(
                413,
                "the session is too large for a client secret; shorten its prompt and keywords, or "
                "send them with session.update",
                "session_too_large",
            )
        return secret, round(expires)

    def find(self, secret: str | None) -> ClientSecret | None:
        """The secret, if it was signed here, has not expired and its API key is still known."""
        if secret is None or not secret.startswith(SECRET_PREFIX) or len(secret) > LONGEST_SECRET:
            return None
        body, _, signature = secret.removeprefix(SECRET_PREFIX).partition(".")
        signed = signature.encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(_text(self._signature(body)).encode(), signed):
            return None
        content = json.loads(zlib.decompress(base64.urlsafe_b64decode(body + "===")))
        account = self._keys.named(content["account"])
        if account is None or content["expires"] <= time.time():
            return None
        return ClientSecret(content["expires"], content["session"], account)

    def _signature(self, body: str) -> bytes:
        given = body.encode("utf-8", "surrogateescape")
        return hmac.digest(self._key, given, "sha256")


def _text(data: bytes) -> str:
    """Bytes in the letters of a header value."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def key_of(headers: Mapping[str, str]) -> str | None:
    """The key a request carries: in `Authorization`, or among the subprotocols of a socket."""
    scheme, _, key = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() in ("bearer", "token") and key.strip():
        return key.strip()
    offered = [part.strip() for part in headers.get("sec-websocket-protocol", "").split(",")]
    if offered[0].lower() == "token" and len(offered) > 1:
        return offered[1]
    for protocol in offered:
        for prefix in KEY_PROTOCOLS:
            if protocol.startswith(prefix):
                return protocol.removeprefix(prefix)
    return None


def caller_of(
    headers: Mapping[str, str], user: str | None = None, session: str | None = None
) -> Caller:
    """The identity of a request in experiments; without `session` it is one of its own."""
    return Caller(session or secrets.token_hex(12), key_of(headers), user)


def subprotocol_of(socket: WebSocket) -> str | None:
    """The subprotocol to accept: the first that carries no key."""
    offered = socket.scope.get("subprotocols", [])
    if offered and offered[0].lower() == "token":
        return str(offered[0])
    plain = [p for p in offered if not p.startswith((*KEY_PROTOCOLS, "openai-"))]
    return str(plain[0]) if plain else None


def unauthorized() -> Refusal:
    return Refusal(
        401,
        "this server needs an API key: send it as 'Authorization: Bearer KEY'",
        "invalid_api_key",
        headers={"www-authenticate": "Bearer"},
    )


class OriginGuard:
    """Refuses requests that web pages of other sites make from the user's browser.

    Programs send no Origin and pass. A server on a loopback address without keys also checks the
    Host header, against DNS rebinding.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str], check_host: bool) -> None:
        self.app, self.allowed, self.check_host = app, frozenset(allowed), check_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._admits(headers):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await WebSocket(scope, receive, send).close(POLICY)  # before accept: status 403
            return
        refusal = Refusal(403, "this origin is not allowed; see --allow-origin", "origin_forbidden")
        await JSONResponse(refusal.openai(), refusal.status)(scope, receive, send)

    def _admits(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.check_host and _without_port(host) not in LOCAL_NAMES:
            return False
        if origin is None or "*" in self.allowed or origin in self.allowed:
            return True
        try:
            return urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:  # it is no address
            return False


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

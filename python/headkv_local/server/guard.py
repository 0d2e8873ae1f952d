"""Who may come in: a key, a page of this server, a body that can be read. Before anything is parsed."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Refusal
from .network import is_local_name, network_of
from .service import Service

_OPEN = {"/", "/health", "/favicon.ico"}  # without a key: they say nothing of anybody's conversation
_WHOLE: Final = re.compile(r"https?://([^/]*)(.*)", re.IGNORECASE | re.DOTALL)


class Guard:
    """local: the server listens on this machine alone, so that it has other names for pages from elsewhere
    only, which then would be pages of its own to a browser."""

    def __init__(self, app: ASGIApp, service: Service, key: str | None, local: bool) -> None:
        self._app, self._service, self._local = app, service, local
        self._key = None if key is None else key.encode("utf-8")
        self._most = service.settings.body_bytes
        self._origins = set(service.settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = _plain_target(scope)
        headers = _headers(scope["headers"])

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._service.responses[_path(scope), message["status"]] += 1
            await send(message)

        try:
            self._require_welcome(scope["path"], headers)
            self._require_small(headers)
            _require_plain(headers)
        except Refusal as refused:
            await refused.response()(scope, receive, counted)
            return
        await self._app(scope, self._limited(receive), counted)

    def _require_welcome(self, path: str, headers: dict[str, str]) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        foreign = "host" in headers and not is_local_name(host)  # browsers never leave it out
        if self._key is None and self._local and foreign:
            raise Refusal(403, f"this server is not {host[:100]!r}: it is reached as localhost", "wrong_host")
        if origin is not None and not self._origins & {"*", origin} and network_of(origin) != host:
            raise Refusal(403, f"pages of {origin[:100]!r} may not use this server", "wrong_origin")
        if self._key is None or path in _OPEN:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip(" \t") if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not hmac.compare_digest(given.encode("latin-1"), self._key):
            raise Refusal(
                401,
                "the API key is wrong" if given else "an API key is needed: Authorization: Bearer KEY",
                "invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is larger than the {self._most} bytes allowed", "body_too_large")

    def _require_small(self, headers: dict[str, str]) -> None:
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self._most:
            raise self._too_large()

    def _limited(self, receive: Receive) -> Receive:
        """Also a body whose length is not said beforehand, or that never ends."""
        n_bytes, whole = 0, False

        async def limited() -> Message:
            nonlocal n_bytes, whole
            if whole:
                return await receive()
            message: Message = await self._service.part_of_body(receive())
            n_bytes += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if n_bytes > self._most:
                raise self._too_large()
            return message

        return limited


def _require_plain(headers: dict[str, str]) -> None:
    coding = headers.get("content-encoding", "").strip().lower()
    if coding not in ("", "identity"):
        raise Refusal(415, f"a body that is compressed ({coding[:20]!r}) is not read", "body_compressed")


def _plain_target(scope: Scope) -> Scope:
    """With the path as routes have it. Proxies' clients ask for a whole address, whose host is the one that
    is meant then, and others end a path with a slash."""
    path, headers = scope["path"], scope["headers"]
    if (found := _WHOLE.fullmatch(path)) is not None:
        host, path = found[1].encode("utf-8"), found[2]
        headers = [*(one for one in headers if one[0].lower() != b"host"), (b"host", host)]
    return {**scope, "path": path.rstrip("/") or "/", "headers": headers}


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}


def _path(scope: Scope) -> str:
    """As it is counted: paths that nobody serves are one."""
    route: Any = scope.get("route")
    return str(getattr(route, "path", None) or "other")

"""The address that the server listens on."""

from __future__ import annotations

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from ..errors import ArgumentError, HeadKVError


class AddressError(HeadKVError, OSError):
    """The address cannot be listened on."""


def is_local(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(one[4][0]).partition("%")[0]).is_loopback for one in found)


def is_local_name(host: str) -> bool:
    """Whether a Host header names this machine in a way that no name server can change."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:  # an opening bracket alone
        return False
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def network_of(origin: str) -> str | None:
    """The host and port of an Origin header. None where it names none: that is no Host header's, not even an
    empty one's."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def require_origin(origin: str, key: str | None) -> None:
    """Raise ArgumentError for what no browser sends as an origin, and is no * for all; without a key for what
    pages of any site have: in a frame of its own making each has the origin null."""
    if origin not in ("*", "null") and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s]*", origin):
        raise ArgumentError(f'cors_origins: an origin is "https://HOST:PORT", "null" or "*", not {origin!r}')
    if key is None and origin in ("*", "null"):
        raise ArgumentError(
            f"cors_origins: pages of any site can use the server as {origin!r}: give it a key"
        )


def require_key(host: str, key: str | None) -> None:
    """Raises ArgumentError for an address that others reach, without a key."""
    if key is None and not is_local(host):
        raise ArgumentError(
            f"{host or 'all addresses'} can be reached from other machines: give the server an --api-key, or "
            "--host 127.0.0.1"
        )


def listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on. Raises AddressError."""
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # which clients try first
        return socket.create_server((str(address[0]), port), family=family, backlog=2048)
    except OSError as error:
        raise AddressError(f"{host}:{port} cannot be listened on: {error.strerror or error}") from error


def url_of(listener: socket.socket, secure: bool) -> str:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if secure else 'http'}://{shown}:{port}"

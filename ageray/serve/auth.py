"""API keys: `AGERAY_API_KEYS` holds them, separated by commas. Only their digests go to the cluster."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os

from ageray.errors import UserError

VARIABLE = "AGERAY_API_KEYS"
_SHORTEST = 16


def digests() -> tuple[bytes, ...]:
    """SHA-256 of each key of the environment; none there means that none is asked for. Raises UserError for a key that can be guessed."""
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
    for number, key in enumerate(keys, 1):
        if len(key) < _SHORTEST or not key.isascii():
            raise UserError(
                f"{VARIABLE}: key {number} has {len(key)} characters; use {_SHORTEST} or more of ASCII, as from: openssl rand -hex 32"
            )
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def fits(given: str, known: tuple[bytes, ...]) -> bool:
    """Whether a key is one of those, in a time that does not tell how nearly."""
    digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
    return sum(hmac.compare_digest(digest, each) for each in known) > 0


def is_loopback(host: str) -> bool:
    """Whether a name or an address, perhaps with a port, is this machine's own."""
    name = host.rsplit(":", 1)[0] if host.count(":") == 1 or "]:" in host else host
    name = name.strip("[]")
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def check_host(host: str) -> None:
    """Raises UserError if others could reach the service and it has no keys."""
    if not is_loopback(host) and not digests():
        raise UserError(
            f"--host {host}: others can reach it, so it needs API keys: export {VARIABLE}=$(openssl rand -hex 32)"
        )

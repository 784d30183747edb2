"""API keys. The variable `AGERAY_API_KEYS` has them, separated by commas; replicas get only
digests."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os

from ageray.errors import UserError

VARIABLE = "AGERAY_API_KEYS"
_SHORTEST = 16


def digests() -> tuple[bytes, ...]:
    """SHA-256 of each key in the environment. Without a key the service asks for none.

    Raises UserError for a key that is short enough to be guessed.
    """
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").split(",") if key.strip()]
    for number, key in enumerate(keys, 1):
        if len(key) < _SHORTEST or not key.isascii():
            raise UserError(
                f"{VARIABLE}: key {number} has {len(key)} characters; "
                f"use {_SHORTEST} or more of ASCII, as from: openssl rand -hex 32"
            )
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


def is_valid(key: str, allowed: tuple[bytes, ...]) -> bool:
    """Whether the digest of `key` is in `allowed`. The time taken does not depend on the match."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return sum(hmac.compare_digest(digest, each) for each in allowed) > 0


def is_loopback(host: str) -> bool:
    """Whether a name or address, with or without a port, is this machine's own."""
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
    """Raises UserError if other machines can reach the service and there are no keys."""
    if not is_loopback(host) and not digests():
        raise UserError(
            f"--host {host}: others can reach it, so it needs API keys: "
            f"export {VARIABLE}=$(openssl rand -hex 32)"
        )

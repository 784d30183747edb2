"""API keys. The variable `AGERAY_API_KEYS` has them, separated by commas, or
`AGERAY_API_KEY_DIGESTS` has their SHA-256 in hex. Replicas get only digests, and no process that
the service starts gets the keys."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re

from ageray.errors import UserError

VARIABLE = "AGERAY_API_KEYS"
DIGESTS = "AGERAY_API_KEY_DIGESTS"
_SHORTEST = 16
_HEX = re.compile(r"[0-9a-fA-F]{64}")


def digests() -> tuple[bytes, ...]:
    """SHA-256 of each key in the environment. Without a key the service asks for none.

    Raises UserError for a key that is short enough to be guessed, and for what is no digest.
    """
    keys, given = _words(VARIABLE), _words(DIGESTS)
    for number, digest in enumerate(given, 1):
        if not _HEX.fullmatch(digest):
            remedy = "printf %s KEY | sha256sum"
            raise UserError(f"{DIGESTS}: digest {number} is not SHA-256 in hex, as from: {remedy}")
    for number, key in enumerate(keys, 1):
        if len(key) < _SHORTEST or not key.isascii():
            raise UserError(
                f"{VARIABLE}: key {number} has {len(key)} characters; "
                f"use {_SHORTEST} or more of ASCII, as from: openssl rand -hex 32"
            )
    of_keys = [hashlib.sha256(key.encode()).digest() for key in keys]
    return (*of_keys, *map(bytes.fromhex, given))


def take_digests() -> tuple[bytes, ...]:
    """As `digests`; then removes the keys from the environment, which processes inherit."""
    taken = digests()
    os.environ.pop(VARIABLE, None)
    return taken


def _words(variable: str) -> list[str]:
    return [word.strip() for word in os.environ.get(variable, "").split(",") if word.strip()]


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

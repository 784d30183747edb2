"""What the errors of stores mean, and how long a read or write is repeated.

`explained` turns an error into one line with the remedy. An error that may be gone in a minute (no
connection, a time-out, too many requests, an internal error of the server) becomes a StoreError;
`repeat` tries again with growing pauses before it raises one.
"""

from __future__ import annotations

import errno
import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ageray.errors import StoreError, UserError, one_line

PATIENCE = "AGERAY_STORE_PATIENCE"
"""The variable with the seconds for which a read or write is repeated while its store does not
answer; 60 by default."""

_PATIENCE = 60.0
_PATIENCE_WITH_STRANGERS = 6.0  # for a web server that has never answered this process
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 20.0  # seconds between two attempts
_REST = 60.0  # seconds after an exhausted patience in which a store is asked once only

# Errors of networks and servers. EBUSY and EREMOTEIO are what s3fs makes of the codes 503 and 500.
# EIO is missing: on a disk it is a bad block, which stays bad.
_PASSING_NAMES = (
    *("EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH"),
    *("EMFILE", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENFILE", "ENOBUFS", "ENOTCONN", "EPIPE"),
    *("EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT"),
)
_PASSING_ERRNO = {getattr(errno, name) for name in _PASSING_NAMES if hasattr(errno, name)}
_NO_SUCH_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
_PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
_CLIENTS = ("aiohttp", "botocore")
_PASSING_CLASSES = {  # of these clients
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "HTTPClientError",
    "IncompleteReadError",
    "ReadTimeoutError",
    "ResponseStreamingError",
}
_LASTING_CLASSES = {"ClientSSLError", "SSLError", "ProxyConnectionError", "InvalidURL"}
_PASSING_OF_ARROW = re.compile(
    "NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|curlCode"
    "|HTTP response code (?:500|502|503|504)"
)

_T = TypeVar("_T")
_gave_up: dict[str, float] = {}  # stores that were away for the whole patience, and when that was
_answered: set[str] = set()


def repeat(uri: str, action: Callable[[], _T], most: float = _PATIENCE) -> _T:
    """What `action` returns. It is repeated with growing pauses while the store of `uri` is away.

    most: seconds. Raises StoreError when they, or those of PATIENCE, are over; UserError as
    `explained` does. A store that was away for so long is not waited for again within a minute:
    many photos of one dead store cost its patience once.
    """
    store = _store_of(uri)
    end = time.monotonic() + min(most, _patience(store))
    pause = _FIRST_PAUSE
    while True:
        try:
            with explained(uri):
                result = action()
        except StoreError:
            seconds = end - time.monotonic()
            if seconds <= 0:
                _gave_up[store] = time.monotonic()
                raise
            time.sleep(min(seconds, pause * random.uniform(0.75, 1.25)))
            pause = min(2 * pause, _LONGEST_PAUSE)
        else:
            _gave_up.pop(store, None)
            _answered.add(store)
            return result


def _store_of(uri: str) -> str:
    scheme, separator, path = uri.partition("://")
    return f"{scheme}://{path.split('/')[0]}" if separator else "local"


def _patience(store: str) -> float:
    if time.monotonic() - _gave_up.get(store, -_REST) < _REST:
        return 0.0
    seconds = os.environ.get(PATIENCE, "")
    if seconds.replace(".", "", 1).isdecimal():
        return float(seconds)
    if store.startswith("http") and store not in _answered:
        return _PATIENCE_WITH_STRANGERS
    return _PATIENCE


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns an error of a store into a UserError that names the uri and the remedy, or into a
    StoreError if it may pass.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_passing(error):
            cause = _cause(error)
            raise StoreError(
                f"{uri}: the store does not answer ({type(cause).__name__}: {one_line(cause)}); "
                "check the url and the network, or give the same command again when it does"
            ) from None
        text = _explain(error)
        if text is None:
            raise
        raise UserError(f"{uri}: {text}") from None


def is_passing(error: BaseException) -> bool:
    """Whether an error is the store's, and may be gone in a minute."""
    error = _cause(error)
    status = _status(error)
    if status is not None:
        return status in _PASSING_STATUS
    if getattr(getattr(error, "os_error", error), "errno", None) in _NO_SUCH_HOST:
        return False
    if _is_of_client(error):
        classes = {kind.__name__ for kind in type(error).__mro__}
        return bool(classes & _PASSING_CLASSES) and not classes & _LASTING_CLASSES
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(error, OSError):
        return error.errno in _PASSING_ERRNO or _PASSING_OF_ARROW.search(str(error)) is not None
    return False


def _cause(error: BaseException) -> BaseException:
    """The error itself, or its cause: fsspec says `not found` whatever a web server does."""
    cause = error.__cause__
    of_network = cause is not None and (
        _is_of_client(cause) or isinstance(cause, TimeoutError | ConnectionError)
    )
    if isinstance(error, FileNotFoundError) and cause is not None and of_network:
        return cause
    return error


def _is_of_client(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _CLIENTS


def _status(error: BaseException) -> int | None:
    """The status of an HTTP answer that an error reports."""
    if not _is_of_client(error):
        return None
    status = getattr(error, "status", None)
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) and status > 0 else None


def _explain(error: Exception) -> str | None:
    """What is wrong and what to do; None if the error is not a store's."""
    cause = _cause(error)
    status = _status(cause)
    if status in (401, 403):
        return f"access denied; check the permissions or the store's credentials ({one_line(cause)})"
    if status is not None and status not in (404, 410):
        return f"the server answers with status {status}; check the url"
    match error:
        case FileNotFoundError() if isinstance(cause, FileNotFoundError) or status is not None:
            return "not found; check the path or url"
        case PermissionError():
            return f"access denied; check the permissions or the store's credentials ({one_line(error)})"
        case IsADirectoryError() | NotADirectoryError() | FileExistsError():
            return f"{error.strerror or 'wrong kind of path'}; check whether a file or a folder is meant"
        case OSError(errno=errno.ENOSPC) | OSError(errno=errno.EDQUOT):
            return f"no space is left there; free some and give the same command again ({one_line(error)})"
        case ImportError():
            return f"this kind of url needs another package ({one_line(error)})"
        case ValueError():
            return f"not a path or url that can be used ({one_line(error)})"
    # the clients of the stores have exceptions of their own
    if isinstance(error, OSError) or _is_of_client(error):
        return f"cannot be reached or used; check the url, credentials and network ({one_line(cause)})"
    return None

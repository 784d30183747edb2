"""Exceptions for a user's mistake and for a store that is away; an error's text on one line."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user: one line with the key, the value and the remedy.

    Commands print it without a traceback and exit with 2. A plain ValueError is not treated like
    this: torch, numpy and Arrow raise it for mistakes in our code, and then the traceback is
    needed.
    """

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return type(self), (str(self),)


class StoreError(UserError):
    """A store that does not answer for its own reasons: no connection, too busy, an internal error.

    Nothing is wrong with the command. Commands print it on one line and exit with 75 (EX_TEMPFAIL):
    the same command may succeed later.
    """


class DamagedError(UserError):
    """A file that is not what was written: its checksum is another."""


def one_line(error: BaseException) -> str:
    """The text of an exception, or else its class, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."

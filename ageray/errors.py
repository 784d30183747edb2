"""The exception for a user's mistake."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user, told in one line with the key, the value and the remedy.

    Commands print it without a traceback and exit with 2. A plain ValueError does not get that treatment: torch, numpy and Arrow raise those
    for our own mistakes too, and then the traceback is what helps.
    """

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return type(self), (str(self),)


def one_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:200]

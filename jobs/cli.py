"""What every command does around its work: one line for a user's mistake, and exit codes."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence

from ageray import config, storage
from ageray.errors import UserError

_IN_A_TRACE = re.compile(r"^(?:\S*\s)?ageray\.errors\.UserError: (.+)$", re.MULTILINE)


def mistake_behind(error: BaseException) -> UserError | None:
    """The UserError that `error` is or was caused by, else None.

    Ray wraps what its tasks and workers raise; Ray Data keeps nothing of it but the text of the trace, so that is searched last.
    """
    seen: BaseException | None = error
    while seen is not None:
        if type(seen) is UserError:  # Ray's wrapper claims to be one too, with the whole trace for its text
            return seen
        failures = getattr(seen, "worker_failures", {}).values()
        for failure in failures:
            found = mistake_behind(failure)
            if found is not None:
                return found
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__ or seen.__context__
    in_text = _IN_A_TRACE.findall(str(error))
    return UserError(in_text[-1]) if in_text else None


def use_storage(words: Sequence[str]) -> None:
    """Applies the `storage` settings of a command line, as models and settings themselves may lie on the store that they name.

    Raises UserError for an address that is none; any other mistake is left to whoever reads all of the settings.
    """
    files = [word for word in words if word.endswith((".yaml", ".yml")) and "=" not in word]
    given = [word for word in words if word.startswith("storage.")]
    for paths, overrides in [*(([file], []) for file in files), ([], given)]:
        try:
            url = config.load(paths, overrides).storage.endpoint_url
        except UserError:
            continue
        storage.use_endpoint(url)


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs a command on the process's arguments: exit 0 done, 2 the user's mistake (one line on stderr), 1 and a traceback otherwise."""
    try:
        use_storage(sys.argv[1:])
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        mistake = mistake_behind(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)

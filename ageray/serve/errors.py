"""The exception that becomes an answer of 400 and above."""

from __future__ import annotations

from starlette.responses import JSONResponse


class ApiError(Exception):
    """A request that is not served: status, a code for programs, one line for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def __reduce__(self) -> tuple[type[ApiError], tuple[int, str, str, dict[str, str] | None]]:
        return type(self), (self.status, self.code, self.message, self.headers)

    def response(self) -> JSONResponse:
        """As JSON."""
        return JSONResponse(
            {"error": {"code": self.code, "message": self.message}}, self.status, self.headers
        )

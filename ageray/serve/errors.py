"""The exception that becomes an answer with a status of 400 or above."""

from __future__ import annotations

from starlette.responses import JSONResponse


class ApiError(Exception):
    """A request that is refused: status, a code for programs, one line for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def __reduce__(self) -> tuple[type[ApiError], tuple[int, str, str, dict[str, str] | None]]:
        return type(self), (self.status, self.code, self.message, self.headers)

    def response(self) -> JSONResponse:
        """The error as a JSON answer (`schemas.ErrorBody`)."""
        return JSONResponse(
            {"error": {"code": self.code, "message": self.message}}, self.status, self.headers
        )

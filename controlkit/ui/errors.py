"""What a server refuses beyond what the library refuses, each with its HTTP status."""

from __future__ import annotations

from controlkit.errors import ControlKitError, HintTooBig, MissingExtra, StateError


class Refused(ControlKitError):
    """A request that is not carried out.

    Args:
        what: The part of the request.
        found: What was there.
        expected: What was needed.
        fix: What to do.
        status: Of the HTTP answer, 400 to 499.
        code: A stable identifier.
        wait: Seconds after which it may be tried again.
    """

    code = "CK-S"

    def __init__(
        self,
        what: str,
        *,
        found: str = "",
        expected: str = "",
        fix: str = "",
        code: str | None = None,
        status: int = 400,
        wait: int | None = None,
    ) -> None:
        super().__init__(what, found=found, expected=expected, fix=fix, code=code)
        self.status, self.wait = status, wait


def status_of(error: ControlKitError) -> int:
    """The HTTP status of an error: always the client's, 400 to 499."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, HintTooBig):
        return 413
    if isinstance(error, StateError):
        return 409
    if isinstance(error, MissingExtra):
        return 424
    return 422


def as_plain(error: ControlKitError) -> dict[str, str]:
    """An error as plain data: its code, one sentence, and its parts."""
    return {
        "error": type(error).__name__,
        "code": error.code,
        "message": str(error),
        "what": error.what[:200],
        "found": error.found[:400],
        "expected": error.expected[:400],
        "fix": error.fix[:400],
    }

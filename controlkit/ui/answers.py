"""How requests are read and answered: JSON under limits in, JSON out, errors as sentences."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from controlkit.errors import ControlKitError
from controlkit.recipes.files import parse
from controlkit.ui.errors import Refused, as_plain, status_of

DEEPEST = 32
"""Levels of nesting in a request."""

_LOG = logging.getLogger(__name__)


class Json(Response):
    """A JSON answer, in ASCII: whatever text it has can be sent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of an answer."""
        return json.dumps(content, allow_nan=False, default=str, separators=(",", ":")).encode("ascii")


async def read_json(request: Any, *, empty: bool = False) -> dict[str, Any]:
    """The JSON object of a request.

    Args:
        request: The request; its length is limited by the guard.
        empty: Take no body for an empty object.

    Raises:
        Refused: Another content type (415), or nested without end.
        RecipeError: Not JSON, or not an object.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise Refused("body", found="a client that went away", expected="the whole body") from None
    if not body and empty:
        return {}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(
            "content-type", found=repr(kind)[:80], expected="application/json", status=415, code="CK-S13"
        )
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("body", found="bytes that are no UTF-8", expected="JSON", code="CK-S13") from None
    values = parse(text, "the request")
    _check_depth(values)
    return values


def _check_depth(values: Any) -> None:
    level = [values]
    for _ in range(DEEPEST):
        level = [
            inner
            for value in level
            for inner in (
                value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            )
        ]
        if not level:
            return
    raise Refused("body", found=f"more than {DEEPEST} levels", expected="a flat request", code="CK-S13")


def install(app: FastAPI) -> None:
    """Make every error of an application JSON with a sentence."""

    @app.exception_handler(ControlKitError)
    async def ours(_request: Any, error: ControlKitError) -> Json:
        wait = getattr(error, "wait", None)
        headers = {"retry-after": str(wait)} if wait else None
        return Json(as_plain(error), status_code=status_of(error), headers=headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Any, error: RequestValidationError) -> Json:
        first = error.errors()[0]
        place = ".".join(map(str, first.get("loc", ("request",))))
        refused = Refused(place[:80], found=f"{first.get('input')!r:.80}", expected=str(first.get("msg", "")))
        return Json(as_plain(refused), status_code=422)

    @app.exception_handler(HTTPException)
    async def http(_request: Any, error: HTTPException) -> Json:
        refused = Refused("request", found=str(error.detail)[:200], status=error.status_code)
        return Json(as_plain(refused), status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_request: Any, error: Exception) -> Json:
        _LOG.error("a request failed", exc_info=error)
        return Json(
            as_plain(ControlKitError("server", found=f"an unexpected {type(error).__name__}")),
            status_code=500,
        )

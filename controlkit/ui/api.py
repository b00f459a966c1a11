"""The HTTP API: JSON in, JSON out, recipes as they are everywhere else.

Errors are JSON too, with ``code``, ``message``, ``found``, ``expected`` and ``fix``; a fault of the request
is answered by a status from 400 to 499. ``/api/openapi.json`` has the description, ``/api/docs`` shows it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse
from fastapi.responses import Response as Plainly
from starlette.concurrency import run_in_threadpool

from controlkit import __version__
from controlkit.recipes import Recipe
from controlkit.recipes.rules import Plain
from controlkit.ui import bodies, listing
from controlkit.ui.answers import Json, install, read_json
from controlkit.ui.describing import page
from controlkit.ui.errors import Refused
from controlkit.ui.service import Service, as_base64

WAIT = 30.0
"""Longest time in seconds that a request may wait for a job to move on."""


def make_app(service: Service) -> FastAPI:
    """The application with the API, without the page.

    Args:
        service: What it offers.
    """
    app = FastAPI(
        title="controlkit",
        version=__version__,
        description=str(__doc__),
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        default_response_class=Json,
    )
    install(app)
    _lists(app, service)
    _jobs(app, service)
    _pictures(app, service)
    return app


def _lists(app: FastAPI, service: Service) -> None:
    @app.get("/api/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))

    @app.get("/api/version", tags=["lists"])
    def version() -> dict[str, Any]:
        """Version, and how many jobs there were."""
        return {"controlkit": __version__, "jobs": service.jobs.counts}

    @app.get("/api/models", tags=["lists"])
    def models() -> list[str]:
        """Sources of models: the embedded one, and folders below the folder of models."""
        return listing.models(service.places)

    @app.get("/api/controls", tags=["lists"])
    def controls() -> list[str]:
        """Sources of control modules: embedded, of other packages, and files below the folder of models."""
        return listing.controls(service.places)

    @app.get("/api/detectors", tags=["lists"])
    def detectors() -> list[dict[str, Any]]:
        """Detectors, with options, ranges, and what is not installed."""
        return listing.detectors()

    @app.get("/api/guidance", tags=["lists"])
    def guidance() -> list[str]:
        """Names of guidance functions."""
        return listing.guidance()

    @app.get("/api/schedulers", tags=["lists"])
    def schedulers() -> list[str]:
        """Names of schedulers."""
        return list(listing.SCHEDULERS)


def _jobs(app: FastAPI, service: Service) -> None:
    @app.post("/api/generate", status_code=202, tags=["jobs"], openapi_extra=_body(Recipe))
    async def generate(request: Request) -> Any:
        """Make the pictures of a recipe. Answers at once with a job; follow it at ``/api/jobs/ID``."""
        recipe = await _read(request, Recipe)
        job = await _run(service.jobs.submit, recipe)
        return {**job.as_plain(), "ahead": service.jobs.ahead(job)}

    @app.post("/api/sweep", status_code=202, tags=["jobs"], openapi_extra=_body(bodies.Grid))
    async def sweep(request: Request) -> Any:
        """Make a grid of scale by seed: a job with a picture for each, and the name of its contact sheet."""
        grid = await _read(request, bodies.Grid)
        job = await _run(service.jobs.submit, grid.recipe, grid.sweep)
        return {**job.as_plain(), "ahead": service.jobs.ahead(job)}

    @app.get("/api/jobs", tags=["jobs"])
    def jobs() -> list[dict[str, Any]]:
        """Every job that is remembered."""
        return [job.as_plain() for job in service.jobs.all()]

    @app.get("/api/jobs/{key}", tags=["jobs"])
    async def job(
        key: str,
        preview: bool = False,
        wait: Annotated[float, Query(ge=0, le=WAIT)] = 0.0,
        since: Annotated[int, Query(ge=-1, le=2**31)] = -1,
    ) -> dict[str, Any]:
        """How far a job is. ``preview``: with the predicted picture; ``wait``: seconds to wait until its
        ``version`` is not ``since`` any more."""
        found = service.jobs.get(key)
        until = time.monotonic() + wait
        while found.version == since and not found.finished and time.monotonic() < until:
            await asyncio.sleep(0.05)
        answer = {**found.as_plain(), "version": found.version, "ahead": service.jobs.ahead(found)}
        if preview:
            seen = found.preview
            answer["preview"] = None if seen is None else as_base64(seen)
        return answer

    @app.delete("/api/jobs/{key}", tags=["jobs"])
    def cancel(key: str) -> dict[str, Any]:
        """Cancel a job: at once where it waits, within one step where it runs."""
        return service.jobs.cancel(key).as_plain()

    @app.get("/api/results", tags=["results"])
    def results() -> list[str]:
        """Names of the newest pictures, the newest first."""
        return [path.name for path in service.places.pictures()]

    @app.get("/api/results/{name}", tags=["results"], response_class=Plainly)
    def result(name: str) -> Any:
        """A picture: a PNG that carries its recipe."""
        content = service.places.result(name).read_bytes()
        return Plainly(content, media_type="image/png", headers={"cache-control": "private, max-age=600"})

    @app.get("/api/results/{name}/recipe", tags=["results"])
    def result_recipe(name: str) -> Any:
        """The recipe of a picture."""
        return _plain(service.recipe_of(service.places.result(name).read_bytes()))


def _pictures(app: FastAPI, service: Service) -> None:
    @app.post("/api/preprocess", tags=["pictures"], openapi_extra=_body(bodies.Preprocess))
    async def preprocess(request: Request) -> Any:
        """Turn a photograph into a control map."""
        return await _run(service.preprocess, await _read(request, bodies.Preprocess))

    @app.post("/api/preview", tags=["pictures"], openapi_extra=_body(bodies.Preview))
    async def preview(request: Request) -> Any:
        """What a module will see of a control's picture, and whether that can be right."""
        return await _run(service.preview, await _read(request, bodies.Preview))

    @app.post("/api/check", tags=["pictures"], openapi_extra=_body(bodies.Check))
    async def check(request: Request) -> Any:
        """Whether a picture can be a map of a condition."""
        return await _run(service.check, await _read(request, bodies.Check))

    @app.post("/api/inspect", tags=["pictures"], openapi_extra=_body(bodies.Inspect))
    async def inspect(request: Request) -> Any:
        """What a checkpoint is, without loading it."""
        return await _run(service.inspect, await _read(request, bodies.Inspect))

    @app.post("/api/recipe", tags=["recipes"], openapi_extra=_body(bodies.Read))
    async def recipe(request: Request) -> Any:
        """The recipe that a picture carries."""
        body = await _read(request, bodies.Read)
        return _plain(await _run(lambda: service.recipe_of(service.content(body.image))))

    @app.post("/api/python", tags=["recipes"], openapi_extra=_body(Recipe))
    async def python(request: Request) -> Any:
        """A recipe as Python that makes the same picture."""
        return await _run(service.python, await _read(request, Recipe))

    @app.api_route(
        "/api/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
    )
    def nothing(rest: str) -> Any:
        raise Refused("path", found=f"/api/{rest}"[:80], expected="a route of /api/docs", status=404)


def _body(kind: type[Plain]) -> dict[str, Any]:
    return {"requestBody": bodies.schema(kind)}


async def _read(request: Any, kind: type[Any]) -> Any:
    values = await read_json(request)
    return await _run(lambda: kind(**values))


async def _run(act: Callable[..., Any], *arguments: Any) -> Any:
    return await run_in_threadpool(act, *arguments)


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {"recipe": 1, **recipe.model_dump(mode="json", exclude_defaults=True)}

"""The routes of AUTOMATIC1111 and sd-webui-controlnet, for clients that were written for these.

What they send becomes a recipe. Of ``/sdapi/v1`` there are text to image, image to image and what clients
ask before them; of ``/controlnet`` version, models, modules and detect. Settings that have no meaning here
are ignored, as the originals ignore unknown ones; what changes the picture and is not offered (hires fix,
some values of image to image) is refused.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool

from controlkit.errors import ParameterError
from controlkit.recipes import Recipe
from controlkit.ui import inits, listing, units
from controlkit.ui.answers import read_json
from controlkit.ui.errors import Refused
from controlkit.ui.jobs import Job
from controlkit.ui.service import Service, as_base64

VERSION = 2
"""Of sd-webui-controlnet's API."""

SAMPLERS = {
    "Euler a": "EulerAncestralDiscreteScheduler",
    "Euler": "EulerDiscreteScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "DPM++ SDE": "DPMSolverSDEScheduler",
    "DPM2": "KDPM2DiscreteScheduler",
    "DPM2 a": "KDPM2AncestralDiscreteScheduler",
    "Heun": "HeunDiscreteScheduler",
    "LMS": "LMSDiscreteScheduler",
    "DDIM": "DDIMScheduler",
    "PLMS": "PNDMScheduler",
    "UniPC": "UniPCMultistepScheduler",
    "LCM": "LCMScheduler",
    "DDPM": "DDPMScheduler",
}
"""Their names for samplers, and the class of diffusers."""

_SPACING = {"karras": {"use_karras_sigmas": True}, "exponential": {"use_exponential_sigmas": True}}
_CAN_SPACE = ("Euler", "DPM++ 2M", "DPM++ SDE", "DPM2", "DPM2 a", "Heun", "LMS", "UniPC")


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the routes to an application.

    Args:
        app: The application of `controlkit.ui.api`.
        service: What it offers.
    """
    _controlnet(app, service)
    _generating(app, service)
    _lists(app, service)


def _controlnet(app: FastAPI, service: Service) -> None:
    @app.get("/controlnet/version", tags=["sd-webui-controlnet"])
    def version() -> dict[str, int]:
        """Version of the routes."""
        return {"version": VERSION}

    @app.get("/controlnet/model_list", tags=["sd-webui-controlnet"])
    def model_list() -> dict[str, list[str]]:
        """Names of control modules."""
        return {"model_list": units.model_names(service.places)}

    @app.get("/controlnet/module_list", tags=["sd-webui-controlnet"])
    def module_list() -> dict[str, Any]:
        """Names of detectors, with the sliders of each."""
        return {"module_list": units.module_names(), "module_detail": units.module_details()}

    @app.get("/controlnet/control_types", tags=["sd-webui-controlnet"])
    def control_types() -> dict[str, Any]:
        """Which models and modules go together."""
        return {"control_types": units.control_types(service.places)}

    @app.get("/controlnet/settings", tags=["sd-webui-controlnet"])
    def settings() -> dict[str, int]:
        """How many units a request may have."""
        return {"control_net_unit_count": service.jobs.limits.controls}

    @app.post("/controlnet/detect", tags=["sd-webui-controlnet"], openapi_extra=units.DETECT)
    async def detect(request: Request) -> dict[str, Any]:
        """Maps of photographs."""
        values = await read_json(request)
        images = values.get("controlnet_images", [])
        if not isinstance(images, list) or not images or len(images) > 16:
            raise ParameterError(
                "controlnet_images", found=f"{images!r:.60}", expected="1 to 16 pictures as base64"
            )

        def act() -> list[str]:
            module, options = units.detector_of(
                values.get("controlnet_module", "none"),
                values.get("controlnet_threshold_a", -1),
                values.get("controlnet_threshold_b", -1),
            )
            side = units.whole(
                values.get("controlnet_processor_res", 512), "controlnet_processor_res", 1, 4096
            )
            drawn: list[str] = []
            for number, image in enumerate(images):
                photo = service.picture(units.sent(image, f"controlnet_images[{number}]"))
                if module is not None:
                    photo = service.detected(photo, module, options, size=side)
                drawn.append(as_base64(photo))
            return drawn

        return {"images": await run_in_threadpool(act), "info": "Success"}


def _generating(app: FastAPI, service: Service) -> None:
    async def drawn(request: Request, start: bool) -> dict[str, Any]:
        values = await read_json(request)
        recipe = await run_in_threadpool(lambda: recipe_of(values, service, start))
        job = await run_in_threadpool(service.jobs.submit, recipe)
        while not job.over.is_set():
            await asyncio.sleep(0.05)
            if await request.is_disconnected():
                service.jobs.cancel(job.id)
        return await run_in_threadpool(lambda: _answer(job, recipe, values, service))

    async def txt2img(request: Request) -> dict[str, Any]:
        """Text to image, with control units under ``alwayson_scripts``; answers when it is done."""
        return await drawn(request, False)

    async def img2img(request: Request) -> dict[str, Any]:
        """Image to image, and inpainting with a ``mask``; as text to image for the rest."""
        return await drawn(request, True)

    for name, act, about in (("txt2img", txt2img, units.TXT2IMG), ("img2img", img2img, inits.IMG2IMG)):
        app.post(f"/sdapi/v1/{name}", tags=["sdapi"], openapi_extra=about)(act)
        app.post(f"/controlnet/{name}", include_in_schema=False)(act)

    @app.get("/sdapi/v1/progress", tags=["sdapi"])
    def progress(skip_current_image: bool = False) -> dict[str, Any]:
        """How far the job at hand is, with the predicted picture."""
        job = next((job for job in service.jobs.all() if job.state in ("loading", "running")), None)
        done, total = (job.steps, job.total) if job else (0, 0)
        seen = job.preview if job and not skip_current_image else None
        state = {
            "skipped": False,
            "interrupted": bool(job and job.stop.is_set()),
            "job": job.id if job else "",
            "job_count": int(job is not None),
            "sampling_step": done,
            "sampling_steps": total,
        }
        return {
            "progress": done / total if total else 0.0,
            "eta_relative": 0.0,
            "state": state,
            "current_image": None if seen is None else as_base64(seen),
            "textinfo": None,
        }

    @app.post("/sdapi/v1/interrupt", tags=["sdapi"])
    @app.post("/sdapi/v1/skip", include_in_schema=False)
    def interrupt() -> dict[str, Any]:
        """Cancel the job at hand."""
        for job in service.jobs.all():
            if job.state in ("loading", "running"):
                service.jobs.cancel(job.id)
        return {}


def _lists(app: FastAPI, service: Service) -> None:
    def get(path: str) -> Any:
        return app.get(f"/sdapi/v1/{path}", tags=["sdapi"])

    @get("sd-models")
    def sd_models() -> list[dict[str, Any]]:
        """Models."""
        return [
            {
                "title": name,
                "model_name": name,
                "hash": None,
                "sha256": None,
                "filename": name,
                "config": None,
            }
            for name in listing.models(service.places)
        ]

    @get("samplers")
    def samplers() -> list[dict[str, Any]]:
        """Samplers."""
        return [{"name": name, "aliases": [kind], "options": {}} for name, kind in SAMPLERS.items()]

    @get("schedulers")
    def schedulers() -> list[dict[str, Any]]:
        """Spacings of the steps."""
        return [{"name": name, "label": name.title()} for name in ("automatic", *_SPACING)]

    @get("options")
    def options() -> dict[str, Any]:
        """Settings."""
        return {"sd_model_checkpoint": service.model, "samples_format": "png"}

    @app.post("/sdapi/v1/options", tags=["sdapi"], openapi_extra=units.OPTIONS)
    async def set_options(request: Request) -> dict[str, Any]:
        """Takes the model's name, and ignores everything else."""
        values = await read_json(request)
        if (name := values.get("sd_model_checkpoint")) is not None:
            service.model = _model(name, service)
        return {}

    @get("scripts")
    def scripts() -> dict[str, list[str]]:
        """Scripts."""
        return {"txt2img": ["controlnet"], "img2img": ["controlnet"]}

    @get("cmd-flags")
    def cmd_flags() -> dict[str, Any]:
        """Flags."""
        return {"api": True}

    for path in ("sd-vae", "upscalers", "latent-upscale-modes", "loras", "hypernetworks", "face-restorers",
                 "prompt-styles", "realesrgan-models"):  # fmt: skip
        app.get(f"/sdapi/v1/{path}", include_in_schema=False)(_no_entries)
    app.post("/sdapi/v1/refresh-checkpoints", include_in_schema=False)(_nothing_done)

    @app.api_route("/sdapi/{rest:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False)
    @app.api_route(
        "/controlnet/{rest:path}", methods=["GET", "POST", "PUT", "DELETE"], include_in_schema=False
    )
    def nothing(rest: str) -> None:
        raise Refused("path", found=rest[:80], expected="a route of /api/docs", status=404)


def _no_entries() -> list[Any]:
    return []


def _nothing_done() -> dict[str, Any]:
    return {}


def recipe_of(values: dict[str, Any], service: Service, start: bool = False) -> Recipe:
    """The recipe that a request means.

    Args:
        values: The request.
        service: What is offered.
        start: Whether it is one of image to image.

    Raises:
        ControlKitError: Something in it cannot be used, or is not offered and would change the picture.
    """
    if values.get("enable_hr"):
        raise ParameterError("enable_hr", found="true", expected="false", fix="Ask for the whole size.")
    seed = values.get("seed", -1)
    if seed in (-1, None):
        seed = secrets.randbelow(2**32)
    override = values.get("override_settings") or {}
    wanted = override.get("sd_model_checkpoint") if isinstance(override, dict) else None
    count = units.whole(values.get("n_iter", 1), "n_iter", 1, 100) * units.whole(
        values.get("batch_size", 1), "batch_size", 1, 100
    )
    given = {
        "model": service.model if wanted is None else _model(wanted, service),
        "prompt": _text(values.get("prompt", ""), "prompt"),
        "negative_prompt": _text(values.get("negative_prompt") or "", "negative_prompt"),
        "seed": seed,
        "steps": values.get("steps") or 20,
        "width": values.get("width") or 512,
        "height": values.get("height") or 512,
        "guidance_scale": values.get("cfg_scale", 7.0),
        "images": count,
        "scheduler": _scheduler(values),
        "controls": units.controls_of(values, service.places),
        "init": inits.init_of(values, service) if start else None,
    }
    return Recipe(**given)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ParameterError(name, found=f"{value!r:.60}", expected="text")
    return value


def _model(name: object, service: Service) -> str:
    known = listing.models(service.places)
    if name not in known:
        raise ParameterError(
            "sd_model_checkpoint", found=f"{name!r:.80}", expected=f"one of {', '.join(known)}"
        )
    return str(name)


def _scheduler(values: dict[str, Any]) -> dict[str, Any] | None:
    name = values.get("sampler_name") or values.get("sampler_index") or ""
    if name in ("", "Automatic"):
        return None
    spacing = str(values.get("scheduler") or "automatic").lower()
    if isinstance(name, str) and name not in SAMPLERS and name.rpartition(" ")[2].lower() in _SPACING:
        name, _, spacing = name.rpartition(" ")
    kind = SAMPLERS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ParameterError("sampler_name", found=f"{name!r:.60}", expected=f"one of {', '.join(SAMPLERS)}")
    options = _SPACING.get(spacing.lower(), {}) if name in _CAN_SPACE else {}
    return {"name": kind, "options": options}


def _answer(job: Job, recipe: Recipe, values: dict[str, Any], service: Service) -> dict[str, Any]:
    if job.error is not None:
        about = job.error
        found, expected, fix = about["found"], about["expected"], about["fix"]
        raise Refused(about["what"], found=found, expected=expected, fix=fix, code=about["code"], status=422)
    images = [units.as_sent(service.places.result(made.name)) for made in job.made]
    info = {
        "prompt": recipe.prompt,
        "negative_prompt": recipe.negative_prompt,
        "seed": recipe.seed,
        "all_seeds": [made.seed for made in job.made],
        "width": recipe.width,
        "height": recipe.height,
        "steps": recipe.steps,
        "cfg_scale": recipe.guidance_scale,
        "sd_model_name": recipe.model.source,
        "infotexts": [made.text for made in job.made],
    }
    if recipe.init is not None:
        info["denoising_strength"] = recipe.init.strength
    large = ("alwayson_scripts", "init_images", "mask")
    parameters = {name: value for name, value in values.items() if name not in large}
    return {
        "images": images if values.get("send_images", True) else [],
        "parameters": parameters,
        "info": json.dumps(info),
    }

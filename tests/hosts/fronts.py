"""One settings file in four fronts: what each makes of it, as the noise that it predicts at each step.

The file is a recipe on the tiny checkpoint of `tests.hosts.webui.tiny`, or for Forge, which takes none so
small, on that of `tests.hosts.forge.slim`. Python and the page read it as it is; for the web UIs and ComfyUI,
which have their own fields, what it says is put into these.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import controlkit as ck
from controlkit.recipes import encode
from tests.hosts.comfy.server import Server as Comfy
from tests.hosts.comfy.server import node
from tests.hosts.webui.networks import tiny_pipeline, write
from tests.hosts.webui.server import Server as WebUI
from tests.hosts.webui.tiny import CLIP

WEIGHTS = "diffusion_pytorch_model.safetensors"
FIRST = (0, 1)
"""The first step in which each control of the settings acts."""


def settings(base: Path, model: str = "tiny", *, seed: int = 3) -> Path:
    """Write the settings: two controls of two kinds, with windows, a mode, a mask and scales.

    Args:
        base: Folder of the checkpoint.
        model: Its name.
        seed: Of the noise.
    """
    draw = np.random.default_rng(seed)
    maps = [Image.fromarray(draw.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(2)]
    half = np.zeros((64, 64), np.uint8)
    half[:, 32:] = 255
    recipe = {
        "model": {"source": f"file:{model}"},
        "prompt": "a red brick house",
        "negative_prompt": "trees",
        "seed": seed,
        "steps": 4,
        "width": 64,
        "height": 64,
        "guidance_scale": 2.0,
        "scheduler": {"name": "EulerDiscreteScheduler", "options": {"timestep_spacing": "linspace"}},
        "controls": [
            {
                "module": "file:ControlNet/net-a",
                "image": {"data": encode(maps[0])},
                "scale": 0.7,
                "end": 0.75,
                "mode": "control",
                "mask": {"data": encode(Image.fromarray(half))},
            },
            {
                "module": "file:ControlNet/adapter",
                "image": {"data": encode(maps[1])},
                "scale": 3.0,
                "start": 0.25,
            },
        ],
    }
    path = base / "settings.json"
    path.write_text(json.dumps(recipe))
    return path


def models(base: Path) -> None:
    """The tiny checkpoint as a folder in diffusers' layout, with its text encoder, and controls for it."""
    write(base)
    tokenizer = base / "run" / "openai" / "clip-vit-large-patch14"
    _save(base, "tiny", tiny_pipeline(base), {k: v for k, v in CLIP.items() if k != "model_type"}, tokenizer)


def forge_models(base: Path, checkout: Path) -> None:
    """The same for Forge's slim checkpoint.

    Args:
        base: Folder of the checkpoint.
        checkout: Forge, which has that model's tokenizer and configs.
    """
    from tests.hosts.forge import networks

    networks.write(base)
    known = checkout / "backend" / "huggingface" / "runwayml" / "stable-diffusion-v1-5"
    text = json.loads((known / "text_encoder" / "config.json").read_text())
    pipe = networks.slim_pipeline(base)
    _save(base, "slim", pipe, {k: v for k, v in text.items() if k != "model_type"}, known / "tokenizer")


def _save(base: Path, name: str, bare: Any, text: dict[str, Any], tokenizer: Path) -> None:
    """A pipeline without a text encoder, with that of its checkpoint."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    state = load_file(base / "models" / "Stable-diffusion" / f"{name}.safetensors")
    prefix = "cond_stage_model.transformer."
    wanted = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    encoder: Any = CLIPTextModel(CLIPTextConfig(**text))
    if not any(key.startswith("text_model.") for key in encoder.state_dict()):  # transformers 5 names them so
        wanted = {key.removeprefix("text_model."): value for key, value in wanted.items()}
    encoder.load_state_dict({key: value for key, value in wanted.items() if "position_ids" not in key})
    pipe = StableDiffusionPipeline(
        vae=bare.vae,
        unet=bare.unet,
        text_encoder=encoder.eval(),
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipe.save_pretrained(base / "models" / name)


@contextmanager
def recorded() -> Iterator[list[Tensor]]:
    """The noise that every step of diffusers' Euler scheduler is given."""
    from diffusers import EulerDiscreteScheduler

    kept: list[Tensor] = []
    original = EulerDiscreteScheduler.step

    def step(self: Any, model_output: Tensor, *args: Any, **options: Any) -> Any:
        kept.append(model_output.detach().clone())
        return original(self, model_output, *args, **options)

    EulerDiscreteScheduler.step = step  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield kept
    finally:
        EulerDiscreteScheduler.step = original


def by_python(file: Path, *, without: int | None = None) -> list[Tensor]:
    """``ck.attach`` around diffusers' pipeline, with the file's controls; or without one of them."""
    import diffusers

    said = json.loads(file.read_text())
    folder = file.parent / "models"
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder / named(said["model"]["source"]))
    pipe.set_progress_bar_config(disable=True)
    wanted = said["scheduler"]
    pipe.scheduler = getattr(diffusers, wanted["name"]).from_config(
        pipe.scheduler.config, **wanted["options"]
    )
    controls: list[Any] = []
    for number, part in enumerate(said["controls"]):
        if number == without:
            continue
        given = {name: part[name] for name in ("scale", "start", "end", "mode") if name in part}
        if "mask" in part:
            given["mask"] = np.asarray(picture(part["mask"])) / 255
        module = ck.load(folder / named(part["module"]))
        controls.append(module.on(picture(part["image"]), **given))
    noise = torch.Generator().manual_seed(said["seed"])
    with recorded() as kept, ck.attach(pipe, *controls):
        pipe(
            said["prompt"],
            negative_prompt=said["negative_prompt"],
            num_inference_steps=said["steps"],
            guidance_scale=said["guidance_scale"],
            height=said["height"],
            width=said["width"],
            generator=noise,
            output_type="latent",
        )
    return kept


def by_page(file: Path) -> list[Tensor]:
    """The file dropped on the page, and its button pressed."""
    from controlkit.ui.page import generate, restored
    from controlkit.ui.places import Places
    from controlkit.ui.service import Service

    service = Service(Places(file.parent / "out", file.parent / "models"))
    try:
        with recorded() as kept:
            *_, (_, _, gallery, _) = generate(service, restored(service, file.read_bytes()))
        assert ".png" in gallery
    finally:
        service.jobs.close()
    return kept


def by_webui(webui: WebUI, file: Path) -> list[Tensor]:
    """The web UI's API (Forge's is the same), with the file's controls as units."""
    said = json.loads(file.read_text())
    units = []
    for part in said["controls"]:
        unit = {"model": f"{Path(part['module']).name}/{WEIGHTS}", "image": part["image"]["data"]}
        unit |= {
            "weight": part.get("scale", 1.0),
            "start": part.get("start", 0.0),
            "end": part.get("end", 1.0),
        }
        unit["mode"] = part.get("mode", "balanced")
        units.append(unit | ({"mask": part["mask"]["data"]} if "mask" in part else {}))
    names = ("prompt", "negative_prompt", "seed", "steps", "width", "height")
    webui.make(*units, cfg_scale=said["guidance_scale"], **{name: said[name] for name in names})
    return guided(webui.base / "predictions.safetensors", said["guidance_scale"])


def by_comfy(comfy: Comfy, file: Path) -> list[Tensor]:
    """A workflow of ComfyUI, with the file's controls as a chain of nodes."""
    import diffusers

    said = json.loads(file.read_text())
    folder = file.parent / "models"
    name = named(said["model"]["source"])
    pipe: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder / name)
    cond, uncond = pipe.encode_prompt(said["prompt"], "cpu", 1, True, negative_prompt=said["negative_prompt"])
    save_file(
        {"cond": cond.contiguous(), "uncond": uncond.contiguous()}, file.with_name("tokens.safetensors")
    )
    schedule = diffusers.EulerDiscreteScheduler.from_config(
        pipe.scheduler.config, **said["scheduler"]["options"]
    )
    schedule.set_timesteps(said["steps"])
    times = ", ".join(str(int(t)) for t in schedule.timesteps)
    out = file.with_name("comfy-steps.safetensors")
    prompt = {
        "e": node("TestTinyModel", file=str(folder / "Stable-diffusion" / f"{name}.safetensors")),
        "record": node("TestRecord", model=["e", 0], file=str(out)),
        "p": node("TestFileTokens", file=str(file.with_name("tokens.safetensors")), name="cond"),
        "n": node("TestFileTokens", file=str(file.with_name("tokens.safetensors")), name="uncond"),
        "levels": node("TestLevels", model=["e", 0], timesteps=times),
        "noise": node("TestNoise", model=["e", 0], sigmas=["levels", 0], seed=said["seed"]),
        "euler": node("KSamplerSelect", sampler_name="euler"),
    }
    positive, negative = ["p", 0], ["n", 0]
    (comfy.base / "input").mkdir(exist_ok=True)
    for i, part in enumerate(said["controls"]):
        name = Path(part["module"]).name
        shutil.copytree(
            folder / "ControlNet" / name, comfy.base / "models" / "controlnet" / name, dirs_exist_ok=True
        )
        prompt[f"net{i}"] = node("ControlKitLoad", file=f"{name}/{WEIGHTS}")
        picture(part["image"]).save(comfy.base / "input" / f"four-{i}.png")
        prompt[f"map{i}"] = node("LoadImage", image=f"four-{i}.png")
        masked = {}
        if "mask" in part:
            picture(part["mask"]).convert("RGB").save(comfy.base / "input" / f"four-mask-{i}.png")
            prompt[f"mask{i}"] = node("LoadImageMask", image=f"four-mask-{i}.png", channel="red")
            masked = {"mask": [f"mask{i}", 0]}
        prompt[f"on{i}"] = node(
            "ControlKitApply",
            positive=positive,
            negative=negative,
            control_net=[f"net{i}", 0],
            image=[f"map{i}", 0],
            strength=part.get("scale", 1.0),
            start=part.get("start", 0.0),
            end=part.get("end", 1.0),
            mode=part.get("mode", "balanced"),
            **masked,
        )
        positive, negative = [f"on{i}", 0], [f"on{i}", 1]
    prompt["k"] = node(
        "SamplerCustom",
        model=["record", 0],
        add_noise=False,
        noise_seed=0,
        cfg=said["guidance_scale"],
        positive=positive,
        negative=negative,
        sampler=["euler", 0],
        sigmas=["levels", 0],
        latent_image=["noise", 0],
    )
    prompt["latents"] = node("SaveLatent", samples=["k", 0], filename_prefix="four")
    comfy.run(prompt)
    return guided(out, said["guidance_scale"])


def guided(file: Path, scale: float) -> list[Tensor]:
    """Classifier-free guidance of what a host's U-Net predicted at each step, conditional rows first."""
    halves = [step.chunk(2) for _, step in sorted(load_file(file).items())]
    return [uncond + scale * (cond - uncond) for cond, uncond in halves]


def named(source: str) -> str:
    """A file or folder of the recipe's, within the folder of models."""
    return source.removeprefix("file:")


def picture(part: dict[str, str]) -> Image.Image:
    """A picture of a recipe."""
    import base64

    with Image.open(io.BytesIO(base64.b64decode(part["data"]))) as opened:
        return opened.copy()

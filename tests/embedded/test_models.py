"""The shipped models: plain diffusers reads them, they are small, and they follow their controls."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import controlkit.embedded as embedded
from controlkit.embedded.vocabulary import encode
from controlkit.embedded.world import COLOURS
from controlkit.evaluation import edge_f1, load_judge
from controlkit.evaluation.adherence import commonest

MIB = 2**20


@pytest.fixture(scope="module")
def pipe():
    return embedded.pipeline()


def test_names_are_the_folders_that_can_be_loaded():
    assert {"controlnet-canny", "t2i-depth"} <= set(embedded.names())
    assert "base" not in embedded.names()
    for name in embedded.names():
        assert (embedded.path(name) / "config.json").exists()


@pytest.mark.parametrize("name", ["", "..", "controlnet", "base/unet"])
def test_unknown_names_are_refused(name: str):
    with pytest.raises(ValueError, match=r"there are base, judge, .*controlnet-canny"):
        embedded.path(name)
    with pytest.raises(ValueError, match=r"embedded\.names"):
        embedded.load(name)


def test_weights_are_half_precision_and_small():
    files = list(embedded.path("base").parent.rglob("*.safetensors"))
    assert files
    assert sum(file.stat().st_size for file in files) < 36 * MIB
    for file in files:
        header = json.loads(
            file.read_bytes()[8:].split(b"\0", 1)[0][: int.from_bytes(file.read_bytes()[:8], "little")]
        )
        assert {entry["dtype"] for key, entry in header.items() if key != "__metadata__"} <= {"F16", "I64"}


def test_plain_diffusers_loads_and_samples():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    plain = StableDiffusionPipeline.from_pretrained(embedded.path("base"), local_files_only=True)
    plain.set_progress_bar_config(disable=True)
    image = plain("a red cube on a snow floor", num_inference_steps=2, guidance_scale=2.0).images[0]  # pyright: ignore
    assert image.size == (128, 128)
    assert np.asarray(image).std() > 5.0


def test_tokenizer_gives_the_numbers_that_the_text_encoder_was_trained_on(pipe):
    captions = [embedded.scene(seed).caption for seed in range(50)]
    length = pipe.tokenizer.model_max_length
    tokens = pipe.tokenizer(captions, padding="max_length", truncation=True, max_length=length).input_ids
    assert tokens == encode(captions)


def test_weights_are_finite_and_float32_by_default(pipe):
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert part.dtype == torch.float32
        assert all(bool(torch.isfinite(p).all()) for p in part.parameters())
    assert embedded.pipeline(dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_latents_of_real_pictures_have_unit_variance(pipe):
    images = [embedded.scene(seed).image for seed in range(24)]
    with torch.no_grad():
        latents = pipe.vae.encode(pipe.image_processor.preprocess(images)).latent_dist.mean
    assert pipe.vae.config.scaling_factor == 1.0
    assert latents.mean((0, 2, 3)).abs().max() < 0.25
    assert (latents.std((0, 2, 3)) - 1.0).abs().max() < 0.25


def test_one_solid_has_the_colour_that_was_asked_for(pipe):
    captions = ["a red cube on a snow floor", "a blue sphere on a sand floor", "a green cone on a snow floor"]
    generator = torch.Generator().manual_seed(0)
    images = pipe(captions, num_inference_steps=8, guidance_scale=2.0, generator=generator).images
    reading = load_judge().read(images)
    seen = [list(COLOURS)[commonest(colours) - 1] for colours in reading.colours]
    assert seen == ["red", "blue", "green"]


def test_the_canny_control_makes_pictures_follow_their_edges(pipe):
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline

    canny = ControlNetModel.from_pretrained(embedded.path("controlnet-canny"))
    host: Any = StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=canny, requires_safety_checker=False
    )
    host.set_progress_bar_config(disable=True)
    scenes = [embedded.scene(seed) for seed in range(4)]
    options = {"num_inference_steps": 8, "guidance_scale": 1.0, "height": 128, "width": 128}
    scores = []
    for scale in (0.0, 1.0):
        images = host(
            [scene.caption for scene in scenes],
            image=[scene.canny for scene in scenes],
            controlnet_conditioning_scale=scale,
            generator=[torch.Generator().manual_seed(scene.seed) for scene in scenes],
            **options,
        ).images
        scores.append(np.mean([edge_f1(image, s.canny) for image, s in zip(images, scenes, strict=True)]))
    without, controlled = scores
    assert controlled > without + 0.3


def test_the_depth_adapter_loads_in_plain_diffusers():
    from diffusers.models.adapter import T2IAdapter

    adapter = T2IAdapter.from_pretrained(embedded.path("t2i-depth"))
    features = adapter(torch.rand(1, 3, 128, 128))
    assert [tuple(f.shape[1:]) for f in features] == [(96, 16, 16), (144, 8, 8)]

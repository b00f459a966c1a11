"""Every pipeline that denoises with a ``UNet2DConditionModel``, and every way it is run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import diffusers
import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.contracts import Branch
from controlkit.errors import NotApplicable, ParameterError
from controlkit.strength import Strength
from tests import tiny
from tests.engine.probe import Probe
from tests.engine.test_composition import call, phi, picture

STEPS = 3


def _sd(cls: str, **unet: Any) -> Any:
    pipe = tiny.pipeline("sd1", cls=getattr(diffusers, cls), unet=tiny.unet("sd1", **unet))
    return pipe


def _pix2pix() -> tuple[Any, dict[str, Any]]:
    return _sd("StableDiffusionInstructPix2PixPipeline", in_channels=8), {"image": picture(5)}


def _lcm() -> tuple[Any, dict[str, Any]]:
    pipe = tiny.pipeline(
        "sd1", cls=diffusers.LatentConsistencyModelPipeline, unet=tiny.unet("sd1", time_cond_proj_dim=8)
    )
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    return pipe, {"height": 64, "width": 64}


def _pag() -> tuple[Any, dict[str, Any]]:
    pipe = tiny.pipeline("sd1", cls=diffusers.StableDiffusionPAGPipeline)
    pipe.set_pag_applied_layers(["mid"])
    return pipe, {"height": 64, "width": 64, "pag_scale": 2.0}


def _pag_xl_unguided() -> tuple[Any, dict[str, Any]]:
    pipe = tiny.pipeline("sdxl", cls=diffusers.StableDiffusionXLPAGPipeline)
    pipe.set_pag_applied_layers(["mid"])
    return pipe, {"height": 64, "width": 64, "pag_scale": 2.0, "guidance_scale": 1.0}


def _depth() -> tuple[Any, dict[str, Any]]:
    from diffusers import StableDiffusionUpscalePipeline

    parts = tiny.components("sd1")
    low = diffusers.DDPMScheduler.from_config(parts["scheduler"].config)
    parts = {key: parts[key] for key in ("vae", "text_encoder", "tokenizer", "scheduler")}
    unet = tiny.unet("sd1", in_channels=7, num_class_embeds=1000)
    pipe = StableDiffusionUpscalePipeline(**parts, unet=unet, low_res_scheduler=low, max_noise_level=100)
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"image": torch.rand(1, 3, 8, 8), "noise_level": 20}


PIPELINES: dict[str, tuple[Any, tuple[Branch, ...]]] = {
    "instruct-pix2pix": (_pix2pix, ("cond", "image", "uncond")),
    "LCM": (_lcm, ("cond",)),
    "PAG": (_pag, ("uncond", "cond", "perturbed")),
    "PAG XL without guidance": (_pag_xl_unguided, ("cond", "perturbed")),
    "upscaler": (_depth, ("uncond", "cond")),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_every_kind_acts_in_every_pipeline(name: str) -> None:
    make, branches = PIPELINES[name]
    pipe, inputs = make()
    inputs = {"num_inference_steps": STEPS, **inputs}
    family = "sdxl" if "XL" in name else "sd1"
    plain = call(pipe, **inputs)
    probe = Probe()
    wish = torch.zeros(1, 4, 8, 8)
    for control in (
        tiny.controlnet(family).on(picture(1)),
        tiny.controlnet(family).on(picture(1), mode="control"),
        tiny.t2i_adapter(family).on(picture(1)),
        ck.Guidance(phi, wish, scale=0.05),
        Probe(frozenset(("tokens",))),
        Probe(frozenset(("attention",))),
        probe,
    ):
        with ck.attach(pipe, control) as run:
            controlled = call(pipe, **inputs)
        assert (controlled - plain).abs().max() > 1e-4, control.name
        assert run.report().rows[0].applied == run.report().rows[0].steps > 0
    assert torch.equal(call(pipe, **inputs), plain)
    assert all(step.branches == branches for step in probe.steps)
    assert all(step.latents.shape[:2] == (len(branches), 4) for step in probe.steps)


def test_control_mode_acts_on_the_conditional_part_of_three() -> None:
    pipe, inputs = _pix2pix()
    seen: list[tuple[Tensor, ...]] = []
    with ck.attach(pipe, tiny.controlnet("sd1").on(picture(1), mode="control")):
        handle = pipe.unet.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.append(kwargs["down_block_additional_residuals"]), with_kwargs=True
        )
        call(pipe, num_inference_steps=1, **inputs)
        handle.remove()
    for residual in seen[0]:
        cond, image, uncond = residual.chunk(3)
        assert cond.any()
        assert not image.any()
        assert not uncond.any()


def test_guidance_comes_out_of_three_way_guidance_as_it_went_in() -> None:
    pipe, inputs = _pix2pix()
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    plain = call(pipe, num_inference_steps=1, **inputs)
    with ck.attach(pipe, Probe(frozenset(("noise",)))):
        shifted = call(pipe, num_inference_steps=1, **inputs)
    sigma = float(pipe.scheduler.sigmas[0])
    torch.testing.assert_close(shifted - plain, torch.full_like(plain, -0.1 * sigma), rtol=1e-3, atol=1e-3)


# --- DeepFloyd IF and unCLIP ------------------------------------------------------------------------------


def _if(stage: int = 1) -> tuple[Any, dict[str, Any]]:
    simple = dict(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3 * stage,
        out_channels=6,
        cross_attention_dim=32,
        encoder_hid_dim=16,
        encoder_hid_dim_type="text_proj",
        attention_head_dim=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
        norm_num_groups=8,
    )
    if stage == 2:
        simple |= {
            "class_embed_type": "timestep",
            "mid_block_scale_factor": 1.414,
            "time_embedding_act_fn": "gelu",
        }
    unet = tiny.randomize(diffusers.UNet2DConditionModel(**simple), 0)
    noise = dict(beta_schedule="squaredcos_cap_v2", variance_type="learned_range", clip_sample=True)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, prediction_type="epsilon", **noise)
    parts: dict[str, Any] = dict(
        tokenizer=None,
        text_encoder=None,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {
        "prompt": None,
        "prompt_embeds": torch.randn(1, 7, 16, generator=generator),
        "negative_prompt_embeds": torch.randn(1, 7, 16, generator=generator),
        "output_type": "pt",
        "num_inference_steps": STEPS,
    }
    if stage == 1:
        pipe: Any = diffusers.IFPipeline(**parts)
        inputs |= {"height": 16, "width": 16}
    else:
        low = diffusers.DDPMScheduler(num_train_timesteps=1000)
        pipe = diffusers.IFSuperResolutionPipeline(**parts, image_noising_scheduler=low)
        inputs |= {"image": torch.rand(1, 3, 8, 8, generator=generator), "height": 16, "width": 16}
    pipe.set_progress_bar_config(disable=True)
    return pipe, inputs


@pytest.mark.parametrize("stage", [1, 2])
def test_deepfloyd_if_stages(stage: int) -> None:
    pipe, inputs = _if(stage)
    plain = call(pipe, **inputs)
    probe = Probe()
    for control in (probe, ck.Guidance(lambda x, y, t: -(x**2).flatten(1).sum(1), scale=0.1)):
        with ck.attach(pipe, control):
            assert not torch.equal(call(pipe, **inputs), plain)
    assert torch.equal(call(pipe, **inputs), plain)
    assert probe.steps[0].branches == ("uncond", "cond")
    assert probe.steps[0].latents.shape == (2, 3, 16, 16)
    assert probe.targets[0].pixel_scale == 1
    with pytest.raises(NotApplicable, match="SimpleCrossAttnDownBlock2D"):
        ck.attach(pipe, tiny.t2i_adapter("sd1").on(picture(1)))
    with pytest.raises(NotApplicable, match="pools the prompt"):
        ck.attach(pipe, Probe(frozenset(("tokens",))))
    with pytest.raises(NotApplicable, match="pixels and tokens in one layer"):
        ck.attach(pipe, Probe(frozenset(("attention",))))
    with pytest.raises(ck.BaseMismatch, match="latents of 4 channels"):
        ck.attach(pipe, tiny.controlnet("sd1").on(picture(1)))


def test_unclip_decoder() -> None:
    from diffusers.pipelines.deprecated.unclip.pipeline_unclip import UnCLIPPipeline
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
    from diffusers.schedulers import UnCLIPScheduler

    decoder: Any = tiny.randomize(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=3,
            out_channels=6,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=4,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
            norm_num_groups=8,
        ),
        0,
    )
    small: dict[str, Any] = dict(
        sample_size=16,
        in_channels=6,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
        norm_num_groups=8,
        attention_head_dim=None,
        add_attention=False,
    )
    text = tiny.text_encoder(32, projection=True)
    learned = UnCLIPScheduler(
        variance_type="learned_range", prediction_type="epsilon", num_train_timesteps=1000
    )
    fixed = UnCLIPScheduler(
        variance_type="fixed_small_log",
        prediction_type="sample",
        num_train_timesteps=1000,
        clip_sample_range=5.0,
    )
    projection: Any = UnCLIPTextProjModel(clip_embeddings_dim=32, time_embed_dim=64, cross_attention_dim=16)
    pipe = UnCLIPPipeline(
        prior=diffusers.PriorTransformer(
            num_attention_heads=2,
            attention_head_dim=8,
            embedding_dim=32,
            num_layers=1,
            num_embeddings=tiny.TOKENS,
        ),
        decoder=decoder,
        text_encoder=text,
        tokenizer=tiny.tokenizer(),
        text_proj=cast(Any, tiny.randomize(projection, 0)),
        super_res_first=cast(Any, tiny.randomize(diffusers.UNet2DModel(**small), 1)),
        super_res_last=cast(Any, tiny.randomize(diffusers.UNet2DModel(**small), 2)),
        prior_scheduler=fixed,
        decoder_scheduler=learned,
        super_res_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="epsilon", num_train_timesteps=1000
        ),
    )
    pipe.set_progress_bar_config(disable=True)

    def run() -> Tensor:
        outputs: Any = pipe(
            "a red cube",
            prior_num_inference_steps=2,
            decoder_num_inference_steps=STEPS,
            super_res_num_inference_steps=2,
            output_type="pt",
            generator=torch.Generator().manual_seed(0),
        )
        return torch.as_tensor(outputs.images)

    plain = run()
    probe = Probe(strength=Strength(end=0.7))
    with ck.attach(
        pipe, probe, ck.Guidance(lambda x, y, t: -(x**2).flatten(1).sum(1), scale=0.1)
    ) as attached:
        assert not torch.equal(run(), plain)
    assert [(row.applied, row.steps) for row in attached.report().rows] == [(2, STEPS), (STEPS, STEPS)]
    assert torch.equal(run(), plain)
    assert probe.steps[0].latents.shape == (2, 3, 8, 8)
    with pytest.raises(NotApplicable, match="pixels and tokens in one layer"):
        ck.attach(pipe, Probe(frozenset(("attention",))))
    with pytest.raises(NotApplicable, match="attention mask"), ck.attach(pipe, Probe(frozenset(("tokens",)))):
        run()


def test_a_transformer_pipeline_is_refused_by_name() -> None:
    class Transformer2DModel(torch.nn.Module):
        pass

    other = SimpleNamespace(components={"transformer": Transformer2DModel()})
    with pytest.raises(NotApplicable, match="Transformer2DModel"):
        ck.attach(other, tiny.controlnet("sd1").on(picture(1)))
    with pytest.raises(ParameterError, match=r"module\.on"):
        ck.attach(tiny.pipeline("sd1"), tiny.controlnet("sd1"))  # type: ignore[arg-type]

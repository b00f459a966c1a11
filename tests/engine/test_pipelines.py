"""Every pipeline that denoises with a ``UNet2DConditionModel``, and every way it is run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.contracts import Active, Branch, Residuals, RunInfo, Step, Target
from controlkit.errors import NotApplicable, ParameterError
from controlkit.strength import Strength
from tests import tiny
from tests.engine.test_composition import call, phi, picture

STEPS = 3


@dataclass(frozen=True, eq=False)
class Probe:
    """A stranger's control: adds constant residuals, shifts and tokens, and remembers the steps it saw."""

    slots: frozenset[Any] = frozenset(("skips", "mid"))
    strength: Strength = field(default_factory=Strength)
    name: str = "probe"
    steps: list[Step] = field(default_factory=list[Step])
    targets: list[Target] = field(default_factory=list[Target])

    def check(self, target: Target) -> None:
        self.targets.append(target)

    def prepare(self, run: RunInfo) -> Active:
        target = run.target

        def residuals(step: Step) -> Residuals:
            self.steps.append(step)
            rows = step.latents.shape[0]

            def full(channels: int, stride: int) -> Tensor:
                size = (math.ceil(run.height / stride), math.ceil(run.width / stride))
                return torch.full((rows, channels, *size), 0.1, dtype=run.dtype)

            skips: tuple[Tensor, ...] = ()
            mid = None
            if "skips" in self.slots:
                skips = tuple(map(full, target.skip_channels, target.skip_strides))
                mid = full(target.mid_channels, target.skip_strides[-1])
            encoder: tuple[Tensor, ...] = ()
            if "encoder" in self.slots:
                encoder = tuple(map(full, target.encoder_channels, target.encoder_strides))
            return Residuals(skips, mid, encoder)

        def tokens(step: Step) -> Tensor:
            self.steps.append(step)
            assert target.token_dim is not None
            return torch.ones(step.latents.shape[0], 4, target.token_dim, dtype=run.dtype)

        adds = self.slots & {"skips", "encoder"}
        return Active(
            residuals=residuals if adds else None,
            tokens=tokens if "tokens" in self.slots else None,
            shift=(lambda noise, _: torch.full_like(noise, 0.1)) if "noise" in self.slots else None,
        )


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
    parts = dict(
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
    with pytest.raises(ck.BaseMismatch, match="latents of 4 channels"):
        ck.attach(pipe, tiny.controlnet("sd1").on(picture(1)))


def test_unclip_decoder() -> None:
    from diffusers.pipelines.deprecated.unclip.pipeline_unclip import UnCLIPPipeline
    from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
    from diffusers.schedulers import UnCLIPScheduler

    decoder = tiny.randomize(
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
    projection = UnCLIPTextProjModel(clip_embeddings_dim=32, time_embed_dim=64, cross_attention_dim=16)
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
        text_proj=tiny.randomize(projection, 0),
        super_res_first=tiny.randomize(diffusers.UNet2DModel(**small), 1),
        super_res_last=tiny.randomize(diffusers.UNet2DModel(**small), 2),
        prior_scheduler=fixed,
        decoder_scheduler=learned,
        super_res_scheduler=UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="epsilon", num_train_timesteps=1000
        ),
    )
    pipe.set_progress_bar_config(disable=True)

    def run() -> Tensor:
        images = pipe(
            "a red cube",
            prior_num_inference_steps=2,
            decoder_num_inference_steps=STEPS,
            super_res_num_inference_steps=2,
            output_type="pt",
            generator=torch.Generator().manual_seed(0),
        ).images
        return torch.as_tensor(images)

    plain = run()
    probe = Probe(strength=Strength(end=0.7))
    with ck.attach(
        pipe, probe, ck.Guidance(lambda x, y, t: -(x**2).flatten(1).sum(1), scale=0.1)
    ) as attached:
        assert not torch.equal(run(), plain)
    assert [(row.applied, row.steps) for row in attached.report().rows] == [(2, STEPS), (STEPS, STEPS)]
    assert torch.equal(run(), plain)
    assert probe.steps[0].latents.shape == (2, 3, 8, 8)
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


# --- ways of running --------------------------------------------------------------------------------------


def _controls(family: str = "sd1") -> list[Any]:
    return [
        tiny.controlnet(family).on(picture(1), end=0.7),  # type: ignore[arg-type]
        tiny.t2i_adapter(family).on(picture(2), scale=0.5),  # type: ignore[arg-type]
        ck.Guidance(phi, torch.zeros(1, 4, 8, 8), scale=0.02),
    ]


def _reference() -> Tensor:
    pipe = tiny.pipeline("sd1")
    with ck.attach(pipe, *_controls()):
        return call(pipe)


@pytest.mark.parametrize("way", ["torch.compile", "unet.compile"])
def test_compiled_unets_are_controlled(way: str) -> None:
    pipe = tiny.pipeline("sd1")
    if way == "torch.compile":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    else:
        pipe.unet.compile(backend="eager")
    plain = call(pipe)
    with ck.attach(pipe, *_controls()):
        controlled = call(pipe)
    torch.testing.assert_close(controlled, _reference(), rtol=1e-4, atol=1e-4)
    assert torch.equal(call(pipe), plain)


def test_offloaded_unets_are_controlled() -> None:
    accelerate = pytest.importorskip("accelerate")
    pipe = tiny.pipeline("sd1")
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert next(pipe.unet.parameters()).is_meta
    with ck.attach(pipe, *_controls()):
        assert torch.equal(call(pipe), _reference())


def test_offloaded_modules_are_left_to_their_hooks() -> None:
    accelerate = pytest.importorskip("accelerate")
    pipe, net = tiny.pipeline("sd1"), tiny.controlnet("sd1")
    with ck.attach(pipe, net.on(picture(1))):
        expected = call(pipe)
    accelerate.cpu_offload(net, execution_device=torch.device("cpu"))
    with ck.attach(pipe, net.on(picture(1))):
        assert torch.equal(call(pipe), expected)


def test_lora_and_ip_adapter_stay_in_force() -> None:
    from peft import LoraConfig

    pipe = tiny.pipeline("sd1")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with_lora = call(pipe)
    _load_ip_adapter(pipe)
    embeds = [torch.ones(2, 1, 16)]
    plain = call(pipe, ip_adapter_image_embeds=embeds)
    assert not torch.equal(plain, with_lora)
    for control in (*_controls(), Probe(frozenset(("tokens",)))):
        with ck.attach(pipe, control):
            assert not torch.equal(call(pipe, ip_adapter_image_embeds=embeds), plain)
    assert torch.equal(call(pipe, ip_adapter_image_embeds=embeds), plain)


def _load_ip_adapter(pipe: Any) -> None:
    """A tiny IP-Adapter of random weights, in the published key layout."""
    from diffusers.models.attention_processor import Attention

    generator = torch.Generator().manual_seed(0)
    attention = [
        module
        for name, module in pipe.unet.named_modules()
        if isinstance(module, Attention) and name.endswith("attn2")
    ]
    weights: dict[str, Tensor] = {}
    for index, module in enumerate(attention):
        for key in ("to_k_ip", "to_v_ip"):
            shape = (module.to_k.weight.shape[0], 768)
            weights[f"{2 * index + 1}.{key}.weight"] = torch.randn(shape, generator=generator) * 0.05
    projection = {
        "proj.weight": torch.randn(768 * 4, 16, generator=generator) * 0.1,
        "proj.bias": torch.zeros(768 * 4),
        "norm.weight": torch.ones(768),
        "norm.bias": torch.zeros(768),
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    pipe.set_ip_adapter_scale(1.0)


@pytest.mark.parametrize("module_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_on_either_side(dtype: torch.dtype, module_dtype: torch.dtype) -> None:
    pipe = tiny.pipeline("sd1").to(dtype)
    net = tiny.controlnet("sd1").to(module_dtype)
    adapter = tiny.t2i_adapter("sd1").to(module_dtype)
    guidance = ck.Guidance(phi, torch.zeros(1, 4, 8, 8), scale=0.02)
    with ck.attach(pipe, net.on(picture(1), end=0.7), adapter.on(picture(2), scale=0.5), guidance) as run:
        out = call(pipe)
    assert out.dtype == dtype
    reference = _reference()
    error = (out.float() - reference).abs().mean() / reference.abs().mean()
    assert error < (0.02 if dtype == torch.float32 else 0.1)
    if dtype != module_dtype:
        assert any("computes in" in note for note in run.report().rows[0].notes)


def test_dynamic_guidance_switched_off_midway() -> None:
    pipe, probe = tiny.pipeline("sd1"), Probe()

    def off(pipe: Any, index: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            values["prompt_embeds"] = values["prompt_embeds"].chunk(2)[-1]
            pipe._guidance_scale = 0.0
        return values

    with ck.attach(pipe, probe, *_controls()):
        call(pipe, callback_on_step_end=off, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    assert [step.branches for step in probe.steps] == [("uncond", "cond")] * 2 + [("cond",)] * 2


def test_odd_sizes_and_rectangles() -> None:
    for height, width in ((72, 104), (40, 64)):
        for family in ("sd1", "sdxl"):
            pipe = tiny.pipeline(family)
            for module in (tiny.controlnet(family), tiny.t2i_adapter(family)):
                with ck.attach(pipe, module.on(picture(1))) as run:
                    out = call(pipe, height=height, width=width, num_inference_steps=1)
                assert out.shape[-2:] == (height // 8, width // 8)
                assert any(f"{height}x{width}" in note for note in run.report().rows[0].notes)


# --- a loop of one's own ----------------------------------------------------------------------------------


def _loop(unet: Any, scheduler: Any, way: str, run: Any = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 5, 768, generator=generator)
    scheduler.set_timesteps(4)
    x = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t)
            if way == "batched":
                uncond, cond = unet(torch.cat([scaled] * 2), t, tokens, return_dict=False)[0].chunk(2)
            else:
                halves = []
                for branch, row in zip(("uncond", "cond"), tokens.split(1), strict=True):
                    if run is not None:
                        run.branches = (branch,)
                    halves.append(unet(scaled, t, row).sample)
                uncond, cond = halves
            x = scheduler.step(uncond + 5 * (cond - uncond), t, x).prev_sample
    return x


@pytest.mark.parametrize("mode", ["balanced", "control"])
@pytest.mark.parametrize("scheduler", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler])
def test_a_bare_unet_batched_or_half_by_half(scheduler: Any, mode: str) -> None:
    unet = tiny.unet("sd1")
    clock = scheduler.from_config(tiny.scheduler().config)
    controls = [
        tiny.controlnet("sd1").on(picture(1), end=0.5, mode=mode),  # type: ignore[arg-type]
        tiny.t2i_adapter("sd1").on(picture(2), start=0.25),
        ck.Guidance(phi, torch.zeros(1, 4, 8, 8), scale=0.02),
    ]
    with ck.attach(unet, *controls, scheduler=clock, branches=("uncond", "cond")) as run:
        batched = _loop(unet, clock, "batched")
    assert [row.applied for row in run.report().rows] == [2, 3, 4]
    with ck.attach(unet, *controls, scheduler=clock, branches=("uncond",)) as run:
        sequential = _loop(unet, clock, "half by half", run)
    assert run.report().rows[2].steps == 8
    torch.testing.assert_close(sequential, batched, rtol=0, atol=1e-5 * float(batched.abs().max()))


def test_a_bare_unet_with_a_number_of_steps_only() -> None:
    unet, clock = tiny.unet("sd1"), tiny.scheduler()
    control = tiny.controlnet("sd1").on(picture(1), end=0.5)
    with ck.attach(unet, control, num_steps=4) as run:
        first = _loop(unet, clock, "batched")
        second = _loop(unet, clock, "batched")
    assert torch.equal(first, second)
    row = run.report().rows[0]
    assert (row.runs, row.applied, row.skipped) == (2, 4, 4)
    with ck.attach(unet, control, num_steps=2), pytest.raises(ParameterError, match="at most 2"):
        _loop(unet, clock, "batched")


def test_a_bare_unet_refuses_what_it_cannot_place() -> None:
    unet, net = tiny.unet("sd1"), tiny.controlnet("sd1")
    with pytest.raises(ParameterError, match="scheduler="):
        ck.attach(unet, net.on(picture(1), end=0.5))
    with pytest.raises(ParameterError, match="branches="):
        ck.attach(unet, net.on(picture(1), mode="control"))
    with pytest.raises(NotApplicable, match="noise level"):
        ck.attach(unet, ck.Guidance(phi, 0.0))
    with ck.attach(unet, net.on(picture(1))):
        _loop(unet, tiny.scheduler(), "batched")


def test_extra_tokens_reach_the_unet_but_not_the_controlnets() -> None:
    pipe, net = tiny.pipeline("sd1"), tiny.controlnet("sd1")
    seen: dict[str, int] = {}
    net.register_forward_pre_hook(lambda _m, args: seen.__setitem__("net", args[2].shape[1]))
    probe = Probe(frozenset(("tokens",)))
    with ck.attach(pipe, probe), ck.attach(pipe, net.on(picture(1))):
        pipe.unet.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.__setitem__("unet", kwargs["encoder_hidden_states"].shape[1]),
            with_kwargs=True,
        )
        call(pipe)
    assert seen == {"net": tiny.TOKENS, "unet": tiny.TOKENS + 4}


def test_guidance_rescale_is_refused_with_guidance() -> None:
    pipe = tiny.pipeline("sd1")
    guidance = ck.Guidance(phi, 0.0)
    with pytest.raises(NotApplicable, match="guidance_rescale"), ck.attach(pipe, guidance):
        call(pipe, guidance_rescale=0.5)
    with ck.attach(pipe, tiny.controlnet("sd1").on(picture(1))):
        call(pipe, guidance_rescale=0.5)

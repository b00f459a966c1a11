"""The one file that knows diffusers: what its U-Net is, how a pipeline calls it, where to put things.

diffusers itself is not imported; its objects are recognised by what they are, so that this file works with
every release that calls ``UNet2DConditionModel`` the way 0.21 to 0.42 do.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any, cast

import torch
from torch import Tensor, nn

from controlkit.contracts import Branch, Residuals, Slot, Target
from controlkit.errors import BatchMismatch, Busy, DeviceMismatch, NotApplicable, ParameterError
from controlkit.hosts.attention import CrossAttention, cross_attention
from controlkit.hosts.clock import CountingClock, SchedulerClock, Tick
from controlkit.hosts.families import family

_ORDER: dict[str, tuple[Branch, ...]] = {
    "StableDiffusionInstructPix2PixPipeline": ("cond", "image", "uncond"),
    "StableDiffusionXLInstructPix2PixPipeline": ("cond", "image", "uncond"),
}
_MAKES_ITSELF = {"CrossAttnDownBlock2D"}  # takes features before its downsampler


class DiffusersHost:
    """One U-Net and, where there is one, the pipeline around it.

    Args:
        pipeline_or_unet: A pipeline that denoises with a ``UNet2DConditionModel``, or such a U-Net.
        scheduler: For a bare U-Net: what its loop steps with.
        num_steps: For a bare U-Net without a scheduler: how many steps its loop runs.
        branches: For a bare U-Net: the meaning of the equal parts of its batch, in order.

    Raises:
        NotApplicable: There is no such U-Net; the message says what denoises instead.
    """

    def __init__(
        self,
        pipeline_or_unet: Any,
        scheduler: Any = None,
        num_steps: int | None = None,
        branches: Sequence[Branch] | None = None,
    ) -> None:
        self._name, self.unet = _find_unet(pipeline_or_unet)
        self.pipeline = None if pipeline_or_unet is self.unet else pipeline_or_unet
        self.core: nn.Module = getattr(self.unet, "_orig_mod", self.unet)
        self.cross_attention = cross_attention(self.unet, self.core)
        self._given_scheduler = scheduler
        self.branches: tuple[Branch, ...] | None = tuple(branches) if branches is not None else None
        self._clock = SchedulerClock()
        self._counting = CountingClock(num_steps)
        self._knows_steps = self.pipeline is not None or scheduler is not None or num_steps is not None
        self._parameters = tuple(inspect.signature(self.core.forward).parameters)
        whole = isinstance(num_steps, int) and not isinstance(num_steps, bool)
        if num_steps is not None and (not whole or num_steps < 1):
            raise ParameterError("num_steps", found=repr(num_steps), expected="a whole number from 1")
        if self.pipeline is None:
            _refuse_meta(self.core)

    # --- what it is ---------------------------------------------------------------------------------

    @property
    def scheduler(self) -> Any:
        """The scheduler in use right now, or None."""
        if self._given_scheduler is not None:
            return self._given_scheduler
        if self.pipeline is None:
            return None
        own = getattr(self.pipeline, f"{self._name}_scheduler", None)
        return own if own is not None else getattr(self.pipeline, "scheduler", None)

    @property
    def knows_steps(self) -> bool:
        """Whether windows and curves can be placed in time."""
        return self._knows_steps

    @property
    def knows_branches(self) -> bool:
        """Whether the conditional half can be told from the other."""
        return self.pipeline is not None or self.branches is not None

    def target(self) -> Target:
        """Describe the U-Net to controls."""
        has_decoder = self.pipeline is None or hasattr(self.pipeline, "vae") or hasattr(self.pipeline, "movq")
        scale = getattr(self.pipeline, "vae_scale_factor", 8) if has_decoder else 1
        return target_of(cast(Any, self.core).config, self.scheduler, scale, self.cross_attention)

    def parameter(self) -> Tensor:
        """A floating-point parameter, for dtype."""
        return next(p for p in self.core.parameters() if p.is_floating_point())

    def weights(self) -> Mapping[str, Tensor]:
        """The U-Net's weights by name, not copied."""
        return {name: tensor.detach() for name, tensor in self.core.state_dict(keep_vars=True).items()}

    # --- one call -----------------------------------------------------------------------------------

    def arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of a call of the U-Net, by name."""
        return {**dict(zip(self._parameters, args, strict=False)), **kwargs}

    def calls(self) -> list[FrameType]:
        """The pipeline's calls that are on this thread's stack, innermost first."""
        found: list[FrameType] = []
        frame: FrameType | None = inspect.currentframe() if self.pipeline is not None else None
        while frame is not None:
            if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is self.pipeline:
                found.append(frame)
            frame = frame.f_back
        return found

    def tick(self, timestep: Tensor | float, latents: Tensor) -> Tick:
        """Place this call in time."""
        if (scheduler := self.scheduler) is None:
            return self._counting.tick(timestep)
        steps = getattr(self.pipeline, "_num_timesteps", None)
        return self._clock.tick(scheduler, timestep, latents, steps if isinstance(steps, int) else None)

    def rows(self, latents: Tensor, calls: Sequence[FrameType]) -> tuple[Branch, ...]:
        """Meaning of the equal parts that the rows of this call fall into.

        Raises:
            Busy: The pipeline was called again from within its own run.
            BatchMismatch: The rows do not divide that way.
        """
        if len(calls) > 1:
            raise Busy(
                "pipeline",
                found="a call from within a call of the same pipeline (from a callback, say)",
                expected="one call at a time",
                fix="A pipeline's scheduler has one state: use a second pipeline for the inner call.",
                code="CK-R9",
            )
        order = self._order(calls[0] if calls else None, latents)
        if latents.shape[0] % len(order):
            raise BatchMismatch(
                "branches",
                found=f"{latents.shape[0]} rows",
                expected=f"a multiple of {len(order)} ({', '.join(order)})",
                fix="Give attach the branches of your loop, such as branches=('uncond', 'cond').",
            )
        return order

    def _order(self, call: FrameType | None, latents: Tensor) -> tuple[Branch, ...]:
        if self.branches is not None:
            return self.branches
        pipeline = self.pipeline
        if pipeline is None:
            first, *rest = latents.chunk(2)
            halves = len(rest) == 1 and first.shape == rest[0].shape and torch.equal(first, rest[0])
            return ("uncond", "cond") if halves else ("cond",)
        local = call.f_locals.get("do_classifier_free_guidance") if call is not None else None
        guided = bool(local if local is not None else getattr(pipeline, "do_classifier_free_guidance", False))
        perturbed: tuple[Branch, ...] = (
            ("perturbed",) if getattr(pipeline, "do_perturbed_attention_guidance", False) else ()
        )
        if not guided:
            return ("cond", *perturbed)
        for kind in type(pipeline).__mro__:
            if kind.__name__ in _ORDER:
                return _ORDER[kind.__name__]
        return ("uncond", "cond", *perturbed)

    def rescales_guidance(self) -> bool:
        """Whether guidance is rescaled afterwards, so that a shift would not come out as it went in."""
        return bool(getattr(self.pipeline, "_guidance_rescale", 0.0) or 0.0)

    def was_swapped(self) -> bool:
        """Whether the pipeline now denoises with another U-Net."""
        current = getattr(self.pipeline, self._name, self.unet)
        return getattr(current, "_orig_mod", current) is not self.core

    def decoders(self) -> list[nn.Module]:
        """The networks that `decode` runs."""
        vae = getattr(self.pipeline, "vae", None)
        return [vae] if isinstance(vae, nn.Module) else []

    def decode(self, latents: Tensor) -> Tensor:
        """Clean latents to pixels in [-1, 1], with gradients where they are on."""
        vae = getattr(self.pipeline, "vae", None)
        if vae is None:
            raise NotApplicable(
                "guidance",
                found="a pipeline without a VAE",
                expected="one that decodes latents",
                fix="Use sees='clean'.",
            )
        config = vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        parameter = next(vae.parameters())
        return vae.decode((latents / config.scaling_factor + shift).to(parameter.dtype)).sample

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels in [-1, 1] to the mode of their clean latents; what a VAE without chance encodes them to."""
        vae: Any = self.decoders()[0]
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        parameter = next(vae.parameters())
        with torch.no_grad():
            found: Any = vae.encode(pixels.to(parameter.device, parameter.dtype))
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        return (latents - shift) * vae.config.scaling_factor


def target_of(config: Any, scheduler: Any, pixel_scale: int, attention: CrossAttention) -> Target:
    """Describe a ``UNet2DConditionModel`` from its config, and its cross-attention layers as they are.

    Source: the places are those of ``UNet2DConditionModel.forward`` in diffusers 0.42.1
    (``models/unets/unet_2d_condition.py``, "3. down" to "5. up").
    """
    levels: tuple[int, ...] = tuple(config.block_out_channels)
    depth = config.layers_per_block
    layers = [depth] * len(levels) if isinstance(depth, int) else list(depth)
    kinds: list[str] = list(config.down_block_types)
    skips, strides = [levels[0]], [1]
    encoder: list[tuple[int, int, int]] = []
    stride = 1
    for level, (channels, count, kind) in enumerate(zip(levels, layers, kinds, strict=True)):
        skips += [channels] * count
        strides += [stride] * count
        before = (channels, stride, len(skips) - 1)
        if level < len(levels) - 1:
            stride *= 2
            skips.append(channels)
            strides.append(stride)
        encoder.append(before if kind in _MAKES_ITSELF else (channels, stride, len(skips) - 1))
    encoder.append((levels[-1], stride, len(skips)))
    refusals: dict[Slot, str] = {}
    closed = [kind for kind in kinds if "CrossAttn" in kind and kind not in _MAKES_ITSELF]
    if closed:
        refusals["encoder"] = f"This U-Net's {closed[0]} takes no features inside the encoder."
    token_dim = _token_dim(config)
    if token_dim is None:
        refusals["tokens"] = "This U-Net reads no prompt tokens."
    elif config.addition_embed_type in ("text", "text_image"):
        refusals["tokens"] = "This U-Net also pools the prompt's tokens, which extra tokens would change."
    if attention.refusal is not None:
        refusals["attention"] = attention.refusal
    if scheduler is None:
        refusals["noise"] = "Guidance needs the noise level: give attach the scheduler of your loop."
    elif getattr(scheduler, "config", {}).get("prediction_type", "epsilon") == "flow_prediction":
        refusals["noise"] = "Guidance is not defined for flow matching."
    slots: tuple[Slot, ...] = ("tokens", "skips", "mid", "encoder", "attention", "noise")
    prediction = getattr(scheduler, "config", {}).get("prediction_type", "epsilon")
    return Target(
        family=_family(config, token_dim),
        channels=_noisy_channels(config, scheduler),
        token_dim=token_dim,
        levels=levels,
        skip_channels=tuple(skips),
        skip_strides=tuple(strides),
        mid_channels=levels[-1],
        encoder_channels=tuple(c for c, _, _ in encoder),
        encoder_strides=tuple(s for _, s, _ in encoder),
        encoder_positions=tuple(p for _, _, p in encoder),
        prediction=prediction if prediction in ("epsilon", "v_prediction", "sample") else "epsilon",
        pixel_scale=pixel_scale,
        slots=frozenset(slot for slot in slots if slot not in refusals),
        refusals=refusals,
        added_dim=getattr(config, "projection_class_embeddings_input_dim", None)
        if config.addition_embed_type == "text_time"
        else None,
        attention=attention.layers,
    )


def unet_arguments(given: dict[str, Any], tokens: Tensor | None, residuals: Residuals) -> dict[str, Any]:
    """The U-Net's arguments with what the controls add, on top of what was already there."""
    new = dict(given)
    if tokens is not given.get("encoder_hidden_states"):
        if given.get("attention_mask") is not None:
            raise NotApplicable(
                "extra tokens",
                found="a U-Net call with an attention mask over its tokens",
                expected="one without",
                fix="Extra prompt tokens cannot be added in this pipeline.",
            )
        new["encoder_hidden_states"] = tokens
        mask = given.get("encoder_attention_mask")
        if mask is not None and tokens is not None:
            extra = tokens.shape[1] - mask.shape[-1]
            new["encoder_attention_mask"] = nn.functional.pad(mask, (0, extra), value=1)
    if residuals.mid is not None:
        theirs = given.get("down_block_additional_residuals")
        middle = given.get("mid_block_additional_residual")
        new["down_block_additional_residuals"] = (
            residuals.skips
            if theirs is None
            else tuple(a + b for a, b in zip(theirs, residuals.skips, strict=True))
        )
        new["mid_block_additional_residual"] = residuals.mid if middle is None else middle + residuals.mid
    if residuals.encoder:
        # Full rows, or the U-Net's own shape check would leave out the middle block's feature; a fresh list,
        # because the U-Net empties it.
        rows = given["sample"].shape[0]
        ours = [feature.expand(rows, -1, -1, -1) for feature in residuals.encoder]
        theirs = given.get("down_intrablock_additional_residuals")
        new["down_intrablock_additional_residuals"] = (
            ours if theirs is None else [a + b for a, b in zip(theirs, ours, strict=True)]
        )
    return new


def output_sample(output: Any) -> Tensor:
    """The predicted tensor of a U-Net's output, as a tuple or as diffusers' output class."""
    return cast(Tensor, output[0] if isinstance(output, tuple) else output.sample)


def with_sample(output: Any, sample: Tensor) -> Any:
    """The same output with another predicted tensor."""
    return (sample, *output[1:]) if isinstance(output, tuple) else type(output)(sample=sample)


def _find_unet(given: Any) -> tuple[str, nn.Module]:
    if isinstance(given, nn.Module):
        core = getattr(given, "_orig_mod", given)
        if _is_unet(core):
            return "unet", given
        raise NotApplicable(
            "attach",
            found=f"a {type(core).__name__}",
            expected="a diffusers pipeline or a UNet2DConditionModel",
            fix="Controls here are made for U-Nets.",
        )
    components: Mapping[str, Any] = getattr(given, "components", None) or {}
    found = {
        name: part
        for name, part in components.items()
        if isinstance(part, nn.Module) and _is_unet(getattr(part, "_orig_mod", part))
    }
    if found:
        name = "unet" if "unet" in found else next(iter(found))
        return name, found[name]
    others = [
        type(part).__name__
        for name, part in components.items()
        if isinstance(part, nn.Module) and name in ("unet", "transformer", "prior", "decoder")
    ]
    raise NotApplicable(
        "attach",
        found=f"a {type(given).__name__}" + (f" that denoises with {', '.join(others)}" if others else ""),
        expected="a pipeline that denoises with a UNet2DConditionModel, or such a U-Net",
        fix="Controls for transformers (SD3, FLUX, …) are other modules and are not supported.",
    )


def _is_unet(module: object) -> bool:
    return any(kind.__name__ == "UNet2DConditionModel" for kind in type(module).__mro__)


def _refuse_meta(unet: nn.Module) -> None:
    if any(p.is_meta for p in unet.parameters()) and not hasattr(unet, "_hf_hook"):
        raise DeviceMismatch(
            "U-Net",
            found="weights on the meta device",
            expected="real weights",
            fix="Load the weights before attaching.",
        )


def _token_dim(config: Any) -> int | None:
    if getattr(config, "encoder_hid_dim_type", None) == "image_proj":
        return None  # made from image embeddings inside the U-Net (Kandinsky 2.2)
    if getattr(config, "encoder_hid_dim", None) and config.encoder_hid_dim_type in (None, "text_proj"):
        return config.encoder_hid_dim
    dim = config.cross_attention_dim
    return dim if isinstance(dim, int) or dim is None else dim[0]


def _family(config: Any, token_dim: int | None) -> str:
    levels: tuple[int, ...] = tuple(config.block_out_channels)
    return family(levels, token_dim, sized=config.addition_embed_type == "text_time")


def _noisy_channels(config: Any, scheduler: Any) -> int:
    learned = str(getattr(scheduler, "config", {}).get("variance_type", "")).startswith("learned")
    half = config.out_channels // 2
    return half if learned or config.in_channels == half else config.out_channels

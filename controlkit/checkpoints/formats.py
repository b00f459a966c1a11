"""The layouts that are recognised, told by names and shapes of tensors, never by a file's name.

One entry each, the specific ones first. An entry without a ``reader`` is recognised so that its file can be
refused by its right name. To add a layout: one entry here, and in the adapter's `checkpoint.py` a `plan`
for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from controlkit.errors import KindMismatch, NotACheckpoint, ParameterError, Unsupported

if TYPE_CHECKING:
    from controlkit.module import ControlModule

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Plan:
    """How a checkpoint becomes a module.

    Args:
        build: Makes the module; called on the meta device.
        names: For parameters of the module, the tensor each is read from. One that is not here is
            missing from the checkpoint; one that the module does not have is not used.
    """

    build: Callable[[], ControlModule]
    names: Mapping[str, str]


class Reader(Protocol):
    """What an adapter's `checkpoint.py` offers."""

    def plan(self, layout: str, shapes: Shapes, config: Mapping[str, Any] | None, what: str) -> Plan:
        """How to build the module; raises when config and shapes do not fit each other."""
        ...

    def describe(
        self, layout: str, shapes: Shapes, config: Mapping[str, Any] | None
    ) -> tuple[str, dict[str, Any]]:
        """Base model and config, as far as they can be told; never raises for an odd checkpoint."""
        ...

    def remarks(self, module: Any) -> list[str]:
        """What a user should know about weights that are valid, such as that they do nothing."""
        ...


@dataclass(frozen=True)
class Layout:
    """One way in which one kind of weights is stored.

    Args:
        kind: ``controlnet``, ``t2i-adapter``, …
        layout: ``diffusers``, ``ldm``, ``t2i-original``, …
        title: What it is, for people.
        signs: Name parts, each of which some tensor's name must contain; ``^`` stands for its beginning.
        absent: Name parts that no tensor's name may contain.
        fits: A look at the shapes, where names do not suffice.
        reader: Module with `plan`, `describe` and `remarks`; None where it is only recognised.
        advice: What to do with it instead.
    """

    kind: str
    layout: str
    title: str
    signs: tuple[str, ...]
    absent: tuple[str, ...] = ()
    fits: Callable[[Shapes], bool] = field(default=lambda shapes: True)
    reader: str | None = None
    advice: str = "It is not a control for a U-Net."

    def matches(self, joined: str, shapes: Shapes) -> bool:
        """Whether this is the layout; ``joined``: all names, each between line breaks."""

        def has(sign: str) -> bool:
            return sign.replace("^", "\n") in joined

        return all(map(has, self.signs)) and not any(map(has, self.absent)) and self.fits(shapes)

    def load_reader(self) -> Reader:
        """Import the adapter that reads it.

        Raises:
            Unsupported: There is none yet.
        """
        if self.reader is None:
            raise Unsupported(self.title, found=f"layout {self.layout!r}", fix=self.advice)
        return cast(Reader, import_module(self.reader))


_CONTROLNET = "controlkit.adapters.controlnet.checkpoint"
_T2I = "controlkit.adapters.t2i_adapter.checkpoint"
_CONVERT = (
    "It is a control, but this layout is not read yet; use a copy in diffusers layout where there is one."
)


def _four_dimensional(name: str) -> Callable[[Shapes], bool]:
    return lambda shapes: len(shapes.get(name, (0,) * 4)) == 4


LAYOUTS: tuple[Layout, ...] = (
    Layout("lora", "kohya", "a LoRA", ("^lora_unet_",), advice="Load it with pipe.load_lora_weights()."),
    Layout("lora", "kohya", "a LoRA", ("^lora_te",), advice="Load it with pipe.load_lora_weights()."),
    Layout("control-lora", "control-lora", "a Control-LoRA", ("lora_controlnet",), advice=_CONVERT),
    Layout("lora", "diffusers", "a LoRA", (".lora_A.",), advice="Load it with pipe.load_lora_weights()."),
    Layout("lora", "diffusers", "a LoRA", ("lora.down.",), advice="Load it with pipe.load_lora_weights()."),
    Layout("lora", "other", "a LoRA", ("lora_down.",), advice="Load it with pipe.load_lora_weights()."),
    Layout(
        "controlnet-union",
        "diffusers",
        "a ControlNet for many conditions at once (union)",
        ("^controlnet_cond_embedding.", "^task_embedding"),
        advice="Use a ControlNet for one condition.",
    ),
    Layout(
        "controlnet-xs",
        "diffusers",
        "a ControlNet-XS",
        ("^controlnet_cond_embedding.", "ctrl_"),
        advice="Use a ControlNet or a T2I-Adapter.",
    ),
    Layout(
        "controlnet",
        "diffusers",
        "a ControlNet in diffusers layout",
        ("^controlnet_cond_embedding.", "^conv_in."),
        absent=("^up_blocks.",),
        fits=_four_dimensional("conv_in.weight"),
        reader=_CONTROLNET,
    ),
    Layout(
        "controlnet",
        "diffusers",
        "a ControlNet in diffusers layout",
        ("^controlnet_down_blocks.",),
        absent=("^up_blocks.",),
        reader=_CONTROLNET,
    ),
    Layout(
        "t2i-adapter",
        "diffusers",
        "a T2I-Adapter in diffusers layout",
        ("^adapter.body.0.",),
        fits=_four_dimensional("adapter.body.0.resnets.0.block1.weight"),
        reader=_T2I,
    ),
    Layout(
        "controlnet-dit",
        "diffusers",
        "a ControlNet for a transformer (SD 3, FLUX, …)",
        ("^controlnet_blocks.",),
        advice="Use a ControlNet that was made for a U-Net.",
    ),
    Layout("uni-controlnet", "uni-original", "Uni-ControlNet", ("^local_adapter.",), advice=_CONVERT),
    Layout("uni-controlnet", "uni-original", "Uni-ControlNet", ("^global_adapter.",), advice=_CONVERT),
    Layout("controlnet", "ldm", "a ControlNet in its original layout", ("^control_model.",), advice=_CONVERT),
    Layout("controlnet", "ldm", "a ControlNet in its original layout", ("^input_hint_block.",),
           advice=_CONVERT),
    Layout(
        "t2i-adapter",
        "t2i-original",
        "a T2I-Adapter in its original layout",
        ("^body.0.", "block1.weight"),
        advice=_CONVERT,
    ),
    Layout("style-adapter", "t2i-original", "a T2I style adapter", ("^style_embedding",), advice=_CONVERT),
    Layout("coadapter-fuser", "t2i-original", "a CoAdapter fuser", ("^spatial_feat_mapping.",),
           advice=_CONVERT),
    Layout(
        "ip-adapter",
        "original",
        "an IP-Adapter",
        ("^image_proj.", "^ip_adapter."),
        advice="Load it with pipe.load_ip_adapter().",
    ),
    Layout(
        "checkpoint",
        "ldm",
        "a whole Stable Diffusion checkpoint",
        ("^model.diffusion_model.", "^first_stage_model."),
        advice="It is a base model; load it with diffusers' from_single_file().",
    ),
    Layout(
        "unet",
        "ldm",
        "a U-Net in its original layout",
        ("^model.diffusion_model.",),
        advice="It is a base model; build it with controlkit.unet().",
    ),
    Layout(
        "unet",
        "diffusers",
        "a U-Net in diffusers layout",
        ("^down_blocks.", "^up_blocks.", "^time_embedding."),
        advice="It is a base model; load it with diffusers' UNet2DConditionModel.",
    ),
    Layout(
        "transformer",
        "diffusers",
        "a diffusion transformer",
        ("^transformer_blocks.",),
        advice="It is a base model.",
    ),
    Layout(
        "vae",
        "diffusers",
        "a VAE",
        ("^encoder.down_blocks.", "^decoder.up_blocks."),
        advice="Load it with diffusers' AutoencoderKL.",
    ),
    Layout(
        "vae",
        "ldm",
        "a VAE",
        ("^encoder.down.", "^decoder.up."),
        advice="Load it with diffusers' AutoencoderKL.from_single_file().",
    ),
    Layout("text-encoder", "transformers", "a text encoder", ("text_model.encoder.layers.",)),
    Layout("classifier", "guided-diffusion", "a noisy classifier", ("^input_blocks.", "^out."),
           absent=("^output_blocks.",), advice=_CONVERT),
    Layout("unet", "guided-diffusion", "a U-Net of guided-diffusion", ("^input_blocks.", "^output_blocks."),
           advice="It is a base model; build it with controlkit.unet()."),
    Layout(
        "embedding",
        "textual-inversion",
        "a textual inversion embedding",
        ("string_to_param",),
        advice="Load it with pipe.load_textual_inversion().",
    ),
    Layout(
        "embedding",
        "textual-inversion",
        "a textual inversion embedding",
        ("^emb_params",),
        advice="Load it with pipe.load_textual_inversion().",
    ),
)  # fmt: skip

_CLASSES = {"ControlNetModel": "controlnet", "T2IAdapter": "t2i-adapter"}
_WRAPS = ("module.", "_orig_mod.", "controlnet.", "state_dict.", "model.")


def recognise(shapes: Shapes, what: str, *, config: Mapping[str, Any] | None = None) -> Layout:
    """Tell what a checkpoint is.

    Args:
        shapes: Of its tensors, by name, unwrapped.
        what: Its name, for errors.
        config: Consulted only when too few tensors are there to tell.

    Raises:
        NotACheckpoint: No known layout.
    """
    joined = "\n" + "\n".join(shapes) + "\n"
    for layout in LAYOUTS:
        if layout.matches(joined, shapes):
            return layout
    named = _CLASSES.get(str((config or {}).get("_class_name")))
    if named is not None and any(
        name.startswith(("down_blocks.", "mid_block.", "adapter.")) for name in shapes
    ):
        return next(layout for layout in LAYOUTS if layout.kind == named and layout.layout == "diffusers")
    raise NotACheckpoint(
        what,
        found=f"{len(shapes)} tensors of no known layout, such as {', '.join(sorted(shapes)[:3])!r:.200}",
        expected="a ControlNet or a T2I-Adapter",
        fix="Check that this is the right file.",
        code="CK-L20",
    )


def expect(layout: Layout, kind: str | None, what: str, shapes: Shapes) -> None:
    """Refuse a layout that cannot be loaded, or is not what was asked for.

    Raises:
        KindMismatch: Another kind than asked for, or one that is no control.
        Unsupported: A control in a layout that is not read.
        ParameterError: ``kind`` is none that is known.
    """
    known = loadable_kinds()
    if kind is not None and kind not in known:
        raise ParameterError(
            "kind", found=repr(kind), expected=" or ".join(map(repr, known)), fix="Or leave it out."
        )
    if layout.reader is not None and kind in (None, layout.kind):
        return
    is_control = layout.kind in known or layout.advice == _CONVERT
    raise (Unsupported if is_control and kind in (None, layout.kind) else KindMismatch)(
        what,
        found=f"{layout.title}{_for_base(shapes)}, {len(shapes)} tensors",
        expected=f"a {kind}" if kind else "a control in a layout that is read",
        fix=layout.advice
        if layout.reader is None
        else f"Load it with kind={layout.kind!r}, or without kind.",
        code="CK-L20",
    )


def base_of(shapes: Shapes) -> str:
    """The base model, told by the width of what cross-attention reads; ``other`` where that does not tell."""
    widths = {shape[1] for name, shape in shapes.items() if "attn2" in name and len(shape) == 2}
    bases = {2048: "sdxl", 1024: "sd2", 768: "sd1"}
    return next((base for width, base in bases.items() if width in widths), "other")


def _for_base(shapes: Shapes) -> str:
    names = {"sd1": " for SD 1", "sd2": " for SD 2", "sdxl": " for SDXL"}
    return names.get(base_of(shapes), "")


def loadable_kinds() -> tuple[str, ...]:
    """The kinds that can be loaded, in at least one layout."""
    return tuple(dict.fromkeys(layout.kind for layout in LAYOUTS if layout.reader is not None))


def unwrap(names: Iterable[str]) -> tuple[str, list[str]]:
    """A prefix that all names share because something was wrapped around the module, and remarks on it."""
    names = list(names)
    prefix = ""
    for _ in range(3):
        part = next(
            (wrap for wrap in _WRAPS if names and all(name.startswith(prefix + wrap) for name in names)), None
        )
        # A U-Net's original names begin like that too, and are recognised with it.
        if part is None or any(name.startswith(f"{prefix}model.diffusion_model.") for name in names):
            break
        prefix += part
    return prefix, [f"all names began with {prefix!r}, which was removed"] if prefix else []

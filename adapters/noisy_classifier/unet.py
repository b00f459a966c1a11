"""The pixel U-Nets of guided-diffusion: the noise of a picture, and how sure to be of the next step.

`controlkit.unet` builds them from their weights. No adapter works on them but guidance.

Source:
    Dhariwal & Nichol (2021), arXiv:2105.05233; `UNetModel` of openai/guided-diffusion@22e0df81
    `guided_diffusion/unet.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from controlkit.adapters.noisy_classifier.blocks import (
    Norm,
    ResBlock,
    Stage,
    TimeEmbedding,
    attended,
    input_blocks,
    middle_block,
    resampler,
)
from controlkit.adapters.noisy_classifier.config import PixelUNetConfig
from controlkit.adapters.noisy_classifier.infer import infer
from controlkit.checkpoints.placing import Placer, check_dtypes, choose_dtype, main_dtype, usable_device
from controlkit.checkpoints.shapes import Shapes, refuse_giant, shape_of
from controlkit.errors import ControlKitWarning, HintError, Incomplete, ParameterError, ShapeMismatch


class PixelUNet(nn.Module):
    """A U-Net that denoises pixels, conditioned on a class where it was trained so.

    Args:
        config: What to build; new weights are random.

    Attributes:
        config: The same, frozen.
    """

    def __init__(self, config: PixelUNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or PixelUNetConfig()
        self.time_embed = TimeEmbedding(config)
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, config.time_dim)
        self.input_blocks, skips = input_blocks(config)
        self.middle_block = middle_block(skips[-1], config)
        width, stages = skips[-1], list[Stage]()
        for level, wide in reversed(list(enumerate(config.widths))):
            for index in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [ResBlock(width + skips.pop(), wide, config)]
                layers += attended(config, level, config.upper_heads)
                if level and index == config.num_res_blocks:
                    layers.append(resampler(wide, config, "up"))
                stages.append(Stage(*layers))
                width = wide
        self.output_blocks = nn.ModuleList(stages)
        self.out = nn.Sequential(Norm(width), nn.SiLU(), nn.Conv2d(width, config.out_channels, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the network predicts.

        Args:
            x: (batch, in_channels, H, W), the noisy picture x_t, variance-preserving, from pixels in
                [-1, 1]; sides multiples of 2 to the number of levels less one.
            timesteps: (batch,), () or (1,), in the numbering of its training, fractions too.
            labels: (batch,) classes; None for an unconditional network, and for that alone.

        Returns:
            (batch, out_channels, H, W), in the weights' dtype: the noise ε (or x_0, as it was trained), and
            where ``out_channels`` is twice ``in_channels`` a value in [-1, 1] between the smallest and the
            largest log variance of the step.

        Raises:
            HintError: Another number of channels, or sides that do not divide.
            ParameterError: Labels for an unconditional network, or none for a conditional one.
        """
        factor = 2 ** (len(self.config.widths) - 1)
        if x.ndim != 4 or x.shape[1] != self.config.in_channels or x.shape[2] % factor or x.shape[3] % factor:
            raise HintError(
                "x",
                found=f"shape {tuple(x.shape)}",
                expected=f"(batch, {self.config.in_channels}, height, width), sides multiples of {factor}",
            )
        time = self.time_embed(timesteps.reshape(-1).expand(x.shape[0]))
        time = self._labelled(time, labels)
        skips: list[Tensor] = []
        hidden = x.to(time.dtype)
        for stage in self.input_blocks:
            hidden = stage(hidden, time)
            skips.append(hidden)
        hidden = self.middle_block(hidden, time)
        for stage in self.output_blocks:
            hidden = stage(torch.cat([hidden, skips.pop()], dim=1), time)
        return self.out(hidden)

    def _labelled(self, time: Tensor, labels: Tensor | None) -> Tensor:
        classes = self.config.num_classes
        if (labels is None) != (classes is None):
            raise ParameterError(
                "labels",
                found="none" if labels is None else f"shape {tuple(labels.shape)}",
                expected=f"one class from 0 to {classes - 1} per picture" if classes else "none",
                fix="This network was trained with classes."
                if classes
                else "It was trained without classes.",
            )
        if labels is None or classes is None:
            return time
        if labels.shape != time.shape[:1] or labels.is_floating_point() or bool((labels < 0).any()) or bool(
            (labels >= classes).any()
        ):  # fmt: skip
            raise ParameterError(
                "labels",
                found=f"shape {tuple(labels.shape)}, {labels.dtype}, from {labels.min()} to {labels.max()}",
                expected=f"({time.shape[0]},), whole numbers from 0 to {classes - 1}",
            )
        return time + self.label_emb(labels)


def load_pixel_unet(
    state_dict: Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    what: str = "state dict",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> PixelUNet:
    """Build a pixel U-Net from its weights, complete and finite, or not at all.

    Args:
        state_dict: Tensors by their original names. Taken over, not copied.
        config: Arguments of ``UNetModel`` or ``create_model``, all or some. None: told by the shapes, with
            the heads of the published networks.
        what: Its name, for errors.
        dtype: Of all its weights; by default that of most of them (float32, float16 or bfloat16).
        device: Where to put it; by default the CPU.

    Returns:
        The network, in evaluation mode, without gradients. What was unusual is a warning.

    Raises:
        Incomplete: A weight is missing or without data, or one is there that the network does not have.
        Unsupported: One is no floating-point number, or sparse or quantised.
        ShapeMismatch: One has another shape than the config says.
        NonFinite: One holds NaN or infinity, or would in ``dtype``.
        ConfigError: Shapes do not tell and the config does not say, or it says what cannot be built.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    built = PixelUNetConfig.from_dict(infer_unet(shapes, config, what)[0], f"{what}: config")
    refuse_giant(built.num_res_blocks * len(built.widths), shapes, what)
    with torch.device("meta"):
        unet = PixelUNet(built)
    targets = unet.state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in targets.items()}
    missing, extra = sorted(wanted.keys() - shapes), sorted(shapes.keys() - wanted)
    if missing or extra:
        raise Incomplete(
            what,
            found=f"{len(missing)} weights missing, such as {missing[:1]}, and {len(extra)} too many,"
            f" such as {extra[:1]}",
            expected="exactly the weights of the network",
            fix="Give the config that fits these weights.",
            code="CK-L22",
        )
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise ShapeMismatch(
                f"{what}: {name}",
                found=f"shape {list(shapes[name])}",
                expected=f"{list(shape)}, by the config",
                fix="Give the config that fits these weights.",
            )
    dtypes = {name: tensor.dtype for name, tensor in state_dict.items()}
    check_dtypes(dtypes, targets, what)
    place = usable_device(device)
    to, notes = choose_dtype({*dtypes.values()}, main_dtype(dtypes, shapes), dtype, place, what)
    placer = Placer(to, place, what)
    placed = {name: placer.place(name, tensor) for name, tensor in state_dict.items()}
    for note in (*notes, *placer.finish()):
        warnings.warn(f"{what}: {note}", ControlKitWarning, stacklevel=2)
    unet.load_state_dict(placed, strict=True, assign=True)
    return unet.eval().requires_grad_(False)


def infer_unet(
    shapes: Shapes, config: Mapping[str, Any] | None, what: str
) -> tuple[dict[str, Any], list[str]]:
    """Constructor arguments of a U-Net, and remarks on what could only be assumed.

    Raises:
        Incomplete: A tensor that is needed for it is missing.
        ConfigError: Shapes allow several networks, or none.
    """
    entries, assumed = infer(shapes, config, what)
    classes = shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None
    entries.setdefault("num_classes", classes)
    entries.setdefault("out_channels", shape_of(shapes, "out.2.weight", what)[0])
    return entries, assumed

"""What a U-Net of the original layout (``input_blocks``, ``middle_block``, …) is, for controls.

Read from its blocks as they are, by the names of their parts, so that every such U-Net of every web UI is
understood, also those that another extension built: Stable Diffusion 1.x, 2.x, XL, and smaller ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

from controlkit.contracts import AttentionLayer, Slot, Target
from controlkit.errors import NotApplicable
from controlkit.hosts.attention import Place
from controlkit.hosts.families import family

NO_ATTENTION = (
    "This U-Net has no cross-attention layers, so that there is nothing to add a picture's tokens to."
)


def describe(
    unet: Any,
    *,
    channels: int,
    added_dim: int | None,
    pixel_scale: int,
    slots: frozenset[Slot],
    refusals: Mapping[Slot, str],
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon",
) -> Target:
    """Describe such a U-Net.

    Args:
        unet: The network.
        channels: Of the noisy latents alone.
        added_dim: Width of SDXL's pooled text and size ids, where it takes them.
        pixel_scale: Pixels per latent pixel.
        slots: Where the host can add.
        refusals: For each other slot, why not.
        prediction: What it predicts, as the host hands it to the engine.

    Raises:
        NotApplicable: It is something else than a U-Net.
    """
    if not hasattr(unet, "input_blocks") or not hasattr(unet, "output_blocks"):
        raise NotApplicable(
            "model",
            found=f"a {type(unet).__name__}",
            expected="a U-Net, as in Stable Diffusion 1.x, 2.x and XL",
            fix="Controls for transformers (SD3, FLUX, …) are other modules and are not supported.",
        )
    widths: list[int] = []
    strides: list[int] = []
    encoder: list[tuple[int, int, int]] = []
    levels: list[int] = []
    stride, attends = 1, False
    blocks = list(unet.input_blocks)
    for index, block in enumerate(blocks):
        layers = list(block)
        if any(_halves(layer) for layer in layers):
            levels.append(widths[-1])
            before = (widths[-1], stride, index - 1)
            stride *= 2
            encoder.append(before if attends else (widths[-1], stride, index))
            attends = False
        attends = attends or any(_is(layer, "SpatialTransformer") for layer in layers)
        widths.append(_width(layers, widths[-1] if widths else 0))
        strides.append(stride)
    levels.append(widths[-1])
    encoder.append((widths[-1], stride, len(blocks) - 1))
    encoder.append((widths[-1], stride, len(blocks)))
    attention = tuple(layer for _, _, layer in attention_modules(unet))
    token_dim = attention[0].token_dim if attention else None
    return Target(
        family=family(tuple(levels), token_dim, sized=added_dim is not None),
        channels=channels,
        token_dim=token_dim,
        levels=tuple(levels),
        skip_channels=tuple(widths),
        skip_strides=tuple(strides),
        mid_channels=widths[-1],
        encoder_channels=tuple(c for c, _, _ in encoder),
        encoder_strides=tuple(s for _, s, _ in encoder),
        encoder_positions=tuple(p for _, _, p in encoder),
        prediction=prediction,
        pixel_scale=pixel_scale,
        slots=slots,
        refusals=refusals,
        added_dim=added_dim,
        attention=attention,
    )


def _is(layer: object, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(layer).__mro__)


def _halves(layer: Any) -> bool:
    return _is(layer, "Downsample") or (
        _is(layer, "ResBlock") and _is(getattr(layer, "h_upd", None), "Downsample")
    )


def _width(layers: list[Any], before: int) -> int:
    """Channels that come out of a block."""
    width = before
    for layer in layers:
        if hasattr(layer, "out_channels"):  # residual blocks, downsamplers, and the first convolution
            width = int(layer.out_channels)
    return width


def attention_modules(unet: Any) -> Iterator[tuple[str, Any, AttentionLayer]]:
    """The cross-attention layers: the encoder's, the decoder's, the middle's.

    Args:
        unet: The network.

    Yields:
        Its name within the network, the ``CrossAttention`` itself, and what controls need to know of it.
    """
    strides: list[int] = []
    for block in unet.input_blocks:
        halves = any(_halves(layer) for layer in block)
        strides.append((strides[-1] if strides else 1) * (2 if halves else 1))
    parts = [
        *zip(_numbered("input_blocks", unet.input_blocks), strides, strict=True),
        *zip(_numbered("output_blocks", unet.output_blocks), reversed(strides), strict=True),
        (("middle_block", unet.middle_block), strides[-1]),
    ]
    for (place, block), stride in parts:
        for name, module in cast("Iterator[tuple[str, Any]]", block.named_modules()):
            if name.endswith(".attn2") or name == "attn2":
                width = int(module.to_q.weight.shape[0])
                layer = AttentionLayer(width, stride, int(module.to_k.weight.shape[1]))
                yield f"{place}.{name}", module, layer


def places_of(unet: Any) -> tuple[Place, ...]:
    """The cross-attention layers that can be added to, in the order of `Target.attention`; none where it has
    others."""
    found = list(attention_modules(unet)) if hasattr(unet, "output_blocks") else []
    if not all(hasattr(module, "heads") and hasattr(module, "to_out") for _, module, _ in found):
        return ()
    return tuple(Place(*one) for one in found)


def _numbered(name: str, blocks: Any) -> list[tuple[str, Any]]:
    return [(f"{name}.{number}", block) for number, block in enumerate(blocks)]

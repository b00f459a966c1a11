"""Which published family a U-Net is of, told by its shape."""

from __future__ import annotations


def family(levels: tuple[int, ...], token_dim: int | None, *, sized: bool) -> str:
    """``sd1``, ``sd2``, ``sdxl``, ``embedded`` or ``other``.

    Args:
        levels: Channels of each level of the encoder.
        token_dim: Width of the prompt's tokens; None where it reads none.
        sized: Whether it takes pooled text and size ids beside them, as SDXL does.
    """
    if levels == (320, 640, 1280) and sized:
        return "sdxl"
    if levels == (320, 640, 1280, 1280):
        return {768: "sd1", 1024: "sd2"}.get(token_dim or 0, "other")
    return "embedded" if token_dim == 128 and len(levels) == 2 else "other"

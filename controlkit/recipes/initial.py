"""What a picture may start from: another picture, how much of it is drawn anew, and where.

The numbers are diffusers': ``strength`` is that of its image-to-image and inpainting pipelines, white in the
mask is drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import field_validator, model_validator

from controlkit.errors import ParameterError
from controlkit.recipes.images import AnyPicture
from controlkit.recipes.rules import MAX_SIDE, Flag, Number, Plain, Whole, in_range

MAX_BLUR = 64.0


class InitRecipe(Plain):
    """A picture to start from, in place of noise alone.

    Args:
        image: The picture; alone it may stand in place of the whole object.
        strength: How much becomes new, above 0 and at most 1: the share of the steps that is run, from as
            much noise as belongs to it. 1: from noise alone, but for what the mask keeps.
        mask: What is drawn anew, white; black is kept. As large as the picture. None: all of it.
        blur: How far the edge of the mask fades outwards, in pixels of the result (the radius of a Gaussian).
        keep: Whether the picture's own pixels are put back where the mask is black. Without it they are what
            the model's autoencoder makes of them.
        margin: Draw only the part around what is painted, with so many pixels of the picture beside it, at
            the size of the run, and put it back into the picture, whose size the result has. None: all of it
            is drawn, at the size of the run.
        resize: How a picture of another shape gets the size of the run, as the ``resize`` of controls.
    """

    image: AnyPicture
    strength: Number = 0.8
    mask: AnyPicture | None = None
    blur: Number = 4.0
    keep: Flag = True
    margin: Whole | None = None
    resize: Literal["stretch", "crop", "pad"] = "stretch"

    @field_validator("strength")
    @classmethod
    def _strength(cls, value: float) -> float:
        if not 0 < value <= 1:
            raise ParameterError(
                "strength",
                found=f"{value:g}",
                expected="a number above 0, at most 1",
                fix="0.3 changes little, 0.8 much; 1 begins with noise alone.",
                code="CK-P8",
            )
        return value

    @field_validator("blur")
    @classmethod
    def _blur(cls, value: float) -> float:
        if not 0 <= value <= MAX_BLUR:
            raise ParameterError("blur", found=f"{value:g}", expected=f"0 to {MAX_BLUR:g} pixels")
        return value

    @model_validator(mode="after")
    def _margin(self) -> InitRecipe:
        if self.margin is not None:
            in_range("margin", self.margin, 0, MAX_SIDE, "32 is usual.", "CK-P3")
            if self.mask is None:
                raise ParameterError("margin", found="no mask", expected="a mask as well")
        return self

    def steps_of(self, steps: int) -> int:
        """How many of so many steps are run.

        Raises:
            ParameterError: Not one.
        """
        run = min(int(steps * self.strength), steps)  # as diffusers' get_timesteps
        if run < 1:
            raise ParameterError(
                "init.strength",
                found=f"{self.strength:g} of {steps} steps, which is less than one",
                expected=f"at least {1 / steps:.3g}",
                fix="Give more steps, or more strength.",
                code="CK-P8",
            )
        return run


def as_init(value: object) -> object:
    """An object as it is, and a picture or its path as an object with nothing else."""
    if value is None or isinstance(value, InitRecipe | Mapping):
        return value
    return {"image": value}

"""What may be asked of the server: the limits of one job, and of all of them."""

from __future__ import annotations

from dataclasses import dataclass

from controlkit.errors import ParameterError
from controlkit.recipes import Recipe


@dataclass(frozen=True)
class Limits:
    """What one job, and the server as a whole, may ask for.

    Args:
        side: Longest side of a picture in pixels.
        pixels: Most pixels of a picture.
        steps: Most steps.
        images: Most pictures of a job.
        controls: Most controls of a job.
        waiting: Most jobs in the queue.
        kept: Finished jobs that are remembered.
    """

    side: int = 2048
    pixels: int = 2048 * 1536
    steps: int = 250
    images: int = 16
    controls: int = 12
    waiting: int = 32
    kept: int = 100

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that asks for more.

        Raises:
            ParameterError: It does.
        """
        asked = {
            "steps": (recipe.steps, self.steps),
            "images": (recipe.images, self.images),
            "controls": (len(recipe.controls), self.controls),
            "width": (recipe.width or 0, self.side),
            "height": (recipe.height or 0, self.side),
            "width x height": ((recipe.width or 0) * (recipe.height or 0), self.pixels),
        }
        for name, (found, most) in asked.items():
            if found > most:
                raise ParameterError(
                    name,
                    found=f"{found:,}",
                    expected=f"at most {most:,} on this server",
                    fix="Use the command line for more.",
                    code="CK-P2",
                )
        for number, part in enumerate(recipe.controls):
            repeats = getattr(part, "inner_steps", 1) * getattr(part, "recurrence", 1)
            if repeats > 64:
                raise ParameterError(
                    f"controls[{number}]", found=f"{repeats} repeats of a step", expected="at most 64"
                )

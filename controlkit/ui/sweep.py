"""The grid of scale by seed: what it is, and the recipes of its pictures."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import AfterValidator

from controlkit.errors import ParameterError
from controlkit.recipes import GuidanceRecipe, Recipe
from controlkit.recipes.rules import MAX_SEED, Number, Plain, Whole

MOST = 64
"""Pictures of a grid."""

CHUNK = "controlkit-sweep"
"""Keyword of the PNG text chunk in which a contact sheet carries its grid and the recipe behind it."""


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ParameterError("sweep", found="no scales or no seeds", expected="one of each at least")
    if len(set(values)) < len(values):
        twice = next(value for value in values if values.count(value) > 1)
        raise ParameterError("sweep", found=f"{twice:g} twice", expected="each once")
    return values


def _seeds(values: tuple[int, ...]) -> tuple[int, ...]:
    for value in values:
        if not 0 <= value <= MAX_SEED:
            raise ParameterError("sweep: seeds", found=str(value), expected=f"0 to {MAX_SEED}")
    return values


class Sweep(Plain):
    """A grid: one control's scale from column to column, the seed from row to row.

    Args:
        control: Its place among the recipe's controls, from 0.
        scales: Take the place of its scale; where that is a curve, the curve is multiplied by them.
        seeds: Take the place of the recipe's seed.
    """

    control: Whole = 0
    scales: Annotated[tuple[Number, ...], AfterValidator(_some)]
    seeds: Annotated[tuple[Whole, ...], AfterValidator(_some), AfterValidator(_seeds)]

    def recipes(self, recipe: Recipe) -> list[Recipe]:
        """The recipes of its pictures, row by row.

        Args:
            recipe: What they share; how many pictures it asks for does not count.

        Raises:
            ParameterError: No such control, a scale out of range, or more than `MOST` pictures.
        """
        if len(self.scales) * len(self.seeds) > MOST:
            raise ParameterError(
                "sweep",
                found=f"{len(self.scales)} scales by {len(self.seeds)} seeds",
                expected=f"at most {MOST} pictures",
                fix="Give fewer scales or seeds.",
            )
        if not 0 <= self.control < len(recipe.controls):
            raise ParameterError(
                "sweep: control",
                found=str(self.control),
                expected=f"the place of one of the {len(recipe.controls)} controls, from 0"
                if recipe.controls
                else "a recipe with a control",
            )
        plain = recipe.model_dump(mode="json", exclude_defaults=True)
        return [self._one(recipe, plain, scale, seed) for seed in self.seeds for scale in self.scales]

    def _one(self, recipe: Recipe, plain: dict[str, Any], scale: float, seed: int) -> Recipe:
        own = recipe.controls[self.control].scale
        curve = [[at, value * scale] for at, value in own] if isinstance(own, tuple) else scale  # pyright: ignore
        controls = list(plain["controls"])
        controls[self.control] = {**controls[self.control], "scale": curve}
        return Recipe(**{**plain, "controls": controls, "seed": seed, "images": 1})

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return len(self.scales), len(self.seeds)

    def chunk(self, recipe: Recipe) -> dict[str, str]:
        """The text chunk of its contact sheet."""
        values = {"sweep": self.model_dump(mode="json"), "recipe": json.loads(recipe.to_json())}
        return {CHUNK: json.dumps(values)}


def title_of(recipe: Recipe, sweep: Sweep) -> str:
    """What changes from column to column, in words."""
    part = recipe.controls[sweep.control]
    if isinstance(part, GuidanceRecipe):
        return f"guidance {part.guidance}"
    return part.module.source.partition(":")[2] or part.module.source

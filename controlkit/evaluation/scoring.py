"""How well does a picture follow each control of its recipe? The maps are made once for many pictures."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from controlkit.errors import ControlKitError
from controlkit.evaluation.following import Score, follow
from controlkit.recipes import ControlRecipe, Files, ModuleRecipe, Recipe

if TYPE_CHECKING:
    from PIL import Image

KEPT = 12
"""Maps that a `Scorer` keeps, the last ones used."""


class Scorer:
    """Scores pictures against the maps of their recipes.

    Args:
        files: Where the recipes' files lie.

    Example:
        >>> Scorer(Files()).scores(Recipe(prompt="a red cube"), Image.new("RGB", (8, 8)))  # doctest: +SKIP
        []
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._seen: OrderedDict[str, tuple[Image.Image, Any]] = OrderedDict()
        self._about: dict[str, dict[str, Any]] = {}

    def scores(self, recipe: Recipe, picture: Image.Image) -> list[dict[str, Any]]:
        """A score for each control with a map, guidance left out.

        Args:
            recipe: What the picture was made with.
            picture: The picture.

        Returns:
            For each: ``control`` (its place among the recipe's controls, from 0), ``measure``, ``value``
            (None: not measured), ``by``, ``why``, and all of it as ``text``.
        """
        found: list[dict[str, Any]] = []
        for number, part in enumerate(recipe.controls):
            if isinstance(part, ControlRecipe):
                score = self._score(part, picture)
                found.append({"control": number, **asdict(score), "text": str(score)})
        return found

    def _score(self, part: ControlRecipe, picture: Image.Image) -> Score:
        about = self._info(part.module)
        try:
            wanted, region = self._map(part, about, picture.size)
        except (ControlKitError, TypeError) as error:
            return Score("", None, why=f"its map cannot be made again ({error})"[:300])
        return follow(
            picture,
            wanted,
            detect=part.detect,
            options=part.detect_options,
            condition=str(part.options.get("condition") or about.get("condition") or ""),
            base=str(about.get("base") or ""),
            region=region,
        )

    def _map(
        self, part: ControlRecipe, about: dict[str, Any], size: tuple[int, int]
    ) -> tuple[Image.Image, Any]:
        """What the module saw, and where the control acts."""
        names = {"module", "image", "detect", "detect_options", "mask", "resize", "channel_order"}
        text = part.model_dump_json(include=names) + str(size)
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self._seen:
            self._seen[key] = self._made(part, about, size)
            while len(self._seen) > KEPT:
                self._seen.popitem(last=False)
        self._seen.move_to_end(key)
        return self._seen[key]

    def _made(
        self, part: ControlRecipe, about: dict[str, Any], size: tuple[int, int]
    ) -> tuple[Image.Image, Any]:
        from controlkit.binding import read_map, read_mask
        from controlkit.images import fit, to_picture

        width, height = size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bound = read_map(
                self._files.picture(part.image),
                channels=3,
                detect=part.detect,
                detect_options=part.detect_options,
                resize=part.resize,
                channel_order=part.channel_order,  # pyright: ignore[reportArgumentType]
                base=str(about.get("base") or "other"),
            )
            rows, _ = fit(bound.rows, (height, width), resize=part.resize)
            region = None
            if part.mask is not None:
                mask = read_mask(self._files.picture(part.mask))
                region = np.asarray(fit(mask, (height, width), labels=False)[0][0, 0] > 0.5)
        return to_picture(rows[0].clamp(0, 1)), region

    def _info(self, module: ModuleRecipe) -> dict[str, Any]:
        """About the weights; nothing where that cannot be told."""
        source = module.source
        if source not in self._about:
            try:
                self._about[source] = _inspected(source, self._files)
            except (ControlKitError, OSError):
                self._about[source] = {}
        return self._about[source]


def _inspected(source: str, files: Files) -> dict[str, Any]:
    import controlkit as ck
    from controlkit import embedded, plugins

    scheme, _, name = source.partition(":")
    if scheme == "plugin":
        return {"condition": getattr(plugins.module(name), "condition", None)}
    if scheme == "embedded":
        return asdict(ck.inspect(embedded.path(name)))
    return asdict(ck.inspect(name if scheme == "hub" else files.weights(source)))

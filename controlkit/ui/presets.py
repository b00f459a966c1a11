"""Settings saved by name, as recipes in a folder of their own."""

from __future__ import annotations

from controlkit.errors import ParameterError
from controlkit.recipes import Recipe
from controlkit.ui.places import Places

DEFAULT = "default"
"""The preset that the page begins with."""


def names(places: Places) -> list[str]:
    """Names of the presets there are."""
    folder = places.presets
    if not folder.is_dir():
        return []
    return sorted(path.stem for path in folder.glob("*.json") if path.is_file() and not path.is_symlink())


def save(places: Places, name: str, recipe: Recipe) -> None:
    """Save a recipe as a preset; one of that name is replaced.

    Raises:
        Refused: Not a name.
        SaveError: It cannot be written.
    """
    recipe.save(places.preset(name), force=True)


def load(places: Places, name: str) -> Recipe:
    """The recipe of a preset.

    Raises:
        ParameterError: There is none of that name.
        RecipeError: It cannot be read.
    """
    path = places.preset(name)
    if not path.is_file():
        raise ParameterError("preset", found=repr(name)[:80], expected=", ".join(names(places)) or "one")
    return places.vetted(Recipe.load(path.read_bytes()))

"""Recipes: everything that makes a picture, as plain JSON, and the pictures made from them.

`model.py` says what a recipe is (`sources.py`: weights, `initial.py`: the picture to start from), `rules.py`
how errors read, `images.py` how pictures are carried in one and where files may lie, `files.py` reads and
writes, `running.py` makes the pictures (`starting.py` from a picture), `keeping.py` keeps models meanwhile.
"""

from controlkit.recipes.files import png_bytes, write
from controlkit.recipes.images import Files, Picture, encode
from controlkit.recipes.initial import InitRecipe
from controlkit.recipes.keeping import Keeper
from controlkit.recipes.model import (
    ControlRecipe,
    GuidanceRecipe,
    ModelRecipe,
    ModuleRecipe,
    Recipe,
    SchedulerRecipe,
)
from controlkit.recipes.running import Result, results, run

__all__ = [
    "ControlRecipe",
    "Files",
    "GuidanceRecipe",
    "InitRecipe",
    "Keeper",
    "ModelRecipe",
    "ModuleRecipe",
    "Picture",
    "Recipe",
    "Result",
    "SchedulerRecipe",
    "encode",
    "png_bytes",
    "results",
    "run",
    "write",
]

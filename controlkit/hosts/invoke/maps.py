"""Nodes about pictures that are there: can this map be right, and which recipe does this picture carry?"""

from __future__ import annotations

import json
from typing import Any, Literal

from controlkit.errors import HintError, RecipeError
from controlkit.hosts.invoke.building import NodeKind, output
from controlkit.hosts.invoke.host import api
from controlkit.maps import check_map
from controlkit.maps.conditions import CONDITIONS

RECIPE = "controlkit_recipe"
"""Key of the recipe in the metadata that InvokeAI keeps with a picture."""


def map_nodes(module: str) -> list[NodeKind]:
    """The node that checks a map, and the one that reads a recipe.

    Args:
        module: As for `controlkit.hosts.invoke.building.node`.
    """
    return [_check(module), _recipe()]


def recipe_of(name: str, context: Any) -> str:
    """The recipe of a picture in InvokeAI's gallery, as JSON.

    Args:
        name: InvokeAI's name of the picture.
        context: InvokeAI's.

    Raises:
        RecipeError: It carries none.
    """
    found = context.images.get_metadata(name)
    recipe = None if found is None else found.root.get(RECIPE)
    if recipe is None:
        raise RecipeError(
            "picture",
            found="a picture without a recipe",
            expected="one that a ControlKit node made in this InvokeAI",
            fix="Paste the recipe as text instead.",
        )
    return json.dumps(recipe, indent=2, ensure_ascii=False)


def _check(module: str) -> NodeKind:
    public = api()
    fields = {
        "text": (str, public.OutputField(description="what was seen, in a sentence")),
        "ok": (bool, public.OutputField(description="whether nothing is wrong, as far as can be seen")),
        "fault": (str, public.OutputField(description="the kind of fault; empty where there is none")),
        "image": (public.ImageField, public.OutputField(description="the map as it came in")),
    }
    result = output("controlkit_map_check_output", "What was seen in a map.", fields, module)

    def run(node: Any, context: Any) -> Any:
        seen = check_map(context.images.get_pil(node.image.image_name, "RGB"), node.condition)
        context.logger.info(f"ControlKit: {seen}")
        if node.refuse and not seen.ok:
            raise HintError("map", found=seen.looks_like, expected=f"one for {node.condition}", fix=seen.fix)
        return result(text=str(seen), ok=seen.ok, fault=seen.fault, image=node.image)

    refuse = "end the workflow where the map cannot be right"
    return NodeKind(
        kind="controlkit_check_map",
        title="Check map - ControlKit",
        about="Say whether a picture can be a control map of a condition, and if not, what is wrong with it.",
        fields={
            "image": (public.ImageField, public.InputField(description="The map")),
            "condition": (
                Literal[tuple(CONDITIONS)],
                public.InputField(default="canny", description="what the map shall show"),
            ),
            "refuse": (bool, public.InputField(default=False, description=refuse)),
        },
        output=result,
        run=run,
        tags=("map", "check"),
        gallery=False,
    )


def _recipe() -> NodeKind:
    public = api()

    def run(node: Any, context: Any) -> Any:
        return public.StringOutput(value=recipe_of(node.image.image_name, context))

    return NodeKind(
        kind="controlkit_recipe_of",
        title="Recipe of a picture - ControlKit",
        about="The recipe that a picture of the gallery was made with, as JSON text.",
        fields={"image": (public.ImageField, public.InputField(description="The picture"))},
        output=public.StringOutput,
        run=run,
        tags=("recipe", "metadata"),
        gallery=False,
    )

"""How the picture is made, watched, cancelled and put into InvokeAI's gallery.

The model is ours (diffusers), not one that InvokeAI's nodes load: their denoising takes no controls but its
own. It is kept from one run to the next, on the device that InvokeAI computes on.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from controlkit.errors import RecipeError, StateError
from controlkit.hosts.invoke.building import NodeKind, output
from controlkit.hosts.invoke.controls import ControlKitControlField, model_source, parts_of
from controlkit.hosts.invoke.host import api
from controlkit.hosts.invoke.maps import RECIPE, recipe_of
from controlkit.recipes import Files, Keeper, Recipe, Result, results

DTYPES = ("model's own", "float32", "float16", "bfloat16")
LARGEST_SEED = 2**32 - 1
"""InvokeAI's own."""

_keeper = Keeper()
_one_at_a_time = threading.Lock()


def generating_nodes(module: str) -> list[NodeKind]:
    """The nodes that make pictures.

    Args:
        module: As for `controlkit.hosts.invoke.building.node`.
    """
    public = api()
    field: Any = public.OutputField
    fields = {
        "image": (public.ImageField, field(description="the picture, the first of several")),
        "width": (int, field(description="in pixels")),
        "height": (int, field(description="in pixels")),
        "collection": (list[public.ImageField], field(description="all pictures")),
        "recipe": (str, field(description="what makes the first picture again, as JSON")),
        "report": (str, field(description="what each control did, as text")),
    }
    result = output("controlkit_picture_output", "Pictures, with what made them.", fields, module)
    return [_from_fields(result), _from_recipe(result)]


def make(recipe: Recipe, node: Any, context: Any, known: Mapping[str, Path]) -> dict[str, Any]:
    """Make the pictures of a recipe and save them to the gallery; what the nodes put out.

    Args:
        recipe: What to make.
        node: The node; the metadata that it was given is kept beside the recipe.
        context: InvokeAI's.
        known: Where InvokeAI has weights that the recipe names.

    Raises:
        ControlKitError: The recipe cannot be run.
    """
    public = api()
    models = Path(context.config.get().models_path)
    saved: list[Any] = []
    first: Result | None = None
    with _one_at_a_time:
        files = Files(recipe.base, models, known)
        context.util.signal_progress("Loading the model")
        _keeper.pipeline(recipe.model, files).to(public.choose_torch_device())
        watch = _progress(context, recipe.images)
        for made in results(recipe, models=models, known=known, keeper=_keeper, progress=watch):
            first = first or made
            metadata = public.MetadataField(_metadata(made.recipe, node))
            saved.append(context.images.save(image=made.image, metadata=metadata))
    if first is None:
        raise StateError("recipe", found="no picture", expected="one at least")
    context.logger.info(f"ControlKit:\n{first.report}")
    return {
        "image": public.ImageField(image_name=saved[0].image_name),
        "width": first.image.width,
        "height": first.image.height,
        "collection": [public.ImageField(image_name=entry.image_name) for entry in saved],
        "recipe": first.recipe.to_json(),
        "report": str(first.report),
    }


def _progress(context: Any, images: int) -> Callable[[int, int, int], None]:
    def progress(number: int, done: int, steps: int) -> None:
        if context.util.is_canceled():
            # By this InvokeAI's own nodes end too: it raises what the queue takes for a cancelled item.
            context.util.sd_step_callback(None, None)
        what = "Denoising" if images == 1 else f"Denoising picture {number + 1} of {images}"
        context.util.signal_progress(what, done / steps)

    return progress


def _metadata(recipe: Recipe, node: Any) -> dict[str, Any]:
    """The recipe, and beside it the fields of which InvokeAI knows the meaning."""
    given = getattr(node, "metadata", None)
    return {
        **({} if given is None else given.root),
        "generation_mode": "txt2img" if recipe.init is None else "img2img",
        "positive_prompt": recipe.prompt,
        "negative_prompt": recipe.negative_prompt,
        "seed": recipe.seed,
        "steps": recipe.steps,
        "cfg_scale": recipe.guidance_scale,
        "width": recipe.width,
        "height": recipe.height,
        RECIPE: json.loads(recipe.to_json()),
    }


def _from_fields(result: Any) -> NodeKind:
    public = api()
    field: Any = public.InputField
    either = ControlKitControlField | list[ControlKitControlField] | None
    folder = "a diffusers folder below InvokeAI's models folder; with neither, the embedded model"
    side = {"ge": 0, "le": 8192, "description": "in pixels, a multiple of 8; 0: the model's own"}
    bases = [
        public.BaseModelType.StableDiffusion1,
        public.BaseModelType.StableDiffusion2,
        public.BaseModelType.StableDiffusionXL,
    ]
    model = field(
        default=None,
        description="a main model of InvokeAI's, in diffusers format",
        ui_model_base=bases,
        ui_model_type=public.ModelType.Main,
        ui_model_format=public.ModelFormat.Diffusers,
    )
    fields: dict[str, tuple[Any, Any]] = {
        "prompt": (
            str,
            field(default="", description="what to draw", ui_component=public.UIComponent.Textarea),
        ),
        "negative_prompt": (
            str,
            field(default="", description="what not to draw", ui_component=public.UIComponent.Textarea),
        ),
        "controls": (
            either,
            field(default=None, description="one, or several through Collect", input=public.Input.Connection),
        ),
        "seed": (int, field(default=0, ge=0, le=LARGEST_SEED, description="of a generator on the CPU")),
        "steps": (int, field(default=20, ge=1, le=1000, description="denoising steps")),
        "guidance_scale": (
            float,
            field(default=3.0, ge=0.0, le=100.0, description="of classifier-free guidance; 1 and below: off"),
        ),
        "width": (int, field(default=0, **side)),
        "height": (int, field(default=0, **side)),
        "images": (int, field(default=1, ge=1, le=100, description="how many, from seeds that follow")),
        "model": (public.ModelIdentifierField | None, model),
        "folder": (str, field(default="", description=folder)),
        "dtype": (Literal[DTYPES], field(default=DTYPES[0], description="what it computes in")),
        "scheduler": (
            str,
            field(
                default="", description="class name in diffusers, such as DDIMScheduler; empty: the model's"
            ),
        ),
    }

    def run(node: Any, context: Any) -> Any:
        parts, known = parts_of(node.controls, context)
        source = "embedded:base"
        if node.model is not None and node.folder.strip():
            raise RecipeError(
                "model", found="a model and a folder", expected="one of them", fix="Clear the other."
            )
        if node.model is not None:
            source, place = model_source(
                node.model.key, context, known, [part.get("module") for part in parts]
            )
            known[source] = place
        elif node.folder.strip():
            source = f"file:{node.folder.strip()}"
        plain: Any = {
            "model": {"source": source, "dtype": None if node.dtype == DTYPES[0] else node.dtype},
            "prompt": node.prompt,
            "negative_prompt": node.negative_prompt,
            "seed": node.seed,
            "steps": node.steps,
            "guidance_scale": node.guidance_scale,
            "width": node.width or None,
            "height": node.height or None,
            "images": node.images,
            "scheduler": node.scheduler.strip() or None,
            "controls": parts,
        }
        return result(**make(Recipe(**plain), node, context, known))

    return NodeKind(
        kind="controlkit_generate",
        title="Generate - ControlKit",
        about="Make pictures with the embedded model, or one in diffusers format, under controls.",
        fields=fields,
        output=result,
        run=run,
        tags=("generate", "txt2img", "controlnet"),
    )


def _from_recipe(result: Any) -> NodeKind:
    public = api()
    field: Any = public.InputField
    area = public.UIComponent.Textarea
    fields: dict[str, tuple[Any, Any]] = {
        "recipe": (str, field(default="", description="a recipe as JSON text", ui_component=area)),
        "picture": (
            public.ImageField | None,
            field(default=None, description="a picture of the gallery whose recipe to run, in place of text"),
        ),
    }

    def run(node: Any, context: Any) -> Any:
        text = node.recipe.strip()
        if bool(text) == (node.picture is not None):
            raise RecipeError(
                "recipe",
                found="a text and a picture" if text else "neither text nor picture",
                expected="one of them",
                fix="Paste JSON, or choose a picture that a ControlKit node made.",
            )
        if not text:
            text = recipe_of(node.picture.image_name, context)
        if not text.startswith("{"):  # a path would be read from the server's disk
            raise RecipeError("recipe", found=repr(text[:40]), expected="JSON text, which begins with {")
        return result(**make(Recipe.load(text), node, context, {}))

    return NodeKind(
        kind="controlkit_generate_recipe",
        title="Generate from recipe - ControlKit",
        about="Make the pictures of a recipe: the same that Python, the command line and the page make.",
        fields=fields,
        output=result,
        run=run,
        tags=("generate", "recipe"),
    )

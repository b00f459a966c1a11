"""From the parts of a recipe to the objects that act: pipeline, scheduler, modules, controls."""

from __future__ import annotations

import difflib
import inspect
from importlib import metadata
from typing import TYPE_CHECKING, Any

from controlkit import plugins
from controlkit.errors import ControlKitError, MissingExtra, ParameterError, RecipeError
from controlkit.recipes import guides
from controlkit.recipes.images import Files
from controlkit.recipes.model import (
    ControlRecipe,
    GuidanceRecipe,
    ModelRecipe,
    ModuleRecipe,
    SchedulerRecipe,
)
from controlkit.recipes.single import pipeline_of_file

if TYPE_CHECKING:
    from controlkit.contracts import Control
    from controlkit.module import ControlModule

ALIGNMENT = 64
"""Bytes; what torch's own memory is aligned to."""

GUIDANCE_GROUP = "controlkit.guidance"
"""Entry points: name to a function that takes the recipe's options and returns a phi(x, y, t)."""


def pipeline_of(model: ModelRecipe, files: Files) -> Any:
    """The text-to-image pipeline of a recipe, without a progress bar of its own.

    Raises:
        RecipeError: It is not there, or cannot be read.
    """
    import torch

    scheme, _, name = model.source.partition(":")
    dtype = getattr(torch, model.dtype) if model.dtype else None
    path = files.weights(model.source) if scheme == "file" else None
    if path is not None and path.is_file():
        pipe = pipeline_of_file(path, model, files, dtype)
    elif model.config is not None:
        raise RecipeError(
            "model.config",
            found=f"{model.source!r}, which has its own",
            expected="a whole model in one checkpoint file",
            fix="Remove it.",
        )
    elif scheme == "embedded":
        from controlkit import embedded

        if name != "base":
            raise RecipeError(
                "model",
                found=f"{model.source!r}",
                expected="'embedded:base'",
                fix="There is one embedded model.",
            )
        pipe = embedded.pipeline(dtype=dtype)
    else:
        pipe = _pretrained(name if path is None else str(path), model, dtype)
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            align(part)
    return pipe


def align(module: Any) -> None:
    """Move weights that lie at odd addresses, as those mapped from a file do.

    Matrix products on CPUs round differently with the address of their operands, so that the same weights
    would not make the same picture to the bit.
    """
    import torch

    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
                tensor.data = tensor.data.clone()


def _pretrained(place: str, model: ModelRecipe, dtype: Any) -> Any:
    try:
        from diffusers import AutoPipelineForText2Image
    except ImportError as error:
        raise MissingExtra(
            "model", found="no diffusers", expected="diffusers 0.38 or newer", fix="pip install diffusers"
        ) from error
    options = {"revision": model.revision, "variant": model.variant, "torch_dtype": dtype}
    options = {key: value for key, value in options.items() if value is not None}
    try:
        return AutoPipelineForText2Image.from_pretrained(place, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise RecipeError(
            "model",
            found=f"{model.source!r}, which cannot be read ({reason})",
            expected="a folder or hub repository in diffusers layout, with safetensors weights",
            fix="Check the name; the first use of a hub model needs the network.",
        ) from error


def scheduler_of(current: Any, wanted: SchedulerRecipe | None) -> Any:
    """A fresh scheduler: the model's own, or the one that is named, made from the model's settings.

    Raises:
        ParameterError: No scheduler of that name, or an option that it does not have.
    """
    if wanted is None:
        return type(current).from_config(current.config)
    import diffusers

    kind: Any = getattr(diffusers, wanted.name, None)
    known_kind = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known_kind:
        own = type(current).__name__
        raise ParameterError(
            "scheduler",
            found=wanted.name,
            expected="a scheduler class of diffusers",
            fix=f"Such as {own}, DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler.",
        )
    known = inspect.signature(kind.__init__).parameters
    unknown = sorted(set(wanted.options) - set(known))
    if unknown:
        raise ParameterError(
            "scheduler options",
            found=unknown[0],
            expected=f"an option of {wanted.name}",
            fix=f"It has {', '.join(name for name in known if name != 'self')}.",
        )
    made: Any = kind
    return made.from_config(current.config, **wanted.options)


class Modules:
    """The weights that a recipe names, each loaded once.

    Args:
        files: Where they are looked for.
        loaded: Modules that are there already, by their part of the recipe as JSON; new ones are added.
        guides: Embedded networks that guide, the same way, by name.
    """

    def __init__(
        self,
        files: Files,
        loaded: dict[str, ControlModule] | None = None,
        guides: dict[str, Any] | None = None,
    ) -> None:
        self._files = files
        self._loaded: dict[str, ControlModule] = {} if loaded is None else loaded
        self._guides: dict[str, Any] = {} if guides is None else guides

    def of(self, part: ModuleRecipe) -> ControlModule:
        """The module of this part.

        Raises:
            RecipeError: Other weights than the recipe was made with, or none.
        """
        key = part.model_dump_json()
        if key not in self._loaded:
            self._loaded[key] = _load(part, self._files)
        return self._loaded[key]

    def embedded(self, name: str) -> Any:
        """An embedded network that guides and is no module: ``clip``, ``depth`` or ``segmentation``."""
        if name not in self._guides:
            from controlkit import embedded

            network = getattr(embedded, name)()
            align(network)
            self._guides[name] = network
        return self._guides[name]


def _load(part: ModuleRecipe, files: Files) -> ControlModule:
    """The weights of a control, checked against the recipe's digest.

    Raises:
        RecipeError: Other weights than the recipe was made with, or none.
    """
    scheme, _, name = part.source.partition(":")
    if scheme == "embedded":
        from controlkit import embedded

        if name not in embedded.names():
            raise RecipeError(
                "module",
                found=part.source,
                expected="one of " + ", ".join(sorted(embedded.names())),
                fix="See controlkit models.",
            )
        module = embedded.load(name)
    elif scheme == "plugin":
        return plugins.module(name)
    else:
        from controlkit.checkpoints import load

        options: dict[str, Any] = {
            "kind": part.kind,
            "config": part.config,
            "subfolder": part.subfolder,
            "weight_name": part.weight_name,
            "revision": part.revision,
        }
        source = name if scheme == "hub" else str(files.weights(part.source))
        module = load(source, **{key: value for key, value in options.items() if value is not None})
    align(module)
    found = module.digest
    if part.digest and found and found != part.digest:
        raise RecipeError(
            part.source,
            found=f"weights with SHA-256 {found[:12]}…",
            expected=f"those the recipe was made with, {part.digest[:12]}…",
            fix="Use the same weights, or remove the digest from the recipe.",
        )
    return module


def control_of(part: ControlRecipe | GuidanceRecipe, modules: Modules, files: Files) -> Control:
    """A control, bound as the recipe says; only what differs from the defaults is passed on."""
    if isinstance(part, GuidanceRecipe):
        return _guidance(part, modules, files)
    given = part.model_dump(exclude_defaults=True, exclude={"module", "image", "mask", "options"})
    if part.mask is not None:
        given["mask"] = files.picture(part.mask)
    twice = sorted(set(part.options) & set(ControlRecipe.model_fields))
    if twice:
        raise ParameterError(
            "options", found=twice[0], expected="options of this kind alone", fix="Give it beside options."
        )
    module, image = modules.of(part.module), files.picture(part.image)
    try:
        return module.on(image, **given, **part.options)
    except TypeError as error:
        if isinstance(error, ControlKitError):
            raise
        raise ParameterError(
            part.module.source,
            found=f"arguments that this kind does not take ({error})",
            expected="those of its on()",
            fix="Remove them from the recipe.",
        ) from error


def _guidance(part: GuidanceRecipe, modules: Modules, files: Files) -> Control:
    from controlkit.adapters.phi_guidance import Guidance

    make = _phi(part.guidance)
    options = guides.options_of(part, modules, files) if part.guidance in guides.BUILT_IN else part.options
    try:
        phi = make(**options)
    except TypeError as error:
        if isinstance(error, ControlKitError):
            raise
        raise ParameterError(
            f"guidance {part.guidance}",
            found=f"options that do not fit ({error})",
            expected="its own options",
        ) from error
    y = part.target if part.image is None else files.picture(part.image)
    given = part.model_dump(exclude_defaults=True, exclude={"guidance", "options", "target", "image", "mask"})
    if part.mask is not None:
        given["mask"] = files.picture(part.mask)
    return Guidance(phi, y, name=part.guidance, **given)


def _phi(name: str) -> Any:
    """The maker of a guidance function: a ready-made one, or what is registered under this name."""
    if name in guides.BUILT_IN:
        return guides.maker_of(name)
    entries = {entry.name: entry for entry in metadata.entry_points(group=GUIDANCE_GROUP)}
    if name not in entries:
        known = sorted((*guides.BUILT_IN, *entries))
        near = difflib.get_close_matches(name, known, n=1)
        raise RecipeError(
            "guidance",
            found=repr(name),
            expected=f"one of {', '.join(known)}",
            fix=f"Did you mean {near[0]}?"
            if near
            else f"Install the package that registers it ({GUIDANCE_GROUP}).",
        )
    return entries[name].load()

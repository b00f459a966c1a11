"""What a recipe is: every value that decides a picture, as plain JSON.

Reading and writing are in `files.py`, running in `running.py`. The JSON schema in
``docs/recipe.schema.json`` is made from these classes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)

from controlkit.errors import ParameterError
from controlkit.recipes.guides import BUILT_IN, referenced
from controlkit.recipes.images import AnyPicture
from controlkit.recipes.initial import InitRecipe, as_init
from controlkit.recipes.rules import (
    MAX_IMAGES,
    MAX_SEED,
    MAX_STEPS,
    AnyScale,
    Flag,
    Number,
    Options,
    Plain,
    Scale,
    Text,
    Whole,
    check_side,
    in_range,
)
from controlkit.recipes.sources import ModelRecipe, ModuleRecipe, as_module
from controlkit.strength import Strength

VERSION = 1
_SCHEDULER = re.compile(r"[A-Za-z0-9]{1,60}Scheduler")


def _check_scheduler(value: str) -> str:
    if not _SCHEDULER.fullmatch(value):
        raise ParameterError(
            "scheduler",
            found=repr(value[:80]),
            expected="a class name of diffusers",
            fix="Such as DDIMScheduler.",
        )
    return value


class SchedulerRecipe(Plain):
    """The sampler.

    Args:
        name: Class name in diffusers, such as ``DDIMScheduler``.
        options: Arguments of its constructor that differ from the model's own.
    """

    name: Annotated[str, Field(strict=True), AfterValidator(_check_scheduler)]
    options: Options = Field(default_factory=dict)


class ControlRecipe(Plain):
    """A module with its map, strength and schedule; the arguments of ``module.on``.

    Args:
        module: The weights; a plain string is their source.
        image: The map, or the picture that ``detect`` makes it from.
        detect: Name of a detector.
        detect_options: Its options.
        scale: As for ``module.on``, without functions.
        start: As for ``module.on``.
        end: As for ``module.on``.
        mode: As for ``module.on``.
        block_scales: As for ``module.on``.
        mask: A region, as a gray picture.
        resize: As for ``module.on``.
        channel_order: As for ``module.on``.
        options: Further arguments that ``on`` of this kind takes.
    """

    module: Annotated[ModuleRecipe, BeforeValidator(as_module)]
    image: AnyPicture
    detect: Text | None = None
    detect_options: Options | None = None
    scale: Scale = 1.0
    start: Number = 0.0
    end: Number = 1.0
    mode: Text = "balanced"
    block_scales: tuple[Number, ...] | None = None
    mask: AnyPicture | None = None
    resize: Literal["stretch", "crop", "pad"] = "stretch"
    channel_order: Text | None = None
    options: Options = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> ControlRecipe:
        Strength(
            scale=self.scale,
            start=self.start,
            end=self.end,
            mode=self.mode,  # pyright: ignore[reportArgumentType]
            block_scales=self.block_scales,
        )
        if self.detect_options and self.detect is None:
            raise ParameterError(
                "detect_options",
                found="options without a detector",
                expected="detect= as well",
                fix="Name the detector, or leave the options out: the image then is the map.",
            )
        return self


class GuidanceRecipe(Plain):
    """A guidance function by its name, with its target; the arguments of `controlkit.Guidance`.

    Args:
        guidance: Name of a ready-made function of `controlkit.guidance` (``edges``, ``color``, …), or under
            which one is registered (entry points ``controlkit.guidance``).
        options: Arguments of what makes it. Of ready-made ones, networks are sources, as of modules, and a
            mask is a picture.
        target: What to steer towards, where it is plain data (a text, a label, a colour), or one per picture.
        image: What to steer towards, where it is a picture.
    """

    guidance: Annotated[str, Field(strict=True, pattern=r"^[a-z][a-z0-9_]{0,40}$")]
    options: Options = Field(default_factory=dict)
    target: Text | Whole | Number | tuple[Text | Whole | Number, ...] | None = None
    image: AnyPicture | None = None
    scale: AnyScale = 1.0
    start: Number = 0.0
    end: Number = 1.0
    sees: Literal["noisy", "clean", "image"] | None = None
    through_unet: Flag | None = None
    normalize: Flag = False
    max_norm: Number | None = None
    inner_steps: Whole = 1
    recurrence: Whole = 1
    checkpointing: Flag = False
    every: Whole = 1
    mask: AnyPicture | None = None

    @model_validator(mode="before")
    @classmethod
    def _reference_pictures(cls, values: Any) -> Any:
        name, options = (
            values.get(key) if isinstance(values, dict) else None for key in ("guidance", "options")
        )
        if name in BUILT_IN and isinstance(options, dict):
            return {**values, "options": referenced(name, options)}
        return values

    @model_validator(mode="after")
    def _check(self) -> GuidanceRecipe:
        Strength(self.scale, self.start, self.end, every=self.every, largest=float("inf"))
        if self.target is not None and self.image is not None:
            raise ParameterError(
                "target", found="a target and an image", expected="one of them", fix="Remove the other."
            )
        return self


def _which(value: object) -> str:
    guided = "guidance" in value if isinstance(value, dict) else isinstance(value, GuidanceRecipe)
    return "Guidance" if guided else "Control"


AnyControl = Annotated[
    Annotated[ControlRecipe, Tag("Control")] | Annotated[GuidanceRecipe, Tag("Guidance")],
    Discriminator(_which),
]


class Recipe(Plain):
    """Everything that makes a picture.

    The same recipe makes the same picture, to the bit, on the same machine with the same versions. A recipe
    for several pictures makes picture ``k`` as if by itself, from seed ``seed + k``.

    Args:
        recipe: Version of this format.
        model: The text-to-image model; a plain string is its source.
        prompt: What to draw.
        negative_prompt: What not to draw.
        seed: 0 to 2**64 - 1, of a generator on the CPU.
        scheduler: The sampler; None: the model's own. A plain string is its class name.
        steps: Denoising steps.
        width: In pixels, a multiple of 8; None: the model's own size.
        height: As ``width``.
        guidance_scale: Strength of classifier-free guidance; 1 and below switch it off.
        images: How many pictures.
        init: A picture to start from, with a strength and a mask; None: noise alone.
        controls: What steers it; none: plain text to image.
        made_with: Versions that made the picture that carried this recipe; not used when it is run.

    Example:
        >>> recipe = Recipe(prompt="a red cube on a sand floor", seed=7)
        >>> Recipe.load(recipe.to_json()) == recipe
        True
    """

    recipe: Literal[1] = VERSION
    model: Annotated[ModelRecipe, BeforeValidator(as_module)] = ModelRecipe()
    prompt: Annotated[str, Field(strict=True, max_length=20_000)]
    negative_prompt: Annotated[str, Field(strict=True, max_length=20_000)] = ""
    seed: Whole = 0
    scheduler: Annotated[
        SchedulerRecipe | None,
        BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
    ] = None
    steps: Whole = 20
    width: Whole | None = None
    height: Whole | None = None
    guidance_scale: Number = 3.0
    images: Whole = 1
    init: Annotated[InitRecipe | None, BeforeValidator(as_init)] = None
    controls: tuple[AnyControl, ...] = ()
    made_with: dict[str, Text] | None = None

    _base: Path | None = PrivateAttr(default=None)

    def __eq__(self, other: object) -> bool:
        """Whether both make the same pictures; where they were read from does not count."""
        return isinstance(other, Recipe) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(self.to_json())

    @property
    def base(self) -> Path | None:
        """Folder that the recipe's paths are relative to: that of the file it was read from."""
        return self._base

    @property
    def run_steps(self) -> int:
        """Steps that are run for each picture: fewer than ``steps`` where it starts from a picture."""
        return self.steps if self.init is None else self.init.steps_of(self.steps)

    @classmethod
    def load(cls, source: Any, *, base: str | Path | None = None) -> Recipe:
        """Read a recipe.

        Args:
            source: JSON text, a path to a JSON file or to a PNG that controlkit saved, such a picture (PIL),
                or a dict.
            base: Folder that paths in it are relative to; None: the folder of the file.

        Raises:
            RecipeError: Not a recipe, or one with unknown or missing keys.
            ParameterError: A value out of its range.
        """
        from controlkit.recipes.files import read

        values, folder = read(source)
        recipe = values if isinstance(values, cls) else cls(**values)
        folder = Path(base) if base is not None else folder
        if folder is not None:
            recipe = recipe.model_copy()
            recipe._base = folder
        return recipe

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the recipe as JSON.

        Args:
            path: Where to; the paths in the recipe are relative to its folder.
            force: Replace a file that is there.

        Returns:
            ``path``.

        Raises:
            SaveError: A file is there, or it cannot be written.
        """
        from controlkit.recipes.files import write

        return write(Path(path), (self.to_json() + "\n").encode(), force=force)

    def to_json(self) -> str:
        """The recipe as JSON text, without the keys that are at their defaults."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps({"recipe": VERSION, **values}, indent=2, ensure_ascii=False, allow_nan=False)

    @model_validator(mode="after")
    def _runs(self) -> Recipe:
        _ = self.run_steps
        if self.init is not None and self.init.margin is not None and self.controls:
            raise ParameterError(
                "init.margin",
                found="controls as well",
                expected="none: their maps show the whole picture",
                fix="Leave the margin out, or the controls.",
            )
        return self

    @field_validator("width", "height")
    @classmethod
    def _side(cls, value: int | None, info: Any) -> int | None:
        return value if value is None else check_side(info.field_name, value)

    @field_validator("steps")
    @classmethod
    def _steps(cls, value: int) -> int:
        return in_range("steps", value, 1, MAX_STEPS, "20 to 50 are usual.", "CK-P8")

    @field_validator("images")
    @classmethod
    def _images(cls, value: int) -> int:
        return in_range("images", value, 1, MAX_IMAGES, "Give how many pictures to make.", "CK-P12")

    @field_validator("seed")
    @classmethod
    def _seed(cls, value: int) -> int:
        return in_range("seed", value, 0, MAX_SEED, "Any whole number in this range will do.", "CK-P11")

    @field_validator("guidance_scale")
    @classmethod
    def _guidance_scale(cls, value: float) -> float:
        if not 0 <= value <= 100:
            raise ParameterError(
                "guidance_scale",
                found=f"{value:g}",
                expected="a number from 0 to 100",
                fix="1 and below switch it off.",
                code="CK-P9",
            )
        return value

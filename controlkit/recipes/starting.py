"""Starting from a picture: diffusers' own image-to-image and inpainting pipelines around the same parts."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from controlkit.errors import NotApplicable, ParameterError, RecipeError
from controlkit.images import as_picture, to_picture

if TYPE_CHECKING:
    from controlkit.recipes.images import Files
    from controlkit.recipes.initial import InitRecipe
    from controlkit.recipes.model import Recipe

FILLING = 9
"""Input channels of a U-Net that was trained to fill masks: latents, mask, and latents of the rest."""

PAINTED = 128
"""From this gray on a mask is white."""


@dataclass(frozen=True)
class Start:
    """What a run starts from, ready for a pipeline.

    Args:
        picture: At the size of the run, RGB.
        strength: As diffusers has it.
        mask: White where it is drawn anew, in whole cells of the latents (mode L); None: all of it.
        fade: How much of the new picture is taken, pixel by pixel (mode L), at the size of the run or of the
            box; None: all of it.
        around: Where only a part is drawn: the whole picture, and the box that the part was cut from.
    """

    picture: Image.Image
    strength: float
    mask: Image.Image | None = None
    fade: Image.Image | None = None
    around: tuple[Image.Image, tuple[int, int, int, int]] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments for the pipeline's call."""
        given: dict[str, Any] = {"image": self.picture, "strength": self.strength}
        if self.mask is not None:
            width, height = self.picture.size
            given |= {"mask_image": self.mask, "width": width, "height": height}
        return given

    def finished(self, made: Image.Image) -> Image.Image:
        """What was made, with the picture's own pixels where they are kept, and put back where it was cut."""
        made = made.convert("RGB")
        if self.around is None:
            return made if self.fade is None else Image.composite(made, self.picture, self.fade)
        picture, box = self.around
        size = box[2] - box[0], box[3] - box[1]
        whole = picture.copy()
        whole.paste(_fitted(made, size, "stretch"), box, self.fade)
        return whole


def start_of(pipe: Any, recipe: Recipe, files: Files) -> Start | None:
    """The picture and mask of a recipe, fitted to its size; None where it starts from noise.

    Raises:
        ParameterError: A mask of another size than the picture, or with nothing white in it.
        RecipeError: A picture that is not there, or none for a model that fills masks.
        NotApplicable: A U-Net that reads something else beside latents.
        HintError: A picture that cannot be used.
    """
    init = recipe.init
    channels = _channels(pipe)
    if channels == FILLING and (init is None or init.mask is None):
        raise RecipeError(
            "init" if init is None else "init.mask",
            found="nothing, with a model that was trained to fill masks (its U-Net reads 9 channels)",
            expected="a picture and a mask",
            fix='Give both, such as "init": {"image": …, "mask": …}, or use another model.',
        )
    if init is None:
        return None
    if channels not in (None, 4, FILLING):
        raise NotApplicable(
            "init",
            found=f"a U-Net that reads {channels} channels",
            expected="4, or 9 of a model that fills masks",
            fix="Leave init out, or use another model.",
        )
    own = own_size(pipe)
    size = recipe.width or own[0], recipe.height or own[1]
    picture = as_picture(files.picture(init.image), what="init.image")
    if init.mask is None:
        return Start(_fitted(picture, size, init.resize), init.strength)
    region = _region(init, files, picture.size)
    around, resize = None, init.resize
    if init.margin is not None:
        box = _box(region, init.margin, size)
        around, resize = (picture, box), "stretch"
        picture, region = picture.crop(box), region.crop(box)
    painted = region
    picture, region = _fitted(picture, size, resize), _fitted(region, size, resize)
    fade = region
    if init.blur:
        fade = ImageChops.lighter(region, region.filter(ImageFilter.GaussianBlur(init.blur)))
    cells = _cells(np.asarray(fade) >= PAINTED, int(getattr(pipe, "vae_scale_factor", 8)))
    if not cells.any():
        raise _empty()
    mask = Image.fromarray(np.where(cells, np.uint8(255), np.uint8(0)))
    if around is not None:
        fade = ImageChops.lighter(painted, _fitted(fade, painted.size, "stretch")) if init.blur else painted
    return Start(picture, init.strength, mask, fade if init.keep else None, around)


def _region(init: InitRecipe, files: Files, size: tuple[int, int]) -> Image.Image:
    """The mask as it was painted, mode L."""
    from controlkit.binding import read_mask

    assert init.mask is not None
    region = to_picture(read_mask(files.picture(init.mask))[0])
    if region.size != size:
        raise ParameterError(
            "init.mask",
            found="{} x {} pixels".format(*region.size),
            expected="{} x {}, the size of the picture".format(*size),
            fix="Paint the mask on the picture itself, or resize it.",
            code="CK-P3",
        )
    if not (np.asarray(region) >= PAINTED).any():
        raise _empty()
    return region


def _empty() -> ParameterError:
    return ParameterError(
        "init.mask",
        found="a mask without anything white",
        expected="white where the picture is drawn anew",
        fix="Paint what is to change, or leave the mask out: then all of it is drawn anew.",
        code="CK-P3",
    )


def _box(region: Image.Image, margin: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """What is painted with a margin, widened to the shape of the run as far as the picture goes."""
    painted = region.point([0] * PAINTED + [255] * (256 - PAINTED)).getbbox()
    assert painted is not None
    ends: list[tuple[int, int]] = []
    for axis in (0, 1):
        low, high = max(0, painted[axis] - margin), min(region.size[axis], painted[axis + 2] + margin)
        ends.append((low, high))
    lengths = [high - low for low, high in ends]
    scale = max(lengths[axis] / size[axis] for axis in (0, 1))
    for axis in (0, 1):
        wanted = min(region.size[axis], round(size[axis] * scale))
        low = ends[axis][0] - (wanted - lengths[axis]) // 2
        low = min(max(0, low), region.size[axis] - wanted)
        ends[axis] = (low, low + wanted)
    return ends[0][0], ends[1][0], ends[0][1], ends[1][1]


def _cells(painted: Any, cell: int) -> Any:
    """Where a square of ``cell`` x ``cell`` pixels has anything painted in it, all of the square."""
    height, width = painted.shape
    rows, columns = -(-height // cell), -(-width // cell)
    padded = np.zeros((rows * cell, columns * cell), bool)
    padded[:height, :width] = painted
    any_ = padded.reshape(rows, cell, columns, cell).any(axis=(1, 3))
    return any_.repeat(cell, 0).repeat(cell, 1)[:height, :width]


def _fitted(picture: Image.Image, size: tuple[int, int], resize: str) -> Image.Image:
    """A picture (RGB) or mask (L) at this size, the same way."""
    if picture.size == size:
        return picture
    kind = Image.Resampling.LANCZOS if picture.mode == "RGB" else Image.Resampling.BILINEAR
    if resize == "crop":
        return ImageOps.fit(picture, size, kind)
    if resize == "pad":
        return ImageOps.pad(picture, size, kind)
    return picture.resize(size, kind)


def own_size(pipe: Any) -> tuple[int, int]:
    """Width and height in pixels that a model makes by itself."""
    sample = getattr(pipe.unet.config, "sample_size", None) or 64
    height, width = (sample, sample) if isinstance(sample, int) else sample
    cell = int(getattr(pipe, "vae_scale_factor", 8))
    return width * cell, height * cell


def _channels(pipe: Any) -> int | None:
    return getattr(getattr(getattr(pipe, "unet", None), "config", None), "in_channels", None)


def pipeline_from(pipe: Any, init: InitRecipe | None) -> Any:
    """The pipeline that starts this way, around the same networks; the one that is given is not changed.

    Raises:
        NotApplicable: diffusers has none for this kind of pipeline.
    """
    if init is None or _takes(pipe, init.mask is not None):
        return pipe
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

    kind: Any = AutoPipelineForImage2Image if init.mask is None else AutoPipelineForInpainting
    try:
        # a scheduler of its own: constructors write into the settings of the one they get
        made = kind.from_pipe(pipe, scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config))
    except (ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise NotApplicable(
            "init",
            found=f"a {type(pipe).__name__} ({reason})",
            expected="a kind of pipeline that diffusers has image to image and inpainting for",
            fix="Give the pipeline of that kind itself.",
        ) from error
    made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return made


def _takes(pipe: Any, masked: bool) -> bool:
    """Whether a pipeline is itself of the kind that is wanted."""
    known = inspect.signature(type(pipe).__call__).parameters
    return {"image", "strength"} <= set(known) and ("mask_image" in known) == masked

"""A small world with exact ground truth, and a latent diffusion model trained on it, inside the package.

For demonstrations, tests and measurements without a network or a download. `scene` needs numpy and
Pillow (OpenCV for its edge map); `pipeline` needs diffusers and transformers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.embedded.scenes import LABELS, PALETTE, Scene, canny_map, scene

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from controlkit.embedded.guides import PictureDepth
    from controlkit.guidance.towers import NoisySegmenter, NoisyTowers
    from controlkit.module import ControlModule

__all__ = [
    "GUIDANCE_SCALE",
    "LABELS",
    "PALETTE",
    "STEPS",
    "Scene",
    "canny_map",
    "clip",
    "depth",
    "load",
    "names",
    "path",
    "pipeline",
    "scene",
    "segmentation",
]

STEPS = 20
"""Sampling steps of every published figure."""

GUIDANCE_SCALE = 2.0
"""Classifier-free guidance of every published figure; higher makes colours harsher and follows maps less."""

_MODELS = Path(__file__).parent / "models"
_NO_CONTROLS = ("base", "judge", "judge-clip", "clip", "segmentation")


def names() -> tuple[str, ...]:
    """Names of the control modules that `load` takes, such as `controlnet-canny`."""
    folders = (folder.name for folder in _MODELS.iterdir() if (folder / "config.json").exists())
    return tuple(sorted(name for name in folders if name not in _NO_CONTROLS))


def path(name: str) -> Path:
    """Folder of a shipped model: one of `names()`, `base`, `judge`, `judge-clip`, `clip` or `segmentation`.

    Raises:
        ValueError: If there is no model of that name.
    """
    known = (*_NO_CONTROLS, *names())
    if name not in known:
        raise ValueError(f"no embedded model is called {name!r}; there are {', '.join(known)}")
    return _MODELS / name


def pipeline(
    dtype: "torch.dtype | None" = None, device: "str | torch.device | None" = None
) -> "StableDiffusionPipeline":
    """The embedded base model: 128x128 pictures of solids on a floor, from captions such as those of `scene`.

    Twenty steps take about a second on a CPU. Captions outside the world's vocabulary
    (`controlkit.embedded.vocabulary.WORDS`) are read letter by letter and mean nothing to the model.

    Args:
        dtype: Of the weights; float32 by default.
        device: Where they go; the CPU by default.

    Returns:
        A plain pipeline; its weights are shared with nothing.
    """
    from diffusers import StableDiffusionPipeline

    from controlkit.embedded.texts import text_encoder

    pipe = StableDiffusionPipeline.from_pretrained(  # in float32
        path("base"), local_files_only=True, text_encoder=text_encoder(path("base") / "text_encoder")
    )
    pipe.set_progress_bar_config(disable=True)
    if dtype is not None:
        pipe.to(dtype)
    return pipe.to(device) if device is not None else pipe


def load(name: str, **options: Any) -> "ControlModule":
    """Load an embedded control module by its name.

    Args:
        name: One of `names()`.
        options: As for `controlkit.load`, such as `dtype` and `device`. The dtype is float32 unless it is
            given, as the pipeline's is: CPUs compute in the stored float16 many times slower.

    Raises:
        ParameterError: There is no control of that name.
    """
    import torch

    import controlkit

    if name not in names():
        raise controlkit.ParameterError(
            "name", found=repr(name), expected=" or ".join(map(repr, names())), fix="See ck.embedded.names()."
        )
    return controlkit.load(path(name), **{"dtype": torch.float32, **options})


def clip() -> "NoisyTowers":
    """The noise-aware CLIP of the embedded model: how well a caption fits a noisy latent.

    Trained on latents x_t (variance-preserving) at t in 0 … 999 and captions such as those of `scene`, by the
    contrastive objective. In float32 on the CPU, without gradients of its weights.

    Returns:
        Towers with `encode_image(x (B, 4, 16, 16), t (B,)) -> (B, 128)` and
        `encode_text(list of n captions) -> (n, 128)`, both of length 1.
    """
    from controlkit.embedded.guides import load_clip

    return load_clip(path("clip"))


def segmentation() -> "NoisySegmenter":
    """The noise-aware segmenter of the embedded model: which of `LABELS` is where in a noisy latent.

    Returns:
        A module from x_t (B, 4, 16, 16) and t (B,) to logits (B, 5, 64, 64); their log-softmax over the
        labels is ln p(label | x_t, t) at each place of the picture at half its size.
    """
    from controlkit.embedded.guides import load_segmentation

    return load_segmentation(path("segmentation"))


def depth() -> "PictureDepth":
    """A depth network for pictures of the embedded world: that of the judge, which measures depth too.

    Returns:
        A module from pixels (B, 3, 128, 128) in [-1, 1] to inverse depth (B, 64, 64), near is large.
    """
    from controlkit.embedded.guides import load_depth

    return load_depth(path("judge"))

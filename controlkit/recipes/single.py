"""Whole models in one checkpoint file, as the original code saved them: denoiser, autoencoder, text encoder.

Such a file holds weights alone. What else a pipeline needs (configs, the tokenizer's words, the scheduler's
settings) is taken from a folder in diffusers layout: one that the recipe names, one beside the file, or that
of the base model in the hub's cache. The weights go through diffusers' ``from_single_file``.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.errors import ControlKitError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from controlkit.recipes.images import Files
    from controlkit.recipes.sources import ModelRecipe

SUFFIXES = (".safetensors", ".ckpt")
_UNET, _VAE = "model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.weight"
_TEXT = {
    "sdxl": "conditioner.embedders.1.model.",
    "sd2": "cond_stage_model.model.",
    "sd1": "cond_stage_model.transformer.",
}
_REPOSITORIES = {
    ("sd1", False): "stable-diffusion-v1-5/stable-diffusion-v1-5",
    ("sd1", True): "stable-diffusion-v1-5/stable-diffusion-inpainting",
    ("sd2", False): "stabilityai/stable-diffusion-2-1",
    ("sd2", True): "stabilityai/stable-diffusion-2-inpainting",
    ("sdxl", False): "stabilityai/stable-diffusion-xl-base-1.0",
    ("sdxl", True): "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
}
"""Base model, and whether it fills masks: where its configs are (diffusers' own table, 0.42.1)."""

_CONFIGS = ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json")
_PATTERNS = ["*.json", "*/*.json", "*/*.txt"]
_MAX_JSON = 4 << 20
_MAX_HEADER = 16 << 20


def base_of(path: Path) -> tuple[str, bool] | None:
    """What a file is: ``sd1``, ``sd2`` or ``sdxl``, and whether it fills masks; None: no whole model.

    Names and shapes are read, no weights; of a file that has not changed only once.
    """
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return None
    status = path.stat()
    try:
        return _base_of(str(path), status.st_mtime_ns, status.st_size)
    except ControlKitError:
        return None


@lru_cache(maxsize=4096)
def _base_of(path: str, _changed: int, _size: int) -> tuple[str, bool] | None:
    if path.lower().endswith(".safetensors"):
        return _known(_header(path))
    from controlkit.checkpoints.sources import open_source

    with open_source(path) as opened:
        return _known(opened.weights.shapes)


def _header(path: str) -> dict[str, Any]:
    """Shapes by name of a safetensors file, read without torch; empty where it is none."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(length)) if length <= _MAX_HEADER else {}
        return {name: entry["shape"] for name, entry in entries.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _known(shapes: Mapping[str, Any]) -> tuple[str, bool] | None:
    if _UNET not in shapes or _VAE not in shapes:
        return None
    for base, prefix in _TEXT.items():
        if any(name.startswith(prefix) for name in shapes):
            return base, tuple(shapes[_UNET])[1:2] == (9,)
    return None


def pipeline_of_file(path: Path, model: ModelRecipe, files: Files, dtype: Any) -> Any:
    """The text-to-image pipeline of a whole model in one file.

    Args:
        path: The file.
        model: The model's part of the recipe.
        files: Where its ``config`` is looked for.
        dtype: Of the weights; None: float32.

    Raises:
        CheckpointError: The file is damaged, unsafe, or no checkpoint.
        RecipeError: It is no whole model, or what belongs to it is missing; the message says what and where.
    """
    from controlkit.checkpoints.sources import open_source

    if model.variant is not None:
        raise RecipeError("model.variant", found="one file", expected="none with it", fix="Remove it.")
    with open_source(str(path)) as opened:
        found = _known(opened.weights.shapes)
    if found is None:
        raise RecipeError(
            "model",
            found=f"{path.name}, which is no whole model",
            expected="denoiser, autoencoder and text encoder of Stable Diffusion 1, 2 or XL in one file",
            fix="controlkit inspect says what it is; control modules belong to controls.",
        )
    folder = _configs(path, found, model, files)
    import diffusers
    import torch

    kind: Any = (
        diffusers.StableDiffusionXLPipeline if found[0] == "sdxl" else diffusers.StableDiffusionPipeline
    )
    extra = {} if found[0] == "sdxl" else {"safety_checker": None, "requires_safety_checker": False}
    try:
        pipe = kind.from_single_file(
            str(path), config=str(folder), torch_dtype=dtype or torch.float32, local_files_only=True, **extra
        )
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        if "meta tensor" in reason:
            reason = "some of the weights are not in the file"
        raise RecipeError(
            "model",
            found=f"{path.name}, which does not fit the configs in {folder.name} ({reason})",
            expected="those of its base model",
            fix="Name the right ones: config in the recipe, --model-config on the command line.",
        ) from error
    _refuse_missing(pipe, path)
    return pipe


def _refuse_missing(pipe: Any, path: Path) -> None:
    """Refuse a model that has places without weights."""
    import torch

    for part, network in pipe.components.items():
        if isinstance(network, torch.nn.Module):
            absent = next((name for name, tensor in network.named_parameters() if tensor.is_meta), None)
            if absent is not None:
                raise RecipeError(
                    "model",
                    found=f"{path.name} without {part}.{absent}",
                    expected="all weights of the model",
                    fix="The file is not whole, or the configs are those of another model.",
                )


def _configs(path: Path, found: tuple[str, bool], model: ModelRecipe, files: Files) -> Path:
    """The folder in diffusers layout that has what the file does not."""
    if model.config is not None:
        scheme, _, name = model.config.partition(":")
        folder = _snapshot(name, model.revision) if scheme == "hub" else files.weights(model.config)
        if folder is not None and not (absent := _absent(folder, found[0])):
            return folder
        missing = "the repository" if folder is None else ", ".join(_absent(folder, found[0]))
        raise _needed(f"{model.config} without {missing}", found)
    beside = path.with_suffix("")
    if (beside / "model_index.json").is_file():
        if absent := _absent(beside, found[0]):
            raise _needed(f"the folder {beside.name} beside the file without {', '.join(absent)}", found)
        return beside
    folder = _snapshot(_REPOSITORIES[found], None)
    if folder is None or _absent(folder, found[0]):
        raise _needed(f"{path.name} alone", found)
    return folder


def _absent(folder: Path, base: str) -> list[str]:
    """What of the files that are needed is not in a folder."""
    texts = ("", "_2") if base == "sdxl" else ("",)
    needed = [*_CONFIGS, *(f"text_encoder{which}/config.json" for which in texts)]
    absent = [name for name in ("model_index.json", *needed) if not (folder / name).is_file()]
    for which in texts:
        words = folder / f"tokenizer{which}"
        whole = all((words / name).is_file() for name in ("vocab.json", "merges.txt"))
        if not whole and not (words / "tokenizer.json").is_file():
            absent.append(f"tokenizer{which}/vocab.json and merges.txt")
    return absent


def _snapshot(repository: str, revision: str | None) -> Path | None:
    """A repository's configs: from the hub's cache, or fetched where the network may be used; else None."""
    try:
        import huggingface_hub as hub
    except ImportError:
        return None
    for local in (True, False):
        try:
            place = hub.snapshot_download(
                repository, revision=revision, allow_patterns=_PATTERNS, local_files_only=local
            )
        except Exception:  # not there, no network, or none allowed: the caller says what is needed
            continue
        if (Path(place) / "tokenizer").is_dir() or not local:
            return Path(place)
    return None


def _needed(found: str, base: tuple[str, bool]) -> RecipeError:
    second = " (and text_encoder_2, tokenizer_2)" if base[0] == "sdxl" else ""
    return RecipeError(
        "model",
        found=found,
        expected="a folder in diffusers layout with model_index.json and the configs of unet, vae, "
        f"text_encoder, scheduler and the files of tokenizer{second}; no weights",
        fix=f"Take them from {_REPOSITORIES[base]} into a folder beside the file, with its name less the "
        "suffix, or name a folder as config (--model-config).",
    )


def side_of(path: Path) -> int | None:
    """Pixels of a side that a file's model makes by itself; None: no whole model."""
    found = base_of(path)
    if found is None:
        return None
    config = path.with_suffix("") / "unet" / "config.json"
    try:
        sample = json.loads(config.read_text())["sample_size"] if config.stat().st_size < _MAX_JSON else 0
        blocks = json.loads((path.with_suffix("") / "vae" / "config.json").read_text())["block_out_channels"]
        return int(sample) * 2 ** (len(blocks) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return {"sd1": 512, "sd2": 768, "sdxl": 1024}[found[0]] if not found[1] else 512

"""The image encoders of the web UI's folders, and which of them a module reads: what image prompts need.

Image prompts (IP-Adapter), content (Uni-ControlNet) and styles are read from what a CLIP vision model says of
a picture. Nothing is fetched: it lies in a folder, in transformers' layout or as one of the single files that
sd-webui-controlnet keeps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from controlkit.checkpoints.sources import open_source
from controlkit.errors import ControlKitError, MissingExtra, ParameterError
from controlkit.module import ControlModule

AUTOMATIC = "Automatic"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

_PUBLISHED: dict[int, dict[str, Any]] = {
    1024: {"intermediate_size": 4096, "hidden_act": "quick_gelu"},
    1280: {"intermediate_size": 5120, "hidden_act": "gelu"},
    1664: {"intermediate_size": 8192, "hidden_act": "gelu"},
}
"""CLIP ViT-L/14, OpenCLIP ViT-H/14 and ViT-bigG/14 by width: what shapes do not tell. All have 16 heads."""


def listed(folders: Sequence[Path]) -> dict[str, Path]:
    """Every encoder of some folders, by its name within its folder; the first folder wins."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            continue
        for path in sorted(folder.rglob("*")):
            layout = path.is_dir() and (path / "config.json").is_file()
            single = path.suffix.lower() in SUFFIXES and not (path.parent / "config.json").is_file()
            if layout or (single and path.is_file()):
                found.setdefault(path.relative_to(folder).as_posix(), path)
    return found


def reads(module: ControlModule) -> tuple[str, int] | None:
    """What a module reads of an encoder (``pooled``, ``last``, ``penultimate``), and how wide; or None."""
    from controlkit.adapters.ip_adapter import IPAdapter
    from controlkit.adapters.style_adapter import StyleAdapter
    from controlkit.adapters.uni_controlnet import UniControlNet

    if isinstance(module, IPAdapter):
        return module.config.reads, module.config.embedding_dim
    if isinstance(module, StyleAdapter):
        return "last", module.config.width
    if isinstance(module, UniControlNet) and module.has_tokens:
        return "pooled", module.token_dim
    return None


def encoder_of(name: str, module: ControlModule, folders: Sequence[Path]) -> Any:
    """The encoder that a unit names for a module, or with ``Automatic`` the first that fits it.

    Args:
        name: Of the list, or ``Automatic``.
        module: What will read the picture.
        folders: Where encoders lie.

    Raises:
        ParameterError: There is none that fits; the message says what is needed and where it may lie.
        MissingExtra: transformers is not installed.
    """
    part, width = reads(module) or ("pooled", 0)
    known = listed(folders)
    if name not in ("", AUTOMATIC):
        if name not in known:
            raise ParameterError(
                "encoder", found=repr(name)[:80], expected=f"one of {', '.join([AUTOMATIC, *known])}"
            )
        return _loaded(known[name])
    for path in known.values():
        inner, projected = _widths(path)
        if (projected if part == "pooled" else inner) == width:
            return _loaded(path)
    places = ", ".join(map(str, folders))
    raise ParameterError(
        "encoder",
        found=f"{len(known)} image encoders, none of which fits" if known else "none",
        expected=f"a CLIP vision model {width} wide ({part}) in {places}",
        fix="Put the encoder that this module was trained with there: the folder, or the single file.",
    )


def _loaded(path: Path) -> Any:
    if path.is_dir():
        return path  # transformers reads it, once
    state = path.stat()
    return _single(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=2)
def _single(path: Path, _time: int, _size: int) -> Any:
    try:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    except ImportError as error:
        raise MissingExtra(
            "transformers", found="not installed", fix="Run: pip install transformers."
        ) from error
    with open_source(path) as opened:
        shapes = opened.weights.shapes
        config: Any = CLIPVisionConfig(**_config(shapes, path))
        model: Any = CLIPVisionModelWithProjection(config)
        wanted = set(model.state_dict())
        state = {name: value.float() for name, value in opened.weights.read([*wanted & set(shapes)])}
    missing = sorted(name for name in wanted - set(state) if not name.endswith("position_ids"))
    if missing:
        raise ParameterError(
            "encoder", found=f"{path.name} without {missing[0]}", expected="a whole CLIP vision model"
        )
    model.load_state_dict(state, strict=False)
    return model.eval().requires_grad_(False)


def _config(shapes: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    patch = shapes.get("vision_model.embeddings.patch_embedding.weight")
    places = shapes.get("vision_model.embeddings.position_embedding.weight")
    projection = shapes.get("visual_projection.weight")
    if patch is None or places is None or projection is None or patch[0] not in _PUBLISHED:
        raise ParameterError(
            "encoder",
            found=f"{path.name}, of another layout or width",
            expected="CLIP ViT-L/14, ViT-H/14 or ViT-bigG/14 with projection, by transformers' names",
            fix="Give a folder with its config.json.",
        )
    layers = {name.split(".")[3] for name in shapes if name.startswith("vision_model.encoder.layers.")}
    return {
        "hidden_size": patch[0],
        "patch_size": patch[2],
        "image_size": round((places[0] - 1) ** 0.5) * patch[2],
        "projection_dim": projection[0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": 16,
        **_PUBLISHED[patch[0]],
    }


def _widths(path: Path) -> tuple[int, int]:
    """Inner and projected width of an encoder, read without loading it; zeros where it is none."""
    try:
        if path.is_dir():
            config = json.loads((path / "config.json").read_text(encoding="utf-8"))
            config = config.get("vision_config", config) | {
                name: config[name] for name in ("projection_dim",) if name in config
            }
            return int(config["hidden_size"]), int(config["projection_dim"])
        with open_source(path, header_only=True) as opened:
            config = _config(opened.weights.shapes, path)
            return config["hidden_size"], config["projection_dim"]
    except (ControlKitError, ValueError, KeyError, AttributeError, OSError):
        return 0, 0

"""The text encoder of the embedded models, read so that every release of transformers reads it.

The files name its weights as transformers 5.24 does, without ``text_model.`` before them. Older releases look
for that prefix, find no weight, and go on with random ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPTextModel

PREFIX = "text_model."


def text_encoder(folder: Path) -> CLIPTextModel:
    """The encoder of a folder in transformers' layout, in float32.

    Args:
        folder: With ``config.json`` and ``model.safetensors``, under names with or without the prefix.

    Raises:
        RuntimeError: Weights are missing, or left over.
    """
    from safetensors.torch import load_file
    from transformers import CLIPTextConfig, CLIPTextModel

    model = CLIPTextModel(CLIPTextConfig.from_pretrained(folder))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict(
        renamed({name: weight.float() for name, weight in weights.items()}, model.state_dict())
    )
    return model.eval()


def renamed(weights: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Weights by the names that a model has for them: with the prefix, or without it.

    Args:
        weights: By the names in the file.
        wanted: The names in the model. What has no place there keeps its name.
    """
    places = {name.replace(PREFIX, ""): name for name in wanted}
    return {places.get(name.replace(PREFIX, ""), name): weight for name, weight in weights.items()}

"""Where weights come from: the sources that recipes name, of models and of control modules."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from controlkit.errors import ParameterError
from controlkit.recipes.rules import Digest, Options, Plain, Text

_SOURCE = re.compile(r"(embedded|hub|file|plugin):[^\x00-\x1f]+")


def _check_source(value: str) -> str:
    if not _SOURCE.fullmatch(value):
        raise ParameterError(
            "source",
            found=repr(value[:80]),
            expected="embedded:NAME, hub:OWNER/NAME, file:PATH or plugin:NAME",
            fix="A path is relative to the folder of the recipe, or to the folder of models.",
        )
    return value


Source = Annotated[
    str,
    Field(strict=True, description="embedded:NAME, hub:OWNER/NAME, file:PATH or plugin:NAME"),
    AfterValidator(_check_source),
]


class ModelRecipe(Plain):
    """The text-to-image model.

    Args:
        source: ``embedded:base``, ``hub:OWNER/NAME``, ``file:FOLDER``, or ``file:NAME`` of a whole model in
            one checkpoint file.
        revision: Branch, tag or commit on the hub.
        variant: File variant on the hub, such as ``fp16``.
        dtype: In what it computes; None: as the source has it (one file: float32).
        config: For one file: ``file:FOLDER`` or ``hub:OWNER/NAME`` in diffusers layout with the configs and
            the tokenizer. None: the folder beside the file with its name less the suffix, or the hub's cache.
    """

    source: Source = "embedded:base"
    revision: Text | None = None
    variant: Text | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    config: Source | None = None


class ModuleRecipe(Plain):
    """The weights of a control.

    Args:
        source: ``embedded:NAME``, ``hub:OWNER/NAME``, ``file:PATH``, or ``plugin:NAME`` (see
            `controlkit.plugins`).
        kind: As `controlkit.load` takes it.
        subfolder: Folder inside the source.
        weight_name: File inside the source.
        revision: Branch, tag or commit on the hub.
        config: What shapes cannot tell, as `controlkit.load` takes it.
        digest: SHA-256 of the weight file; other weights are refused.
    """

    source: Source
    kind: Text | None = None
    subfolder: Text | None = None
    weight_name: Text | None = None
    revision: Text | None = None
    config: Options | None = None
    digest: Digest | None = None


def as_module(value: object) -> object:
    """A plain string as the source that it is."""
    return {"source": value} if isinstance(value, str) else value

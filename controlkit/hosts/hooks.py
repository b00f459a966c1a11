"""Hooks that leave no trace: outside compiled graphs, and never copied with the model."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from controlkit.errors import StateError


class Hook:
    """A hook that runs outside compiled graphs, and that refuses to be copied with the model."""

    def __init__(self, function: Any) -> None:
        self._function: Any = torch.compiler.disable(function)  # pyright: ignore[reportUnknownMemberType]

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise StateError(
            "pipeline",
            found="controls attached while it is being pickled or copied",
            expected="a pipeline without",
            fix="Leave the with block (or call run.detach()) first.",
            code="CK-R11",
        )

"""ONNX files into sessions of onnxruntime: one file each, with the inputs and outputs that are needed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from controlkit.errors import CheckpointCorrupt, DeviceMismatch, FileError, KindMismatch, NonFinite
from controlkit.extras import needed

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

REQUIREMENT = "onnxruntime"

Shape = tuple[int | None, ...]
"""None: any number."""


def session(
    path: Path,
    device: torch.device,
    detector: str,
    *,
    given: Mapping[str, Shape],
    answers: Mapping[str, Shape],
) -> Any:
    """A network of an ONNX file, ready to run; nothing but the file is read.

    Args:
        path: The file.
        device: A CPU or a CUDA device.
        detector: Its name, for errors.
        given: Shapes of the inputs in order, float32; their names are free.
        answers: Shapes of the outputs in order, float32; their names are free.

    Raises:
        FileError: The file cannot be read.
        CheckpointCorrupt: Damaged, no ONNX, or it keeps its weights in another file.
        KindMismatch: Other inputs or outputs.
        DeviceMismatch: onnxruntime as installed does not run there.
        MissingExtra: onnxruntime is not installed.
    """
    import torch

    runtime = needed("onnxruntime", "this detector needs onnxruntime", REQUIREMENT)
    what = f"{detector}: {path}"
    providers = _providers(runtime, device, what)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(what, found=str(error), expected="a readable file") from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    # Weights in other files are looked for in a folder that has none, so that a model cannot name others.
    key = "session.model_external_initializers_file_folder_path"
    with tempfile.TemporaryDirectory() as empty:
        options.add_session_config_entry(key, empty)
        try:
            made = runtime.InferenceSession(data, options, providers=providers)
        except Exception as error:
            raise CheckpointCorrupt(
                what,
                found=f"{len(data)} bytes that onnxruntime refuses ({' '.join(str(error).split())[:200]})",
                expected="a whole ONNX network in one file",
                fix="Download the file again.",
            ) from error
    for kind, wanted, there in (
        ("inputs", given, made.get_inputs()),
        ("outputs", answers, made.get_outputs()),
    ):
        if not _fits(wanted, there):
            raise KindMismatch(
                what,
                found=f"{kind} {_said({each.name[:40]: each.shape for each in there})}",
                expected=_said(
                    {name: ["N" if n is None else n for n in shape] for name, shape in wanted.items()}
                ),
                fix="Give the file that was published for this detector.",
            )
    return made


def run(made: Any, values: NDArray[np.float32], what: str) -> list[Any]:
    """Its answers, all finite.

    Raises:
        NonFinite: NaN or infinity among them.
        CheckpointCorrupt: The network fails.
    """
    import numpy as np

    try:
        answers = made.run(None, {made.get_inputs()[0].name: values})
    except Exception as error:
        raise CheckpointCorrupt(
            what,
            found=f"a network that fails ({' '.join(str(error).split())[:200]})",
            expected="one that answers",
            fix="Download the file again.",
        ) from error
    if not all(np.isfinite(answer).all() for answer in answers):
        raise NonFinite(
            what,
            found="weights that give no finite answer",
            expected="those that were published",
            fix="Check that they are this detector's.",
        )
    return answers


def _providers(runtime: Any, device: torch.device, what: str) -> list[Any]:
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    there = runtime.get_available_providers()
    if device.type != "cuda" or "CUDAExecutionProvider" not in there:
        raise DeviceMismatch(
            what,
            found=f"{device}, where onnxruntime as installed does not run ({', '.join(there)[:120]})",
            expected="cpu, or cuda with onnxruntime-gpu",
            fix="Give device='cpu', or install onnxruntime-gpu in place of onnxruntime.",
        )
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]


def _fits(wanted: Mapping[str, Shape], there: list[Any]) -> bool:
    """Where a network leaves a length open it fits: what it then gives is checked by who asks."""
    return len(wanted) == len(there) and all(
        one.type == "tensor(float)"
        and len(one.shape) == len(shape)
        and all(n is None or not isinstance(m, int) or n == m for n, m in zip(shape, one.shape, strict=True))
        for shape, one in zip(wanted.values(), there, strict=True)
    )


def _said(shapes: Mapping[str, list[Any]]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())[:200]

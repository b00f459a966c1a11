"""Networks of transformers: found, read and run here, with its own processors, at the photograph's size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from controlkit.errors import (
    CheckpointCorrupt,
    ControlKitError,
    DownloadError,
    FileError,
    Incomplete,
    KindMismatch,
    NonFinite,
    ParameterError,
)
from controlkit.extras import needed
from controlkit.preprocessors.base import Pixels
from controlkit.preprocessors.networks import Networked

if TYPE_CHECKING:
    import torch

REQUIREMENT = "transformers torchvision"
"""transformers' image processors compute with torchvision."""
SMALLEST, SLENDEREST = 8, 16
"""Least side in pixels, and greatest ratio of sides, that processors can bring to their networks' sizes."""

_UNUSED = re.compile(r"(^|\.)criterion\.|\.num_batches_tracked$|fusion_stage\.layers\.0\.residual_layer1\.")
"""Weights that no answer depends on, and that published files lack: of losses, counters, and the residual of
DPT's first fusion, which has none (huggingface/transformers#28292)."""


class Loaded(NamedTuple):
    """A network with the processor that was published with it."""

    model: Any
    processor: Any


class Kind(NamedTuple):
    """What a detector accepts as its network.

    Args:
        model: The class of transformers that reads it.
        types: ``model_type`` of its config; empty: whatever that class reads.
        answers: The tensors of its output that are used.
    """

    model: str
    types: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Pretrained(Networked):
    """A detector that runs a network of transformers.

    A photograph with a side of less than 8 pixels, or of less than a sixteenth of the other, is continued
    over its right and lower edge, and the map cut back.

    Attributes:
        kind: What its network is.
    """

    extra = REQUIREMENT
    kind: ClassVar[Kind]

    def read(self, device: torch.device) -> Any:
        found = self.loaded(self.weights, self.kind, device, self.revision)
        self.check(found.model)
        return found

    def processor(self, where: str, config: Any, options: dict[str, Any]) -> Any:
        """The processor of a network; ``options`` are those of ``from_pretrained``."""
        return needed_transformers().AutoImageProcessor.from_pretrained(where, **options)

    def check(self, model: Any) -> None:
        """Refuse a network of the right kind whose answer this detector cannot draw.

        Raises:
            CheckpointError: It cannot.
        """

    def loaded(self, weights: str, kind: Kind, device: torch.device, revision: str = "") -> Loaded:
        """Read a network of transformers' layout with its processor.

        Raises:
            CheckpointError: It is not there, not complete, or another kind of network.
            MissingExtra: transformers or torchvision is not installed.
        """
        import torch

        transformers = needed_transformers()
        what, where = f"{self.name}: {weights}", _located(self.name, weights)
        options = {
            "revision": revision or "main",
            "local_files_only": self.local_files_only,
            "trust_remote_code": False,
        }
        try:
            config = transformers.AutoConfig.from_pretrained(where, **options)
            if kind.types and config.model_type not in kind.types:
                raise KindMismatch(
                    what,
                    found=f"a network of type {config.model_type!r:.80}",
                    expected=" or ".join(map(repr, kind.types)),
                    fix=f"Give weights that {self.name} runs, or use the detector for these.",
                )
            with torch.random.fork_rng(devices=[]):
                processor = self.processor(where, config, options)
                model, told = getattr(transformers, kind.model).from_pretrained(
                    where, dtype=torch.float32, output_loading_info=True, **options
                )
        except ControlKitError:
            raise
        except Exception as error:
            raise _refused(what, error) from error
        missing = sorted(key for key in told["missing_keys"] if not _UNUSED.search(key))
        missing += sorted(str(each[0]) for each in told["mismatched_keys"])
        if missing:
            raise Incomplete(
                what,
                found=f"{len(missing)} weights missing or of another shape, such as {missing[0]!r:.80}",
                expected=f"all weights of a {type(model).__name__}",
                fix="Check that it is this kind of network, and complete.",
            )
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NonFinite(
                    what,
                    found=f"{name!r:.80}, which has NaN or infinity in it",
                    expected="finite weights",
                    fix="Download it again.",
                )
        model.eval().requires_grad_(False).to(device)
        model.register_forward_hook(lambda _model, _given, answer: _finite(answer, kind.answers, what))
        return Loaded(model, processor)

    def inputs(self, photos: list[Pixels], loaded: Loaded, **more: Any) -> Any:
        """What the processor makes of the photographs, on the network's device."""
        return loaded.processor(images=list(photos), return_tensors="pt", **more).to(loaded.model.device)

    def answer(self, network: Any, photos: list[Pixels]) -> list[Any]:
        """What the network says of photographs of one size, in one pass: (H, W, ...) each."""
        raise NotImplementedError

    def shown(self, network: Any, answer: Any) -> Pixels:
        """An answer, cut to the photograph's size, as a map."""
        raise NotImplementedError

    def detect(self, photo: Pixels) -> Pixels:
        return self.detect_many([photo])[0]

    def detect_many(self, photos: list[Pixels]) -> list[Pixels]:
        import torch

        if not photos:
            return []
        height, width = photos[0].shape[:2]
        least = max(SMALLEST, -(-max(height, width) // SLENDEREST))
        more = ((0, max(0, least - height)), (0, max(0, least - width)), (0, 0))
        network, place = self.network(), self._place().type
        with torch.inference_mode(), torch.autocast(place, torch.float16, enabled=self.half):
            answers = self.answer(network, [np.pad(photo, more, mode="edge") for photo in photos])
            maps = [self.shown(network, answer[:height, :width]) for answer in answers]
        return [np.ascontiguousarray(one) for one in maps]


def needed_transformers() -> Any:
    """The module ``transformers``, with what its image processors need.

    Raises:
        MissingExtra: One of the two is not installed.
    """
    needed("torchvision", "this detector needs torchvision", REQUIREMENT)
    return needed("transformers", "this detector needs transformers", REQUIREMENT)


def _located(detector: str, weights: str) -> str:
    """A folder's path, or a hub id, as transformers takes it."""
    from controlkit.checkpoints.sources import is_hub_id

    if not weights:
        raise ParameterError(f"{detector}: weights", found="nothing", expected="a hub id or a folder")
    try:
        place = Path(weights).expanduser()
        if place.is_dir():
            return str(place)
        is_file = place.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or no such user
        is_file = False
    if is_file or not is_hub_id(weights):
        raise FileError(
            f"{detector}: {weights}",
            found="a file" if is_file else "nothing there",
            expected="a folder with config.json, preprocessor_config.json and the weights, or a hub id",
            fix="Give the folder." if is_file else "Check the path.",
        )
    return weights


def _finite(answer: Any, names: tuple[str, ...], what: str) -> Any:
    """A network's output with its used tensors in float32, none of them without a meaning."""
    import torch

    for name in names:
        answer[name] = answer[name].float()
        if not bool(torch.isfinite(answer[name]).all()):
            raise NonFinite(
                what,
                found=f"{name} with NaN or infinity in it",
                expected="a finite answer",
                fix="Give half=False, if it is not; otherwise check the weights.",
            )
    return answer


def _refused(what: str, error: Exception) -> ControlKitError:
    """Why transformers did not read it."""
    cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    chain: list[BaseException] = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(before)
    names = {kind.__name__ for each in chain for kind in type(each).__mro__}
    if names & {"HfHubHTTPError", "LocalEntryNotFoundError", "OfflineModeIsEnabled", "HFValidationError"}:
        return DownloadError(
            what,
            found=cause,
            expected="a repository that can be read",
            fix="Check the name, the revision and the connection.",
        )
    if isinstance(error, ImportError):
        return CheckpointCorrupt(what, found=f"a network that needs more than is installed ({cause})")
    if isinstance(error, OSError):
        return FileError(
            what,
            found=cause,
            expected="a folder or repository with config.json, preprocessor_config.json and the weights",
            fix="Check that all three are there.",
        )
    return CheckpointCorrupt(
        what, found=f"something that transformers cannot read ({cause})", fix="Check that it is complete."
    )

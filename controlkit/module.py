"""The base of everything `controlkit.load` returns: a network that can be bound to what it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from controlkit.errors import Unsupported

if TYPE_CHECKING:
    from controlkit.binding import BoundMap
    from controlkit.contracts import Control
    from controlkit.strength import Strength


class ControlModule(nn.Module, ABC):
    """Weights of one control. Loaded once, holds no image, is not changed by use.

    Attributes:
        kind: What it is: ``controlnet``, ``t2i-adapter``, …
        source: Where the weights came from (hub id, path, or ``state dict``), for reports and recipes.
        digest: SHA-256 of the weight file, or None when they did not come from a file.
        condition: What its maps show (``canny``, ``depth``, …) where that is known, for reports.
        notes: What was unusual about the weights, such as tensors that were not used.
    """

    kind: ClassVar[str]
    source: str = ""
    digest: str | None = None
    condition: str | None = None
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def base(self) -> str:
        """The base model it was made for: ``sd1``, ``sd2``, ``sdxl``, ``embedded`` or ``other``."""

    @abstractmethod
    def on(self, *args: Any, **kwargs: Any) -> Control:
        """Bind to what it reads, a strength and a schedule; each kind names its own arguments."""

    @abstractmethod
    def config_entries(self) -> dict[str, Any]:
        """The entries of a config.json from which `controlkit.load` builds it again."""

    def original_state(self) -> dict[str, Tensor]:
        """Its weights under the names of the implementation it comes from, for the web UIs.

        Raises:
            Unsupported: That layout cannot hold it; the message says why.
        """
        raise Unsupported(
            f"a {self.kind}",
            found="layout='original'",
            expected="layout='diffusers'",
            fix="Its folder layout is the only one that it is written in.",
        )

    def save(self, place: str | Path, *, layout: Literal["diffusers", "original"] = "diffusers") -> Path:
        """Write the weights so that a crash or a full disk leaves what was there as it was.

        Args:
            place: For ``diffusers`` a folder, which gets ``config.json``, the weights as safetensors and a
                model card; for ``original`` a file whose name ends in ``.safetensors``.
            layout: ``diffusers``, which `controlkit.load` reads for every kind and diffusers itself where
                it has the kind; or ``original``, the names that the web UIs read.

        Returns:
            The folder or file.

        Raises:
            SaveError: It could not be written.
            Unsupported: The original layout cannot hold it.
        """
        from controlkit.checkpoints.save import save_module, save_original

        return save_module(self, place) if layout == "diffusers" else save_original(self, place)


class MapModule(ControlModule):
    """A control that reads one map per picture: its `on` is the same for every kind."""

    @property
    @abstractmethod
    def map_channels(self) -> int:
        """Channels of the maps it reads: 3, or 1 for some line maps."""

    @abstractmethod
    def bind(self, bound: BoundMap, strength: Strength) -> Control:
        """The control for a map that was read and a strength that was checked."""

    def on(
        self,
        image: Any,
        /,
        *,
        detect: str | None = None,
        detect_options: Mapping[str, Any] | None = None,
        scale: float | Callable[[float], float] | Sequence[tuple[float, float]] = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        mode: Literal["balanced", "prompt", "control"] = "balanced",
        block_scales: Sequence[float] | None = None,
        mask: Any = None,
        resize: Literal["stretch", "crop", "pad"] = "stretch",
        channel_order: Literal["rgb", "bgr"] | None = None,
        condition: str | None = None,
    ) -> Control:
        """Bind to a control map, a strength and a schedule: what `controlkit.attach` takes.

        Args:
            image: PIL, numpy (H, W, 3) uint8 or float in [0, 1], torch (batch, 3, H, W) in [0, 1], or a
                list with one entry per prompt.
            detect: A detector's name, to make the map from a photo; None: the image is the map.
            detect_options: For the detector; also ``size`` and ``resolution`` of `controlkit.preprocess`.
            scale: A number, a function of the fraction done in [0, 1], or points ``(fraction, scale)``.
            start: Fraction of the run at which it begins to act.
            end: Fraction at which it ends.
            mode: ``balanced``; ``prompt`` (weaker away from the middle block); ``control`` (acts on the
                conditional half alone).
            block_scales: One factor per residual, in the U-Net's order, the middle last.
            mask: A region in [0, 1], 1 where the control acts.
            resize: How a map of another shape is fitted.
            channel_order: ``bgr`` where the weights were trained on that order and do not say so.
            condition: What the module's maps show, such as ``canny``, for `controlkit.check_map`, which warns
                of a map that cannot be right. None: what the weights say; where they do not, nothing is
                checked.

        Raises:
            HintError: The image or the mask cannot be used.
            ParameterError: An option out of its range.

        Warns:
            MapDoubted: The map looks like something else than ``condition``; the run's report has it too.
        """
        from controlkit.binding import make_strength, read_map

        bound = read_map(
            image,
            channels=self.map_channels,
            detect=detect,
            detect_options=detect_options,
            resize=resize,
            channel_order=channel_order,
            condition=condition or self.condition,
            base=self.base,
        )
        return self.bind(bound, make_strength(scale, start, end, mode, block_scales, mask))

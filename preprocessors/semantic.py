"""What networks of transformers that name every pixel have in common: labels, and their palette's colours."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from controlkit.preprocessors.base import Pixels, option
from controlkit.preprocessors.labels import CHOICES, palette_of
from controlkit.preprocessors.pretrained import Loaded, Pretrained


@dataclass(frozen=True)
class Semantic(Pretrained):
    """A network with an answer for each label, brought to the photograph's size by its own processor.

    The processor holds a number for each label and pixel at that size: 1.2 GiB for ADE20K's labels on two
    million pixels. ``resolution=512`` of `preprocess` looks at less.
    """

    family = "seg"
    meaning = "the kind of each pixel, in colours of ADE20K's or COCO's palette"

    palette: str = option(
        "auto",
        choices=CHOICES,
        meaning="colours: those that the labels' names tell, or by number without a meaning (plain)",
    )

    def check(self, model: Any) -> None:
        self._colours(model)

    def answer(self, network: Loaded, photos: list[Pixels]) -> list[Any]:
        outputs = network.model(**self.inputs(photos, network, **self.asked(len(photos))))
        found: list[Any] = []
        for i, photo in enumerate(photos):  # one by one: the processor keeps every label's plane of all
            one = SimpleNamespace(**{name: outputs[name][i : i + 1] for name in self.kind.answers})
            (labels,) = network.processor.post_process_semantic_segmentation(
                one, target_sizes=[photo.shape[:2]]
            )
            found.append(labels.cpu().numpy())
        return found

    def asked(self, count: int) -> dict[str, Any]:
        """What the processor needs beside so many photographs."""
        return {}

    def shown(self, network: Loaded, answer: Any) -> Pixels:
        return self._colours(network.model)[answer]

    def _colours(self, model: Any) -> Any:
        return palette_of(model.config.id2label, self.palette, f"{self.name}: {self.weights}")

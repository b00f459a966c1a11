"""Stand-ins for the networks of transformers: whatever they are shown, they answer with the truth.

Each comes with the processor of its kind, which shows it the picture and reads its answer.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from controlkit.preprocessors.labels import NAMES
from controlkit.preprocessors.pretrained import Loaded
from format_pictures.still_life import KINDS, SIDE, still_life

CLASSES = {"floor": "floor", "cube": "box", "sphere": "ball", "cylinder": "column", "cone": "tent"}
"""What each kind of solid is called among ADE20K's labels."""
LABELS = {i: min(names) for i, names in enumerate(NAMES["ade20k"])}
SURE = 10.0
"""The logit of what is there; of what is not there, as much below none."""
COARSE = 4
"""Pixels of what these networks are shown to one of their answer, along each side."""


class Truth:
    """A network of transformers that computes nothing, but has what is asked of one."""

    device = torch.device("cpu")

    def __init__(self, answer: Any, **config: Any) -> None:
        self._answer = answer
        self.config = SimpleNamespace(**config)

    def __call__(self, **seen: Any) -> Any:
        return self._answer(**seen)


def _transformers() -> Any:
    import transformers

    return transformers


def depth_anything() -> Loaded:
    """Inverse distance."""
    size = {"height": 518, "width": 518}
    processor = _transformers().DPTImageProcessor(
        size=size, keep_aspect_ratio=True, ensure_multiple_of=14, resample=3
    )
    return _depth(processor, 1 / still_life().distance)


def dpt() -> Loaded:
    """Inverse distance."""
    return _depth(
        _transformers().DPTImageProcessor(size={"height": 384, "width": 384}), 1 / still_life().distance
    )


def zoedepth() -> Loaded:
    """Distance."""
    return _depth(_transformers().ZoeDepthImageProcessor(), still_life().distance)


def _depth(processor: Any, truth: NDArray[np.floating]) -> Loaded:
    """The truth as the network would see it: brought there as the picture is, its values kept."""
    picture = np.repeat(truth[None], 3, 0)
    seen = processor(
        images=picture,
        return_tensors="pt",
        do_rescale=False,
        do_normalize=False,
        input_data_format="channels_first",
    )
    answer = seen["pixel_values"][:, 0]
    return Loaded(Truth(lambda **_: SimpleNamespace(predicted_depth=answer)), processor)


def _shares(pixel_values: torch.Tensor, coarse: int) -> torch.Tensor:
    """(150, h, w): how much of each cell has each label."""
    numbers = [next(i for i, name in LABELS.items() if name == CLASSES[kind]) for kind in KINDS]
    labels = torch.tensor(numbers)[torch.from_numpy(still_life().things).long()]
    planes = functional.one_hot(labels, len(LABELS)).permute(2, 0, 1)[None].float()
    height, width = (side // coarse for side in pixel_values.shape[-2:])
    return functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)[0]


def _logits(pixel_values: torch.Tensor, coarse: int) -> torch.Tensor:
    """(1, 150, h, w): the right label of each cell."""
    return (_shares(pixel_values, coarse)[None] * 2 - 1) * SURE


def segformer() -> Loaded:
    """At a quarter of what it is shown."""
    model = Truth(lambda pixel_values: {"logits": _logits(pixel_values, COARSE)}, id2label=LABELS)
    return Loaded(model, _transformers().SegformerImageProcessor())


def upernet() -> Loaded:
    """At the size of what it is shown."""
    model = Truth(lambda pixel_values: {"logits": _logits(pixel_values, 1)}, id2label=LABELS)
    return Loaded(model, _transformers().SegformerImageProcessor())


def _queries(pixel_values: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
    """For each label that is there a query that is sure of it, and its mask at a quarter of what is shown."""
    shares = _shares(pixel_values, COARSE)
    there = torch.tensor([i for i, plane in enumerate(shares) if bool(plane.any())])
    classes = torch.full((1, len(there), len(LABELS) + 1), -SURE)
    classes[0, torch.arange(len(there)), there] = SURE
    masks = shares[there][None] * 2 - 1
    return {"class_queries_logits": classes, "masks_queries_logits": masks * SURE}


def mask2former() -> Loaded:
    """Queries with masks."""
    size = {"height": 384, "width": 384}
    processor = _transformers().Mask2FormerImageProcessor(size=size, num_labels=len(LABELS))
    return Loaded(Truth(_queries, id2label=LABELS), processor)


def oneformer() -> Loaded:
    """Queries with masks."""
    tf = _transformers()
    words = ["<|startoftext|>", "<|endoftext|>", *"thetaskissemantic", *(f"{letter}</w>" for letter in "ksc")]
    tokenizer = tf.CLIPTokenizer(vocab={word: i for i, word in enumerate(dict.fromkeys(words))}, merges=[])
    pictures = tf.OneFormerImageProcessor(
        size={"height": 640, "width": 640}, num_text=4, class_info_file=None
    )
    return Loaded(
        Truth(_queries, id2label=LABELS), tf.OneFormerProcessor(pictures, tokenizer, task_seq_length=12)
    )


def sam2() -> Loaded:
    """For a point: the side or lid that it lies on, and twice the solid."""
    from format_pictures.regions import masks_at

    tf = _transformers()
    side = 1024
    processor = tf.Sam2ImageProcessor(
        size={"height": side, "width": side}, mask_size={"height": SIDE, "width": SIDE}
    )
    small = tf.Sam2HieraDetConfig(
        hidden_size=8,
        blocks_per_stage=[1, 1, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        global_attention_blocks=[],
    )
    vision = tf.Sam2VisionConfig(
        backbone_config=small, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=32
    )
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}

    class Sam2Model(tf.Sam2Model):
        """The pipeline asks for a class of this name."""

        def get_image_embeddings(self, pixel_values: Any, **_: Any) -> Any:
            """Nothing that is used."""
            return pixel_values

        def forward(self, input_points: Any = None, **_: Any) -> Any:
            """Masks of each point."""
            masks, qualities = masks_at(input_points[0, :, 0] / side)
            return {"pred_masks": masks[None], "iou_scores": qualities[None]}

    config = tf.Sam2Config(
        vision_config=vision, prompt_encoder_config={"hidden_size": 32}, mask_decoder_config=decoder
    )
    with torch.random.fork_rng(devices=[]):
        return Loaded(Sam2Model(config).eval(), processor)


def vitpose() -> Any:
    """One person, all of the picture: heatmaps of 17 joints at a quarter of what is shown."""
    from transformers.models.vitpose.image_processing_vitpose import box_to_center_and_scale

    from controlkit.preprocessors.vitpose import Both
    from format_pictures import person
    from format_pictures.poses import heatmaps

    processor = _transformers().VitPoseImageProcessor()
    across, down = processor.size["width"], processor.size["height"]
    middle, scale = box_to_center_and_scale([0, 0, person.SIDE, person.SIDE], across, down)
    upper, step = middle - scale * 100, scale * 200 / (np.array([across, down]) / COARSE - 1)
    cells = [
        (float((point[0] - upper[0]) / step[0]), float((point[1] - upper[1]) / step[1])) if point else None
        for point in (person.BODY.get(number) for number in range(17))
    ]
    answer = SimpleNamespace(heatmaps=heatmaps(cells, down // COARSE, across // COARSE, 2.0)[None])
    return Both(Loaded(Truth(lambda **_: answer, backbone_config=SimpleNamespace()), processor), None)

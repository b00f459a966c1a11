"""Small networks of the published architectures with random weights, saved in the published layout."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from controlkit.preprocessors.labels import NAMES

ADE = {i: min(names) for i, names in enumerate(NAMES["ade20k"])}
COCO = {i: min(names) for i, names in enumerate(NAMES["coco"])}

STAGES: dict[str, Any] = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
LAST_STAGES: dict[str, Any] = {"out_features": ["stage2", "stage3", "stage4"]}
LAST_LAYER: dict[str, Any] = {"out_indices": [2]}


def labelled(names: dict[int, str]) -> dict[str, Any]:
    return {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}


def backbone(**more: Any) -> Any:
    return tf.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        **STAGES,
        reshape_hidden_states=False,
        **more,
    )


def depth_anything(**more: Any) -> tuple[Any, Any]:
    config = tf.DepthAnythingConfig(
        backbone_config=backbone(),
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        patch_size=14,
        **more,
    )
    processor = tf.DPTImageProcessor(
        size={"height": 224, "width": 224}, keep_aspect_ratio=True, ensure_multiple_of=14, resample=3
    )
    return tf.DepthAnythingForDepthEstimation(config), processor


def dpt() -> tuple[Any, Any]:
    config = tf.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    return tf.DPTForDepthEstimation(config), tf.DPTImageProcessor(size={"height": 64, "width": 64})


def zoedepth() -> tuple[Any, Any]:
    beit = tf.BeitConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        **STAGES,
        reshape_hidden_states=False,
        use_relative_position_bias=True,
    )
    config = tf.ZoeDepthConfig(
        backbone_config=beit,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        bottleneck_features=8,
        num_relative_features=8,
        bin_embedding_dim=8,
        num_attractors=[4, 2, 2, 1],
        bin_configurations=[
            {"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"},
            {"n_bins": 8, "min_depth": 0.001, "max_depth": 80.0, "name": "kitti"},
        ],
        num_patch_transformer_layers=4,
        patch_transformer_hidden_size=128,
        patch_transformer_intermediate_size=16,
        patch_transformer_num_attention_heads=2,
    )
    processor = tf.ZoeDepthImageProcessor(size={"height": 192, "width": 256}, ensure_multiple_of=32)
    return tf.ZoeDepthForDepthEstimation(config), processor


def segformer(names: dict[int, str] = ADE) -> tuple[Any, Any]:
    config = tf.SegformerConfig(
        num_encoder_blocks=4,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        **labelled(names),
    )
    return tf.SegformerForSemanticSegmentation(config), tf.SegformerImageProcessor(
        size={"height": 64, "width": 64}
    )


def upernet() -> tuple[Any, Any]:
    convnext = tf.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], **STAGES)
    config = tf.UperNetConfig(
        backbone_config=convnext,
        hidden_size=16,
        pool_scales=[1, 2],
        auxiliary_in_channels=16,
        auxiliary_channels=8,
        **labelled(ADE),
    )
    return tf.UperNetForSemanticSegmentation(config), tf.SegformerImageProcessor(
        size={"height": 64, "width": 64}
    )


def swin() -> Any:
    return tf.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        **STAGES,
    )


def mask2former(names: dict[int, str] = COCO) -> tuple[Any, Any]:
    config = tf.Mask2FormerConfig(
        backbone_config=swin(),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=12,
        **labelled(names),
    )
    processor = tf.Mask2FormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 256}, size_divisor=32, num_labels=len(names)
    )
    return tf.Mask2FormerForUniversalSegmentation(config), processor


def oneformer() -> tuple[Any, Any]:
    words = ["<|startoftext|>", "<|endoftext|>", *"thetaskissemantic", *(f"{c}</w>" for c in "ksc")]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    config = tf.OneFormerConfig(
        backbone_config=swin(),
        num_queries=12,
        hidden_dim=32,
        conv_dim=32,
        mask_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        task_seq_len=12,
        text_encoder_width=8,
        text_encoder_num_layers=1,
        text_encoder_vocab_size=len(vocabulary),
        is_training=False,
        **labelled(ADE),
    )
    tokenizer = tf.CLIPTokenizer(vocab=vocabulary, merges=[])
    pictures = tf.OneFormerImageProcessor(
        size={"shortest_edge": 64, "longest_edge": 256}, num_text=4, class_info_file=None
    )
    processor = tf.OneFormerProcessor(pictures, tokenizer, task_seq_length=12)
    return tf.OneFormerForUniversalSegmentation(config), processor


def sam2() -> tuple[Any, Any]:
    hiera = tf.Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 1, 1],
        window_size_per_stage=[8, 4, 8, 4],
        global_attention_blocks=[3],
    )
    vision = tf.Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=32,
    )
    config = tf.Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": 64},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
        },
    )
    processor = tf.Sam2ImageProcessor(size={"height": 64, "width": 64}, mask_size={"height": 16, "width": 16})
    return tf.Sam2Model(config), processor


def vitpose(joints: int = 17) -> tuple[Any, Any]:
    vit = tf.VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        **LAST_LAYER,
    )
    config = tf.VitPoseConfig(backbone_config=vit, **labelled({i: f"joint {i}" for i in range(joints)}))
    return tf.VitPoseForPoseEstimation(config), tf.VitPoseImageProcessor(size={"height": 64, "width": 48})


def people(names: dict[int, str] | None = None) -> tuple[Any, Any]:
    resnet = tf.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        **LAST_STAGES,
    )
    config = tf.RTDetrConfig(
        backbone_config=resnet,
        encoder_hidden_dim=16,
        encoder_in_channels=[16, 16, 16],
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=8,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        num_denoising=0,
        **labelled(names or {0: "person", 1: "bicycle"}),
    )
    return tf.RTDetrForObjectDetection(config), tf.RTDetrImageProcessor(size={"height": 64, "width": 64})


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "depth-anything": depth_anything,
    "dpt": dpt,
    "zoedepth": zoedepth,
    "segformer": segformer,
    "upernet": upernet,
    "mask2former": mask2former,
    "oneformer": oneformer,
    "sam2": sam2,
    "vitpose": vitpose,
    "people": people,
}


SEEDS = {"sam2": 2}
"""Of weights that give an answer with variety."""
_STRONGER = ("class_embed", "class_predictor", "mask_embed", "hypernetworks")


def spread(model: Any) -> None:
    """Weights large enough that the answer depends on the picture."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1:
                gain = 4 if any(part in name for part in _STRONGER) else 1.4
                tensor.normal_(0, gain / tensor[0].numel() ** 0.5)
            elif name.endswith("bias"):
                tensor.normal_(0, 0.1)


def save(folder: Path, name: str, **options: Any) -> Path:
    """One of `BUILDERS` as ``save_pretrained`` writes it."""
    with torch.random.fork_rng(), contextlib.redirect_stderr(io.StringIO()):
        torch.manual_seed(SEEDS.get(name, 0))
        model, processor = BUILDERS[name](**options)
        spread(model)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def edit(file: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None takes one out."""
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

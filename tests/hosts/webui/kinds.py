"""Control files of every other kind for the tiny checkpoint, with random weights, and an image encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tests import tiny
from tests.adapters.controlnet.relative_cases import lora_file
from tests.adapters.ip_adapter import peers
from tests.hosts.webui.networks import tiny_unet

TOKENS = 32
"""Width of the tiny checkpoint's prompt, and of the encoder's projected vector."""
FILE = "diffusion_pytorch_model.safetensors"


def write(
    base: Path,
    unet: Any = None,
    *,
    widths: tuple[int, int] = (32, 64),
    tokens: int = TOKENS,
    heads: int = 4,
    zeros: float = 0.1,
) -> None:
    """Image prompts, Uni-ControlNet, style adapter, ControlNet-Union, Control-LoRA; a CLIP vision model.

    Args:
        base: The web UI's folder.
        unet: Of the checkpoint, as diffusers has it; None: the tiny one's.
        widths: Of its two levels.
        tokens: Width of its prompt, and of the encoder's projected vector.
        heads: Of its attention.
        zeros: How far from zero that is which begins at zero.
    """
    import controlkit as ck
    from controlkit.adapters.controlnet_union import ControlNetUnion, ControlNetUnionConfig
    from controlkit.adapters.uni_controlnet import LocalConfig, TokensConfig, UniControlNet

    unet = tiny_unet(base) if unet is None else unet
    folder = base / "models" / "ControlNet"
    write_encoder(base, tokens)
    for kind in ("plain", "plus"):
        module: Any = peers.load(unet, kind, pooled=tokens)  # pyright: ignore[reportArgumentType]
        module.save(folder / f"ip-{kind}")
    write_style(base, tokens, zeros)
    local = LocalConfig(
        block_out_channels=widths,
        layers_per_block=1,
        attends=(True, True),
        cross_attention_dim=tokens,
        num_attention_heads=heads,
        stem_channels=(8, 8, 12),
        inject_channels=(8, 12),
        inject_layers=(1, 3),
    )
    appended = TokensConfig(dim=tokens, hidden=48, inner=(24, 40), count=4)
    _random(UniControlNet(local, appended), 6, zeros).save(folder / "uni")
    union = ControlNetUnionConfig(
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        layers_per_block=1,
        cross_attention_dim=tokens,
        attention_head_dim=heads,
        conditioning_embedding_out_channels=(8, 8, 8, 8),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48,
        num_trans_channel=widths[0],
        num_proj_channel=widths[0],
        num_trans_head=4,
    )
    _random(ControlNetUnion(union), 7, zeros).save(folder / "union")
    net: Any = ck.load(folder / "net-a")
    (folder / "lora").mkdir()
    save_file(lora_file(net, unet), folder / "lora" / FILE)
    (folder / "lora" / "config.json").write_text(f'{{"num_heads": {heads}}}')  # shapes do not tell


def write_encoder(base: Path, tokens: int = TOKENS) -> None:
    """The image encoder alone."""
    peers.encoder(projected=tokens).save_pretrained(base / "models" / "clip_vision" / "tiny-clip")


def write_style(base: Path, tokens: int = TOKENS, zeros: float = 0.1) -> None:
    """The style adapter alone, which goes with every checkpoint that has the same text encoder."""
    from controlkit.adapters.style_adapter import StyleAdapter, StyleAdapterConfig

    style = StyleAdapterConfig(width=peers.HIDDEN, context_dim=tokens, num_head=2, n_layes=1, num_token=3)
    _random(StyleAdapter(style), 5, zeros).save(base / "models" / "ControlNet" / "style")


def write_image_prompt(base: Path, name: str) -> None:
    """An image prompt for another checkpoint, and for the same encoder."""
    unet: Any = tiny_unet(base, name)
    module: Any = peers.load(unet, "plain", pooled=TOKENS)
    module.save(base / "models" / "ControlNet" / f"ip-plain{name.removeprefix('tiny')}")


def _random(module: Any, seed: int, zeros: float) -> Any:
    return tiny.randomize(module, seed, zero_scale=zeros)

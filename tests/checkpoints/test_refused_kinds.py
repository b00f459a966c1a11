"""Controls that are recognised and refused by their name, never half loaded: what their real files look like.

Where diffusers has the network its own state dict is taken; the names of the others are from the code that
reads them, which each case cites. All at narrow widths, with the published widths of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch

import controlkit as ck
from controlkit.checkpoints.formats import loadable_kinds

Shapes = dict[str, tuple[int, ...]]


def of_diffusers(name: str, **settings: Any) -> Shapes:
    """Names and shapes of one of diffusers' networks."""
    with torch.device("meta"):
        model = getattr(import_module("diffusers"), name)(**settings)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def xs_adapter() -> Shapes:
    return of_diffusers("ControlNetXSAdapter", base_block_out_channels=(32, 64, 64, 64))


def xs_whole() -> Shapes:
    """The U-Net and the adapter in one, which diffusers saves too."""
    return of_diffusers(
        "UNetControlNetXSModel",
        block_out_channels=(32, 64, 64, 64),
        ctrl_block_out_channels=(8, 8, 16, 16),
        ctrl_num_attention_heads=1,
        norm_num_groups=8,
        ctrl_max_norm_num_groups=4,
    )


def xs_original() -> Shapes:
    """`TwoStreamControlNet` in `sgm/modules/diffusionmodules/twoStreamControl.py` of vislearn/ControlNet-XS
    @8d90ed4d, within the engine that saves it under ``control_model.``."""
    return {
        "control_model.control_model.input_blocks.0.0.weight": (32, 4, 3, 3),
        "control_model.control_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (64, 2048),
        "control_model.control_model.middle_block.0.in_layers.2.weight": (128, 128, 3, 3),
        "control_model.enc_zero_convs_out.0.0.weight": (320, 32, 1, 1),
        "control_model.enc_zero_convs_in.0.0.weight": (320, 320, 1, 1),
        "control_model.middle_block_out.0.weight": (1280, 128, 1, 1),
        "control_model.dec_zero_convs_out.0.0.weight": (1280, 128, 1, 1),
        "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
        "control_model.scale_list": (19,),
    }


def sparse(module: str = "", **settings: Any) -> Shapes:
    widths = {"block_out_channels": (32, 64, 64, 64)}
    return {
        module + name: shape
        for name, shape in of_diffusers("SparseControlNetModel", **widths, **settings).items()
    }


def lllite() -> Shapes:
    """`LLLiteModule` in `control_lllite.py` of Kosinkadink/ComfyUI-Advanced-ControlNet@9e60d8a9."""
    module = "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    return {
        f"{module}.conditioning1.0.weight": (16, 3, 4, 4),
        f"{module}.conditioning1.2.weight": (32, 16, 2, 2),
        f"{module}.down.0.weight": (64, 640),
        f"{module}.mid.0.weight": (64, 96),
        f"{module}.up.0.weight": (640, 64),
    }


def instantid() -> Shapes:
    """``ip-adapter.bin``: a resampler of 512 wide face embeddings, and layers with odd numbers alone."""
    return {
        "image_proj.latents": (1, 16, 1280),
        "image_proj.proj_in.weight": (1280, 512),
        "image_proj.proj_out.weight": (2048, 1280),
        "image_proj.layers.0.0.to_q.weight": (1280, 1280),
        "ip_adapter.1.to_k_ip.weight": (640, 2048),
        "ip_adapter.1.to_v_ip.weight": (640, 2048),
    }


def faceid(*, lora: bool = True, perceiver: bool = False) -> Shapes:
    """`MLPProjModel`, `ProjPlusModel` and `LoRAIPAttnProcessor` of tencent-ailab/IP-Adapter@62e4af9d."""
    shapes: Shapes = {
        "image_proj.proj.0.weight": (1024, 512),
        "image_proj.proj.2.weight": (3072, 1024),
        "image_proj.norm.weight": (768,),
        "ip_adapter.1.to_k_ip.weight": (320, 768),
        "ip_adapter.1.to_v_ip.weight": (320, 768),
    }
    for part in ("q", "k", "v", "out") if lora else ():
        shapes |= {
            f"ip_adapter.0.to_{part}_lora.down.weight": (128, 320),
            f"ip_adapter.0.to_{part}_lora.up.weight": (320, 128),
        }
    if perceiver:
        shapes["image_proj.perceiver_resampler.proj_in.weight"] = (768, 1280)
    return shapes


def ctrlora() -> Shapes:
    """As `adv_control/control_ctrlora.py` of Kosinkadink/ComfyUI-Advanced-ControlNet@9e60d8a9 reads it."""
    block = "control_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    return {
        f"{block}.lora_layer.down.weight": (128, 768),
        f"{block}.lora_layer.up.weight": (320, 128),
        "control_model.zero_convs.0.0.weight": (320, 320, 1, 1),
        "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
    }


def svd() -> Shapes:
    """As `adv_control/control.py` of Kosinkadink/ComfyUI-Advanced-ControlNet@9e60d8a9 tells it."""
    return {
        "conv_in.weight": (320, 8, 3, 3),
        "controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
        "controlnet_down_blocks.0.weight": (320, 320, 1, 1),
        "down_blocks.0.resnets.0.spatial_res_block.conv1.weight": (320, 320, 3, 3),
        "down_blocks.0.resnets.0.temporal_res_block.conv1.weight": (320, 320, 3, 1, 1),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (320, 1024),
    }


def brushnet() -> Shapes:
    """`BrushNetModel` in `src/diffusers/models/brushnet.py` of TencentARC/BrushNet."""
    return {
        "conv_in_condition.weight": (320, 9, 3, 3),
        "brushnet_down_blocks.0.weight": (320, 320, 1, 1),
        "brushnet_mid_block.weight": (1280, 1280, 1, 1),
        "brushnet_up_blocks.0.weight": (1280, 1280, 1, 1),
        "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3),
        "up_blocks.0.resnets.0.conv1.weight": (1280, 2560, 3, 3),
        "time_embedding.linear_1.weight": (1280, 320),
    }


XS = r"a ControlNet-XS.*take turns block by block.*StableDiffusionControlNetXSPipeline"
SPARSE = r"a SparseCtrl encoder.*AnimateDiffSparseControlNetPipeline"
FACES = r"an IP-Adapter for faces \(FaceID\).*face embeddings"

CASES: dict[str, tuple[Callable[[], Shapes], str, str, str]] = {
    "xs": (xs_adapter, "controlnet-xs", "diffusers", XS),
    "xs with its U-Net": (xs_whole, "controlnet-xs", "diffusers", XS),
    "xs, original": (xs_original, "controlnet-xs", "xs-original", XS),
    "sparsectrl rgb": (sparse, "sparsectrl", "diffusers", SPARSE),
    "sparsectrl scribble": (
        lambda: sparse(use_simplified_condition_embedding=False),
        "sparsectrl",
        "diffusers",
        SPARSE,
    ),
    "sparsectrl, original": (lambda: sparse("module."), "sparsectrl", "diffusers", SPARSE),
    "lllite": (lllite, "controllllite", "kohya", r"a ControlLLLite.*inside the U-Net"),
    "instantid": (instantid, "ip-adapter", "instantid", r"an InstantID adapter.*face embeddings.*ControlNet"),
    "faceid": (faceid, "ip-adapter", "faceid", FACES),
    "faceid plus": (lambda: faceid(perceiver=True), "ip-adapter", "faceid", FACES),
    "faceid portrait": (lambda: faceid(lora=False), "ip-adapter", "faceid", FACES),
    "ctrlora": (ctrlora, "ctrlora", "ctrlora", r"a CtrLoRA.*a ControlNet of its own"),
    "svd": (svd, "controlnet-svd", "diffusers", r"a ControlNet for Stable Video Diffusion.*frames"),
    "brushnet": (brushnet, "brushnet", "diffusers", r"a BrushNet.*inpainting ControlNet"),
}


@pytest.mark.parametrize("case", CASES)
def test_recognised_named_and_refused(case: str) -> None:
    make, kind, layout, words = CASES[case]
    tensors = {name: torch.zeros(shape) for name, shape in make().items()}
    info = ck.inspect(tensors)
    assert (info.kind, info.layout, info.loadable) == (kind, layout, False)
    with pytest.raises(ck.Unsupported, match=rf"^state dict; found {words}") as caught:
        ck.load(tensors)
    assert f"{len(tensors)} tensors" in str(caught.value)
    for other in loadable_kinds():
        if other != kind:
            with pytest.raises(ck.KindMismatch, match=rf"needed a {other}"):
                ck.load(tensors, kind=other)


def test_their_neighbours_still_load() -> None:
    """The signatures are not so wide that they take what can be loaded."""
    from tests import tiny

    for net in (tiny.controlnet("sd1"), tiny.t2i_adapter("sd1")):
        assert ck.inspect(net.state_dict()).loadable
    plain = {"image_proj.proj.weight": (3072, 1024), "image_proj.norm.weight": (768,)}
    full = {"image_proj.proj.0.weight": (512, 512), "image_proj.proj.3.weight": (768,)}
    plus = {"image_proj.latents": (1, 16, 768), "image_proj.proj_in.weight": (768, 1280)}
    for projection in (plain, full, plus):
        shapes = {**projection, "ip_adapter.1.to_k_ip.weight": (320, 768)}
        info = ck.inspect({name: torch.zeros(shape) for name, shape in shapes.items()})
        assert (info.kind, info.layout) == ("ip-adapter", "ip-original")

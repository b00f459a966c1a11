"""The embedded model as ComfyUI's own MODEL, CLIP and VAE.

ComfyUI's U-Net, text encoder and tokenizer classes are built to the embedded model's shape and given its
weights, so that LoRA, prompt weights, schedulers and every other node work on them. Two things ComfyUI
fixes: 32 groups in every norm, and one head count for all levels; the norms come from a table of operations
of our own, the head counts are set after building. The autoencoder is `controlkit.embedded.autoencoder`.
"""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# (what is inherited is ComfyUI's, which is not there for the type checker)

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import torch as safetensors
from torch import Tensor

from controlkit import embedded
from controlkit.embedded.autoencoder import Autoencoder
from controlkit.hosts.comfy.host import host


def build() -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE; with weights that gradients may pass through (made outside inference mode)."""
    folder = embedded.path("base")
    with torch.inference_mode(False), torch.no_grad():
        return _model(folder), _clip(folder), _vae(folder)


class _Times(int):
    """A channel multiplier whose product is given: the ratio of the levels is no whole number."""

    def __new__(cls, product: int) -> _Times:
        made = super().__new__(cls, 1)
        made.product = product
        return made

    product: int

    def __mul__(self, _other: int) -> int:
        return self.product

    __rmul__ = __mul__


def _model(folder: Path) -> Any:
    config: dict[str, Any] = json.loads((folder / "unet" / "config.json").read_text())
    schedule: dict[str, Any] = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    widths: list[int] = config["block_out_channels"]
    depth: int = config["layers_per_block"]
    attends = [int("CrossAttn" in kind) for kind in config["down_block_types"]]
    back = [int("CrossAttn" in kind) for kind in config["up_block_types"]][::-1]
    shape: dict[str, Any] = {
        "image_size": config["sample_size"],
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [_Times(width) for width in widths],
        "num_res_blocks": [depth] * len(widths),
        "transformer_depth": [a for a in attends for _ in range(depth)],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [a for a in back for _ in range(depth + 1)],
        "context_dim": config["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": config["use_linear_projection"],
        "num_heads": 1,
        "dtype": torch.float32,
    }
    base: Any = host("comfy.supported_models_base").BASE
    kinds: Any = host("comfy.model_base").ModelType
    formats: Any = host("comfy.latent_formats")

    class Embedded(base):
        unet_config: ClassVar[dict[str, Any]] = {}
        unet_extra_config: ClassVar[dict[str, Any]] = {}
        latent_format = formats.LatentFormat
        custom_operations = _operations(config["norm_num_groups"])
        sampling_settings: ClassVar[dict[str, Any]] = {
            "beta_schedule": "sqrt_linear",  # ComfyUI's name for betas on a straight line
            "linear_start": schedule["beta_start"],
            "linear_end": schedule["beta_end"],
        }

        def model_type(self, state_dict: Any, prefix: str = "") -> Any:
            return kinds.V_PREDICTION

    settings = Embedded(shape)
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model({})
    names: dict[str, str] = host("comfy.utils").unet_to_diffusers({**shape, "channel_mult": widths})
    weights = _weights(folder / "unet" / "diffusion_pytorch_model.safetensors")
    state = {names.get(name, name): tensor for name, tensor in weights.items()}
    model.diffusion_model.load_state_dict(state)
    _set_heads(model.diffusion_model, dict(zip(widths, config["attention_head_dim"], strict=True)))
    model.eval().requires_grad_(False)
    management = host("comfy.model_management")
    offload = management.unet_offload_device()
    patcher = host("comfy.model_patcher").ModelPatcher
    return patcher(model.to(offload), load_device=management.get_torch_device(), offload_device=offload)


def _weights(path: Path) -> dict[str, Tensor]:
    return {name: tensor.float() for name, tensor in safetensors.load_file(path).items()}


def _operations(groups: int) -> Any:
    """ComfyUI's layers, with norms of so many groups whatever is asked for."""
    plain: Any = host("comfy.ops").disable_weight_init

    class GroupNorm(plain.GroupNorm):
        def __init__(self, num_groups: int, num_channels: int, *args: Any, **kwargs: Any) -> None:
            super().__init__(groups, num_channels, *args, **kwargs)

    return type("Operations", (plain,), {"GroupNorm": GroupNorm})


def _set_heads(unet: Any, heads: dict[int, int]) -> None:
    """Give every attention layer the heads of its level, told by its width."""
    for module in unet.modules():
        if hasattr(module, "to_q") and hasattr(module, "heads"):
            width = int(module.to_q.weight.shape[0])
            module.heads, module.dim_head = heads[width], width // heads[width]
        elif hasattr(module, "n_heads") and hasattr(module, "d_head"):
            module.n_heads = heads[int(module.attn1.to_q.weight.shape[0])]
            module.d_head = int(module.attn1.to_q.weight.shape[0]) // module.n_heads


def _clip(folder: Path) -> Any:
    config: dict[str, Any] = json.loads((folder / "text_encoder" / "config.json").read_text())
    length, width = config["max_position_embeddings"], config["hidden_size"]
    special = {"start": config["bos_token_id"], "end": config["eos_token_id"], "pad": config["pad_token_id"]}
    sd1: Any = host("comfy.sd1_clip")

    class Encoder(sd1.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=length,
                textmodel_json_config=config,
                special_tokens=special,
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    class Model(sd1.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            options: dict[str, Any] = model_options or {}
            super().__init__(device=device, dtype=dtype, model_options=options, clip_model=Encoder)

    class Tokens(sd1.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                tokenizer_path=str(folder / "tokenizer"),
                max_length=length,
                embedding_directory=embedding_directory,
                embedding_size=width,
                tokenizer_data=tokenizer_data or {},
            )

    class Tokenizer(sd1.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            data: dict[str, Any] = tokenizer_data or {}
            super().__init__(embedding_directory=embedding_directory, tokenizer_data=data, tokenizer=Tokens)

    target = host("comfy.supported_models_base").ClipTarget(Tokenizer, Model)
    clip = host("comfy.sd").CLIP(
        target,
        embedding_directory=host("folder_paths").get_folder_paths("embeddings"),
        model_options={"dtype": torch.float32},
    )
    weights = _weights(folder / "text_encoder" / "model.safetensors")
    state = {f"text_model.{name}": tensor for name, tensor in weights.items()}
    state["text_projection.weight"] = torch.eye(width)
    encoder = clip.cond_stage_model.clip_l.transformer
    table = host("comfy.ops").manual_cast.Embedding(config["vocab_size"], width, dtype=torch.float32)
    encoder.set_input_embeddings(table.to(encoder.get_input_embeddings().weight.device))  # not CLIP's 49408
    encoder.load_state_dict(state)
    return clip


def _vae(folder: Path) -> Any:
    """ComfyUI's VAE around our autoencoder: made around its smallest one, which is then exchanged."""
    small = host("comfy.taesd.taesd").TAESD(latent_channels=4).state_dict()
    vae = host("comfy.sd").VAE(sd=small, dtype=torch.float32)
    model = Autoencoder.load(folder / "vae")
    management = host("comfy.model_management")
    vae.first_stage_model = model
    vae.patcher = host("comfy.model_patcher").ModelPatcher(
        model, load_device=vae.device, offload_device=management.vae_offload_device()
    )
    return vae

"""The layouts that are recognised, told by names and shapes of tensors, never by a file's name.

One entry each. An entry without a ``reader`` is recognised so that its file can be refused by its right
name. To add a layout: one entry here, and in the adapter's `checkpoint.py` a `plan` for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, cast

from controlkit.checkpoints.shapes import Shapes
from controlkit.errors import Unsupported

if TYPE_CHECKING:
    from controlkit.checkpoints.formats import Reader


@dataclass(frozen=True)
class Layout:
    """One way in which one kind of weights is stored.

    Args:
        kind: ``controlnet``, ``t2i-adapter``, …
        layout: ``diffusers``, ``ldm``, ``t2i-original``, …
        title: What it is, for people.
        signs: Name parts, each of which some tensor's name must contain; ``^`` stands for its beginning.
        absent: Name parts that no tensor's name may contain.
        fits: A look at the shapes, where names do not suffice.
        reader: Module with `plan`, `describe` and `remarks`; None where it is only recognised.
        advice: What to do with it instead.
        is_control: It steers a U-Net, so that refusing it is a lack of this project and not a mistake.
    """

    kind: str
    layout: str
    title: str
    signs: tuple[str, ...]
    absent: tuple[str, ...] = ()
    fits: Callable[[Shapes], bool] = field(default=lambda shapes: True)
    reader: str | None = None
    advice: str = "It is not a control for a U-Net."
    is_control: bool = False

    def matches(self, joined: str, shapes: Shapes) -> bool:
        """Whether this is the layout; ``joined``: all names, each between line breaks."""

        def has(sign: str) -> bool:
            return sign.replace("^", "\n") in joined

        return all(map(has, self.signs)) and not any(map(has, self.absent)) and self.fits(shapes)

    def load_reader(self) -> Reader:
        """Import the adapter that reads it.

        Raises:
            Unsupported: There is none yet.
        """
        if self.reader is None:
            raise Unsupported(self.title, found=f"layout {self.layout!r}", fix=self.advice)
        return cast("Reader", import_module(self.reader))


_ADAPTERS = "controlkit.adapters."
_CONTROLNET = f"{_ADAPTERS}controlnet.checkpoint"
_T2I = f"{_ADAPTERS}t2i_adapter.checkpoint"
_T2I_ORIGINAL = f"{_ADAPTERS}t2i_adapter.original"
_LORA = "Load it with pipe.load_lora_weights()."
_FACES = "It reads face embeddings and changes the U-Net by a LoRA, which is not done here."
_XS = (
    "It and the U-Net take turns block by block, which residuals made beforehand cannot do; use diffusers' "
    "StableDiffusionControlNetXSPipeline."
)
_LLLITE = "It changes what attention layers read, inside the U-Net; use a ControlNet or a T2I-Adapter."
_FRAMES = "It is for AnimateDiff's frames; use diffusers' AnimateDiffSparseControlNetPipeline."


def _four_dimensional(name: str) -> Callable[[Shapes], bool]:
    return lambda shapes: len(shapes.get(name, (0,) * 4)) == 4


LAYOUTS: tuple[Layout, ...] = (
    Layout("lora", "kohya", "a LoRA", ("^lora_unet_",), advice=_LORA),
    Layout("lora", "kohya", "a LoRA", ("^lora_te",), advice=_LORA),
    Layout("control-lora", "control-lora", "a Control-LoRA", ("^lora_controlnet",),
           reader=f"{_ADAPTERS}controlnet.relative", is_control=True),
    Layout("controllllite", "kohya", "a ControlLLLite", ("^lllite_",), advice=_LLLITE, is_control=True),
    Layout("ip-adapter", "faceid", "an IP-Adapter for faces (FaceID)",
           ("^image_proj.", "^ip_adapter.", "_lora."), advice=_FACES, is_control=True),
    Layout("ip-adapter", "faceid", "an IP-Adapter for faces (FaceID)",
           ("^image_proj.proj.0.", "^ip_adapter."), absent=("^image_proj.proj.3.",),
           fits=lambda shapes: shapes.get("image_proj.proj.0.weight", (0, 0))[-1] == 512,
           advice="It reads face embeddings, which are not made here.", is_control=True),
    Layout("lora", "diffusers", "a LoRA", (".lora_A.",), advice=_LORA),
    Layout("lora", "diffusers", "a LoRA", ("lora.down.",), advice=_LORA),
    Layout("lora", "other", "a LoRA", ("lora_down.",), advice=_LORA),
    Layout("ip-adapter", "instantid", "an InstantID adapter", ("^image_proj.latents", "^ip_adapter."),
           fits=lambda shapes: shapes.get("image_proj.proj_in.weight", (0, 0))[-1] == 512,
           advice="It reads face embeddings; its ControlNet, in the folder beside it, loads as one.",
           is_control=True),
    Layout("ip-adapter", "ip-original", "an IP-Adapter", ("^image_proj.", "^ip_adapter."),
           reader=f"{_ADAPTERS}ip_adapter.checkpoint", is_control=True),
    Layout("controlnet-union", "diffusers", "a ControlNet for many conditions at once (union)",
           ("^controlnet_cond_embedding.", "^task_embedding"),
           reader=f"{_ADAPTERS}controlnet_union.checkpoint", is_control=True),
    Layout("controlnet-xs", "diffusers", "a ControlNet-XS", ("^controlnet_cond_embedding.", "ctrl_"),
           advice=_XS, is_control=True),
    Layout("controlnet-xs", "diffusers", "a ControlNet-XS", ("^control_to_base_for_conv_in.",),
           advice=_XS, is_control=True),
    Layout("controlnet-xs", "xs-original", "a ControlNet-XS in its original layout", ("enc_zero_convs_out.",),
           advice=_XS, is_control=True),
    Layout("ctrlora", "ctrlora", "a CtrLoRA", ("^control_model.", "lora_layer."),
           advice="It changes a ControlNet of its own, which is not done here.", is_control=True),
    Layout("controlnet-svd", "diffusers", "a ControlNet for Stable Video Diffusion",
           ("^controlnet_cond_embedding.", "temporal_res_block."),
           advice="It is for a U-Net of frames; use a ControlNet that was made for pictures.",
           is_control=True),
    Layout("brushnet", "diffusers", "a BrushNet", ("^brushnet_down_blocks.",),
           advice="It adds to the U-Net's decoder layer by layer; use an inpainting ControlNet.",
           is_control=True),
    Layout("sparsectrl", "diffusers", "a SparseCtrl encoder",
           ("^controlnet_cond_embedding.", "motion_modules."),
           advice=_FRAMES, is_control=True),
    Layout("sparsectrl", "diffusers", "a SparseCtrl encoder", ("^controlnet_down_blocks.", "motion_modules."),
           advice=_FRAMES, is_control=True),
    Layout("controlnet", "diffusers", "a ControlNet in diffusers layout",
           ("^controlnet_cond_embedding.", "^conv_in."), absent=("^up_blocks.",),
           fits=_four_dimensional("conv_in.weight"), reader=_CONTROLNET, is_control=True),
    Layout("controlnet", "diffusers", "a ControlNet in diffusers layout", ("^controlnet_down_blocks.",),
           absent=("^up_blocks.",), reader=_CONTROLNET, is_control=True),
    Layout("t2i-adapter", "diffusers", "a T2I-Adapter in diffusers layout", ("^adapter.body.0.",),
           absent=("^adapter.body.0.block", "^adapter.body.0.body.", "^adapter.body.0.skep."),
           fits=_four_dimensional("adapter.body.0.resnets.0.block1.weight"), reader=_T2I, is_control=True),
    Layout("controlnet-dit", "diffusers", "a ControlNet for a transformer (SD 3, FLUX, …)",
           ("^controlnet_blocks.",), advice="Use a ControlNet that was made for a U-Net."),
    Layout("uni-controlnet", "diffusers", "Uni-ControlNet as saved here",
           ("^local.extractor.", "^local.controlnet_down_blocks."),
           reader=f"{_ADAPTERS}uni_controlnet.checkpoint", is_control=True),
    Layout("uni-controlnet", "diffusers", "the global half of Uni-ControlNet as saved here",
           ("^tokens.norm1.", "^tokens.ff2.net."), reader=f"{_ADAPTERS}uni_controlnet.checkpoint",
           is_control=True),
    Layout("uni-controlnet", "uni-original", "Uni-ControlNet", ("^local_adapter.",),
           reader=f"{_ADAPTERS}uni_controlnet.checkpoint", is_control=True),
    Layout("uni-controlnet", "uni-original", "Uni-ControlNet", ("^global_adapter.",),
           reader=f"{_ADAPTERS}uni_controlnet.checkpoint", is_control=True),
    Layout("controlnet-difference", "ldm", "a ControlNet stored as its difference to a base model",
           ("input_hint_block.", "difference\n"), reader=f"{_ADAPTERS}controlnet.relative", is_control=True),
    Layout("controlnet", "ldm", "a ControlNet in its original layout", ("^control_model.",),
           reader=_CONTROLNET, is_control=True),
    Layout("controlnet", "ldm", "a ControlNet in its original layout", ("^input_hint_block.",),
           reader=_CONTROLNET, is_control=True),
    Layout("t2i-adapter", "t2i-original", "a T2I-Adapter in its original layout",
           ("^body.0.", "block1.weight"),
           reader=_T2I_ORIGINAL, is_control=True),
    Layout("t2i-adapter", "t2i-original", "a T2I-Adapter in its original layout",
           ("^adapter.body.0.", "block1.weight"), reader=_T2I_ORIGINAL, is_control=True),
    Layout("style-adapter", "t2i-original", "a T2I style adapter", ("^style_embedding",),
           reader=f"{_ADAPTERS}style_adapter.checkpoint", is_control=True),
    Layout("coadapter-fuser", "t2i-original", "a CoAdapter fuser", ("^spatial_feat_mapping.",),
           reader=f"{_ADAPTERS}coadapter.checkpoint", is_control=True),
    Layout("checkpoint", "ldm", "a whole Stable Diffusion checkpoint",
           ("^model.diffusion_model.", "^first_stage_model."),
           advice="It is a base model; load it with diffusers' from_single_file()."),
    Layout("unet", "ldm", "a U-Net in its original layout", ("^model.diffusion_model.",),
           advice="It is a base model; build it with controlkit.unet()."),
    Layout("unet", "diffusers", "a U-Net in diffusers layout",
           ("^down_blocks.", "^up_blocks.", "^time_embedding."),
           advice="It is a base model; load it with diffusers' UNet2DConditionModel."),
    Layout("transformer", "diffusers", "a diffusion transformer", ("^transformer_blocks.",),
           advice="It is a base model."),
    Layout("vae", "diffusers", "a VAE", ("^encoder.down_blocks.", "^decoder.up_blocks."),
           advice="Load it with diffusers' AutoencoderKL."),
    Layout("vae", "ldm", "a VAE", ("^encoder.down.", "^decoder.up."),
           advice="Load it with diffusers' AutoencoderKL.from_single_file()."),
    Layout("text-encoder", "transformers", "a text encoder", ("text_model.encoder.layers.",)),
    Layout("classifier", "guided-diffusion", "a noisy classifier", ("^input_blocks.", "^out."),
           absent=("^output_blocks.",), reader=f"{_ADAPTERS}noisy_classifier.checkpoint", is_control=True),
    Layout("noisy-clip", "sdg-original", "a CLIP image encoder for noisy pictures",
           ("^visual_frozen.", "^emb_layers."), reader=f"{_ADAPTERS}noisy_clip.checkpoint", is_control=True),
    Layout("unet", "ldm", "a U-Net in its original layout", ("^input_blocks.", "^output_blocks.", ".attn2."),
           advice="It is a base model; build it with controlkit.unet()."),
    Layout("unet", "guided-diffusion", "a U-Net of guided-diffusion", ("^input_blocks.", "^output_blocks."),
           advice="It is a base model; build it with controlkit.unet()."),
    Layout("embedding", "textual-inversion", "a textual inversion embedding", ("string_to_param",),
           advice="Load it with pipe.load_textual_inversion()."),
    Layout("embedding", "textual-inversion", "a textual inversion embedding", ("^emb_params",),
           advice="Load it with pipe.load_textual_inversion()."),
)  # fmt: skip
"""The specific ones first: the first that matches is what it is."""

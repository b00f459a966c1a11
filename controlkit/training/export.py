"""How do trained weights become the folders that ship? diffusers' layout, float16 safetensors."""

import json
import shutil
from pathlib import Path

import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from controlkit.embedded.vocabulary import WORDS, write_tokenizer
from controlkit.evaluation.clip import JudgeClipNet
from controlkit.evaluation.judge import JudgeNet
from controlkit.training.denoiser import new_scheduler


def export_base(
    folder: Path, autoencoder: AutoencoderKL, unet: UNet2DConditionModel, text: CLIPTextModel
) -> None:
    """Write a pipeline that `StableDiffusionPipeline.from_pretrained` reads; replaces what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    write_tokenizer(folder / "tokenizer")
    with torch.no_grad():  # letters and parts of words were never trained: they say nothing
        embedding = text.get_input_embeddings()
        assert isinstance(embedding, torch.nn.Embedding)
        embedding.weight[2 + len(WORDS) :] = 0.0
    pipeline = StableDiffusionPipeline(
        vae=autoencoder.half(),
        text_encoder=text.half(),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=unet.half(),
        scheduler=new_scheduler(),  # pyright: ignore[reportArgumentType]
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    file = folder / "text_encoder" / "config.json"
    said = {**json.loads(file.read_text()), "dtype": "float32"}
    # Saving writes the dtype of the weights, in which transformers would load them, and the rest in float32.
    file.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n")


def export_control(folder: Path, control: ControlNetModel | T2IAdapter) -> None:
    """Write one control; replaces what is there."""
    shutil.rmtree(folder, ignore_errors=True)
    control.half().save_pretrained(folder, safe_serialization=True)


def load_exported(folder: Path) -> AutoencoderKL | ControlNetModel | T2IAdapter:
    """Read what `export_base` or `export_control` wrote, in float32, to train it further."""
    kinds = {"AutoencoderKL": AutoencoderKL, "ControlNetModel": ControlNetModel, "T2IAdapter": T2IAdapter}
    named = json.loads((folder / "config.json").read_text())["_class_name"]
    return kinds[named].from_pretrained(folder).float()


def export_judge(folder: Path, judge: JudgeNet | JudgeClipNet) -> None:
    """Write a judge's weights; its shape is the default of its class."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in judge.state_dict().items()},
        folder / "model.safetensors",
    )

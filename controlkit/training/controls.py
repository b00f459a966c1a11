"""How are the ControlNet and the T2I-Adapter trained? Against the finished U-Net, which stays as it is.

Zhang et al. 2023 (arXiv:2302.05543): a copy of the U-Net's encoder behind zero convolutions. Mou et al. 2023
(arXiv:2302.08453): a small convolutional network whose features are added to the encoder's; timesteps are
drawn towards high noise, where structure is decided (their section 3.4).
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.adapter import T2IAdapter
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from controlkit.embedded.scenes import canny_array
from controlkit.training.data import PART, Scenes
from controlkit.training.denoiser import add_noise, new_scheduler
from controlkit.training.optim import Average, Clock, autocast, optimizers, set_rates

log = logging.getLogger(__name__)

KINDS = ("controlnet-canny", "t2i-depth")


def new_control(kind: str, unet: UNet2DConditionModel) -> ControlNetModel | T2IAdapter:
    """A fresh control for a U-Net; a ControlNet starts as its copy, both add next to nothing."""
    if kind == "controlnet-canny":
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 48, 96))
        net.set_attn_processor(AttnProcessor())
        return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return T2IAdapter(
        in_channels=3,
        channels=list(unet.config["block_out_channels"]),
        num_res_blocks=1,
        downscale_factor=8,
        adapter_type="full_adapter",
    )


def control_maps(kind: str, scenes: Scenes, rows: list[int]) -> Tensor:
    """Exact maps of some scenes, (n, 3, 128, 128) in [0, 1]."""
    maps = []
    for index in rows:
        part, row = divmod(index, PART)
        maps.append(
            canny_array(scenes.image[part][row]) if kind == "controlnet-canny" else scenes.depth[part][row]
        )
    return torch.from_numpy(np.stack(maps)).float()[:, None].expand(-1, 3, -1, -1) / 255.0


def predict(
    control: ControlNetModel | T2IAdapter,
    unet: UNet2DConditionModel,
    noisy: Tensor,
    timesteps: Tensor,
    context: Tensor,
    maps: Tensor,
) -> Tensor:
    """The U-Net's output under one control at scale 1, (n, 4, 16, 16)."""
    if isinstance(control, T2IAdapter):
        features = control(maps)
        return unet(noisy, timesteps, context, down_intrablock_additional_residuals=list(features)).sample
    skips, mid = control(noisy, timesteps, context, maps, return_dict=False)
    return unet(
        noisy, timesteps, context, down_block_additional_residuals=skips, mid_block_additional_residual=mid
    ).sample


def train_control(
    kind: str,
    denoiser: tuple[UNet2DConditionModel, CLIPTextModel],
    scenes: Scenes,
    latents: Tensor,
    tokens: Tensor,
    checkpoint: Path,
    *,
    seconds: float,
    lr: float = 1e-3,
    batch: int = 16,
    seed: int = 0,
) -> ControlNetModel | T2IAdapter:
    """Train one control for a number of seconds, or go on from `checkpoint`; returns the averaged weights.

    Args:
        kind: One of `KINDS`.
        denoiser: U-Net and text encoder; not changed.
        scenes: Where the maps come from.
        latents: (n, 4, 16, 16) of the first n scenes.
        tokens: Their captions, the empty one last.
        checkpoint: Averaged weights, written every two minutes.
        seconds: The budget of this run.
        lr: Highest learning rate.
        batch: Samples per step.
        seed: Of weights and order.
    """
    torch.manual_seed(seed)
    unet, text = denoiser
    unet.requires_grad_(False)
    text.requires_grad_(False)
    control = new_control(kind, unet)
    if checkpoint.exists():
        control.load_state_dict(torch.load(checkpoint, weights_only=True))
    control.train().requires_grad_(True)
    average, opts = Average(control, 0.995), optimizers(control, lr)
    alpha_bar = new_scheduler().alphas_cumprod
    clock, step, written, losses = Clock(seconds, decay=0.6), 0, 0.0, []
    while not clock.over:
        rows = torch.randint(len(latents), (batch,))
        maps = control_maps(kind, scenes, rows.tolist())
        captions = torch.where(torch.rand(batch) < 0.3, len(tokens) - 1, rows)
        spread = (torch.arange(batch) + torch.rand(batch)) / batch
        timesteps = ((1.0 - spread**1.5) * 999.0).long()
        noisy, velocity = add_noise(latents[rows].float(), timesteps, alpha_bar)
        set_rates(opts, lr, clock.factor(step, warmup=50))
        with autocast():
            with torch.no_grad():
                context = text(tokens[captions]).last_hidden_state
            output = predict(control, unet, noisy, timesteps, context, maps)
        loss = F.mse_loss(output.float(), velocity)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(control.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(control)
        step += 1
        losses.append(loss.item())
        if step % 50 == 0:
            log.info(
                "%5.0f s  step %6d  samples %7d  loss %.4f",
                clock.spent,
                step,
                step * batch,
                np.mean(losses[-200:]),
            )
        if clock.spent - written > 120 or clock.over:
            written = clock.spent
            state = {k: average.values.get(k, v) for k, v in control.state_dict().items()}
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(checkpoint)
    average.copy_to(control)
    return control.eval()

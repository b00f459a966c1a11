"""How is the autoencoder trained? On crops around the solids, then on whole pictures, by weighted errors.

The background fills most of a picture and is easy, so a plain error forgets the solids: all terms are
weighted by the renderer's foreground. A gradient term keeps edges crisp, a pooled one keeps colours.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from controlkit.training.data import PART, Scenes
from controlkit.training.optim import Average, Clock, autocast, optimizers, set_rates

log = logging.getLogger(__name__)


def new_autoencoder() -> AutoencoderKL:
    """f8, 4 latent channels, no attention."""
    config: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (16, 32, 64, 80),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": 128,
        "scaling_factor": 1.0,
        "mid_block_add_attention": False,
    }
    return AutoencoderKL(**config)


def batch_of_crops(
    scenes: Scenes, rng: np.random.Generator, count: int, size: int, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Random crops with a part of a solid: pictures in [-1, 1] and weights, (count, 3 or 1, size, size)."""
    images = np.empty((count, size, size, 3), np.uint8)
    masks = np.empty((count, size, size), np.uint8)
    for i in range(count):
        part, row = divmod(int(rng.integers(first, len(scenes))), PART)
        image, instances = scenes.image[part][row], scenes.instances[part][row]
        top = left = 0
        if size < image.shape[0]:
            rows, columns = np.nonzero(instances)
            pick = rng.integers(len(rows))
            limit = image.shape[0] - size
            top = int(np.clip(rows[pick] - rng.integers(size), 0, limit))
            left = int(np.clip(columns[pick] - rng.integers(size), 0, limit))
        step = 1 if rng.random() < 0.5 else -1
        images[i] = image[top : top + size, left : left + size][:, ::step]
        masks[i] = instances[top : top + size, left : left + size][:, ::step]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    near = F.max_pool2d(torch.from_numpy(masks > 0).float()[:, None], 7, 1, 3)
    return x.contiguous(), 0.35 + 1.65 * near


_SOBEL = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]) / 4.0
_SOBEL_KERNEL = torch.stack([_SOBEL, _SOBEL.T])[:, None]


def reconstruction_loss(output: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted |e| + 2 e², four times the squared 4x-pooled e, and |gradient of e| per channel."""
    error = output.float() - target
    point = (weight * (error.abs() + 2.0 * error.square())).mean()
    pooled = (F.avg_pool2d(weight, 4) * F.avg_pool2d(error, 4).square()).mean()
    gradient = F.conv2d(error.flatten(0, 1)[:, None], _SOBEL_KERNEL).abs()
    gradient = gradient.unflatten(0, error.shape[:2]).mean(2)
    edges = (weight[:, :, 1:-1, 1:-1] * gradient).mean()
    return point + 4.0 * pooled + 0.5 * edges


def train_autoencoder(
    scenes: Scenes,
    checkpoint: Path,
    *,
    seconds: float,
    lr: float = 2e-3,
    batch: int = 16,
    whole: float = 0.25,
    kl_weight: float = 2e-4,
    seed: int = 0,
) -> AutoencoderKL:
    """Train, or go on from `checkpoint`, for a number of seconds; returns the averaged weights.

    Args:
        scenes: Training scenes.
        checkpoint: Weights and progress, written every two minutes; read at the start if it is there.
        seconds: The budget of this run.
        lr: Highest learning rate.
        batch: Crops per step; whole pictures come in a quarter of that.
        whole: Share of the budget, at its end, that sees whole pictures.
        kl_weight: Of the mean Kullback-Leibler divergence per latent number.
        seed: Of the order of scenes.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = new_autoencoder()
    if checkpoint.exists():
        model.load_state_dict(torch.load(checkpoint, weights_only=True))
    average = Average(model, 0.999)
    opts = optimizers(model, lr)
    clock, step, saved, losses = Clock(seconds, decay=0.6), 0, 0.0, []
    while not clock.over:
        full = clock.spent > (1.0 - whole) * seconds
        x, weight = batch_of_crops(scenes, rng, batch // 4 if full else batch, 128 if full else 64)
        set_rates(opts, lr, clock.factor(step))
        with autocast():
            posterior: Any = model.encode(x, return_dict=False)[0]
            output = model.decode(posterior.sample(), return_dict=False)[0]
        loss = reconstruction_loss(output, x, weight)
        (loss + kl_weight * posterior.kl().mean() / posterior.mean[0].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(model)
        step += 1
        losses.append(float(loss.detach()))
        if step % 100 == 0:
            log.info("%5.0f s  step %6d  loss %.4f", clock.spent, step, np.mean(losses[-100:]))
        if clock.spent - saved > 120 or clock.over:
            saved = clock.spent
            _save(model, average, checkpoint)
    _save(model, average, checkpoint)
    average.copy_to(model)
    return model


def _save(model: AutoencoderKL, average: Average, checkpoint: Path) -> None:
    state = {k: average.values.get(k, v) for k, v in model.state_dict().items()}
    temporary = checkpoint.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(checkpoint)


@torch.no_grad()
def normalise(model: AutoencoderKL, latents: Tensor) -> None:
    """Fold a shift and scale per channel into the two 1x1 convolutions: mean 0 and variance 1.

    Args:
        model: Changed in place; what it decodes from what it encodes stays the same.
        latents: (n, 4, h, w), as the unchanged model encodes typical pictures.
    """
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    into, out = model.quant_conv, model.post_quant_conv
    assert into is not None
    assert into.bias is not None
    assert out is not None
    assert out.bias is not None
    into.weight[:channels] /= spread[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / spread
    into.bias[channels:] -= 2.0 * spread.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= spread[None, :, None, None]


@torch.no_grad()
def encode_part(model: AutoencoderKL, image: np.ndarray, batch: int = 50) -> np.ndarray:
    """Latent means of (n, 128, 128, 3) uint8 pictures, (n, 4, 16, 16) float16."""
    latents = []
    for begin in range(0, len(image), batch):
        x = (
            torch.from_numpy(image[begin : begin + batch]).permute(0, 3, 1, 2).float().contiguous() / 127.5
            - 1.0
        )
        with autocast():
            latents.append(model.encode(x, return_dict=False)[0].mean.float())
    return torch.cat(latents).numpy().astype(np.float16)

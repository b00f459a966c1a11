"""How are the networks trained that guide the embedded model? On its cached latents, made noisy.

All read x_t and t, variance-preserving, t uniform in 0 … 999, as the denoiser does, so that their gradient
needs neither the U-Net nor the autoencoder. `classifier` says which kind covers most of the picture, `clip`
how well a caption fits it, `segmentation` which kind is where.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from controlkit.adapters.noisy_classifier import (
    ClassifierConfig,
    NoisyClassifier,
    PixelUNet,
    PixelUNetConfig,
)
from controlkit.checkpoints.save import WEIGHTS
from controlkit.embedded.scenes import LABELS
from controlkit.embedded.world import KINDS
from controlkit.guidance.towers import NoisySegmenter
from controlkit.training.data import PART, Scenes
from controlkit.training.denoiser import add_noise, new_scheduler
from controlkit.training.optim import Average, Clock, autocast, optimizers, set_rates

log = logging.getLogger(__name__)

GUIDES = ("classifier", "clip", "segmentation")
WIDTH = 128
"""Of the common space of the two towers."""
FACTOR = 4
"""Label pixels per latent place, along each side: 64 for 16."""


def classifier_config(outputs: int) -> ClassifierConfig:
    """Three levels of 64 channels, attention at 8x8 and in the middle, a learned query at the end."""
    return ClassifierConfig(
        in_channels=4,
        model_channels=64,
        out_channels=outputs,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 1, 1),
        num_head_channels=32,
        use_scale_shift_norm=True,
        pool="attention",
        image_size=16,
    )


def segmenter_config() -> PixelUNetConfig:
    """Two levels of 32 and 64 channels, attention at 8x8 and in the middle."""
    return PixelUNetConfig(
        in_channels=4,
        model_channels=32,
        out_channels=len(LABELS) * FACTOR**2,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_head_channels=32,
        use_scale_shift_norm=True,
        image_size=16,
    )


class Pair(nn.Module):
    """The trainable parts of `controlkit.guidance.towers.NoisyTowers`, under the same names."""

    def __init__(self, image: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())


def new_guide(kind: str, base: Path | None = None) -> nn.Module:
    """A fresh network.

    Args:
        kind: One of `GUIDES`.
        base: Exported base model, whose text encoder the text tower begins as; None: random.
    """
    if kind == "classifier":
        return NoisyClassifier(classifier_config(len(KINDS)))
    if kind == "segmentation":
        return NoisySegmenter(PixelUNet(segmenter_config()), FACTOR)
    if kind == "clip":
        from controlkit.embedded.guides import TextTower

        text = TextTower.new(WIDTH)
        if base is not None:
            text.begin_with(base / "text_encoder")
        return Pair(NoisyClassifier(classifier_config(WIDTH)), text)
    raise ValueError(f"no guide is called {kind!r}; there are {', '.join(GUIDES)}")


def label_maps(scenes: Scenes, rows: list[int]) -> np.ndarray:
    """Kinds at 64x64 of some scenes, (n, 64, 64) uint8; 0 is the floor."""
    maps = np.empty((len(rows), 64, 64), np.uint8)
    for i, index in enumerate(rows):
        part, row = divmod(index, PART)
        table = np.concatenate([[-1], scenes.objects[index, :, 0]]).astype(np.int8) + 1
        maps[i] = table[scenes.instances[part][row][::2, ::2]]
    return maps


def kinds_of(scenes: Scenes, count: int) -> Tensor:
    """Index into `KINDS` of the kind that covers most pixels, for the first `count` scenes, (n,) int64."""
    found = np.empty(count, np.int64)
    for begin in range(0, count, PART):
        rows = list(range(begin, min(begin + PART, count)))
        maps = label_maps(scenes, rows).reshape(len(rows), -1)
        shares = np.stack([(maps == label).sum(1) for label in range(1, len(LABELS))], 1)
        found[rows] = shares.argmax(1)
    return torch.from_numpy(found)


def contrastive_loss(image: Tensor, text: Tensor, which: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE in both directions, where equal captions are not each other's negatives.

    Args:
        image: (batch, dim), of length 1.
        text: (unique, dim), of length 1: each caption once.
        which: (batch,), the row of `text` that belongs to each image.
        scale: One over the temperature.
    """
    logits = scale * image @ text.mT
    to_image = logits.mT[which]
    same = which[:, None] == which[None]
    same.fill_diagonal_(False)
    to_image = to_image.masked_fill(same, float("-inf"))
    return 0.5 * (F.cross_entropy(logits, which) + F.cross_entropy(to_image, torch.arange(len(which))))


def losses(kind: str, model: nn.Module, scenes: Scenes, tokens: Tensor, count: int) -> Callable[..., Tensor]:
    """The loss of one kind, a function of scene rows, x_t (n, 4, 16, 16) and t (n,)."""
    if kind == "classifier":
        kinds = kinds_of(scenes, count)
        return lambda rows, noisy, t: F.cross_entropy(model(noisy, t).float(), kinds[rows])
    if kind == "segmentation":

        def segmentation(rows: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
            labels = torch.from_numpy(label_maps(scenes, rows.tolist())).long()
            return F.cross_entropy(model(noisy, t).float(), labels)

        return segmentation

    def contrast(rows: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        assert isinstance(model, Pair)
        captions, which = torch.unique(tokens[rows], dim=0, return_inverse=True)
        image = F.normalize(model.image(noisy, t).float(), dim=-1)
        text = F.normalize(model.text(captions).float(), dim=-1)
        return contrastive_loss(image, text, which, model.log_scale.clamp(max=4.6).exp())

    return contrast


def train_guide(
    kind: str,
    scenes: Scenes,
    latents: Tensor,
    tokens: Tensor,
    checkpoint: Path,
    *,
    seconds: float,
    base: Path | None = None,
    lr: float = 2e-3,
    batch: int = 64,
    seed: int = 0,
) -> nn.Module:
    """Train one network from nothing for a number of seconds; returns the averaged weights.

    Args:
        kind: One of `GUIDES`.
        scenes: Where labels come from.
        latents: (n, 4, 16, 16) float16 of the first n scenes, normalised.
        tokens: Their captions, as `controlkit.training.denoiser.token_table` gives them.
        checkpoint: Averaged weights, written every two minutes.
        seconds: The budget.
        base: Exported base model, whose text encoder the text tower begins as.
        lr: Highest learning rate.
        batch: Samples per step.
        seed: Of weights and order.
    """
    torch.manual_seed(seed)
    model = new_guide(kind, base).train().requires_grad_(True)
    loss_of = losses(kind, model, scenes, tokens, len(latents))
    average, opts = Average(model, 0.995), optimizers(model, lr)
    alpha_bar = new_scheduler().alphas_cumprod
    clock, step, written, seen = Clock(seconds, decay=0.7), 0, 0.0, []
    while not clock.over:
        rows = torch.randint(len(latents), (batch,))
        timesteps = ((torch.arange(batch) + torch.rand(batch)) * (1000 / batch)).long()
        noisy, _ = add_noise(latents[rows].float(), timesteps, alpha_bar)
        set_rates(opts, lr, clock.factor(step, warmup=50))
        with autocast():
            loss = loss_of(rows, noisy, timesteps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(model)
        step += 1
        seen.append(loss.item())
        if step % 50 == 0:
            log.info(
                "%s %5.0f s  step %6d  samples %7d  loss %.4f",
                *(kind, clock.spent, step, step * batch, np.mean(seen[-100:])),
            )
        if clock.spent - written > 120 or clock.over:
            written = clock.spent
            write_average(checkpoint, model, average)
    average.copy_to(model)
    return model.eval().requires_grad_(False)


def write_average(checkpoint: Path, model: nn.Module, average: Average) -> None:
    """Write the averaged weights so that what was there stays whole."""
    temporary = checkpoint.with_suffix(".tmp")
    torch.save(
        {name: average.values.get(name, value) for name, value in model.state_dict().items()}, temporary
    )
    temporary.replace(checkpoint)


def load_guide(kind: str, checkpoint: Path) -> nn.Module:
    """The averaged weights of a run, in float32."""
    model = new_guide(kind)
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    return model.eval().requires_grad_(False)


def export_guide(kind: str, model: nn.Module, folder: Path) -> None:
    """Write one network as it ships: float16, with the constructor's arguments beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    part = {
        "classifier": model,
        "clip": getattr(model, "image", None),
        "segmentation": getattr(model, "unet", None),
    }
    built = part[kind]
    assert isinstance(built, NoisyClassifier | PixelUNet)
    entries = built.config.to_dict()
    (folder / "config.json").write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n")
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / (WEIGHTS if kind == "classifier" else "model.safetensors"))

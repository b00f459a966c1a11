"""How are the U-Net and the text encoder trained? Together, from nothing, on cached latents.

v-prediction (Salimans and Ho 2022, arXiv:2202.00512) with uniform timesteps; one caption in ten is empty,
for classifier-free guidance. The error at each place of the latents is weighted by whether a solid is near:
most of a picture is floor and easy. Weights per place do not change what the best prediction is.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from controlkit.embedded.vocabulary import LENGTH, encode, vocabulary
from controlkit.training.optim import Average, Clock, autocast, optimizers, set_rates

log = logging.getLogger(__name__)


def new_scheduler() -> DDIMScheduler:
    """DDPM's linear schedule: 1000 steps, the last one nearly pure noise."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def new_text_encoder() -> CLIPTextModel:
    """Two layers of width 128 over the world's vocabulary."""
    tokens, _ = vocabulary()
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            hidden_act="gelu",
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def new_unet() -> UNet2DConditionModel:
    """Two levels, 16x16 and 8x8; attention at both, but not on the way out at 16x16, where it costs most."""
    config: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (96, 144),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 128,
        "attention_head_dim": (3, 4),  # diffusers' name for the number of heads
        "norm_num_groups": 16,
    }
    return UNet2DConditionModel(**config)


def prepare(model: UNet2DConditionModel) -> UNet2DConditionModel:
    """Plain attention is faster to train than the fused one at these sizes on a CPU."""
    model.set_attn_processor(AttnProcessor())
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def add_noise(latents: Tensor, timesteps: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy latents and the velocity to predict."""
    signal = alpha_bar[timesteps].sqrt()[:, None, None, None]
    spread = (1.0 - alpha_bar[timesteps]).sqrt()[:, None, None, None]
    noise = torch.randn_like(latents)
    noisy = (signal * latents + spread * noise).contiguous(memory_format=torch.channels_last)
    return noisy, signal * noise - spread * latents


def token_table(captions: list[str]) -> Tensor:
    """Token numbers (n + 1, 26); the last row is the empty caption."""
    return torch.tensor(encode([*captions, ""]))


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        seconds: The budget, that of an interrupted run included.
        lr: Highest learning rate.
        batch: Samples per step and worker.
        decay: Share of the budget, at its end, over which the learning rate falls.
        workers: Processes of one thread each that share every step. On a busy machine they lose less than
            threads do, because they wait for each other once per step and not once per operation.
        start: Folder of an exported base model whose weights are the beginning; None for new ones.
    """

    seconds: float
    lr: float = 2e-3
    batch: int = 24
    decay: float = 0.5
    workers: int = 2
    start: Path | None = None


def train_denoiser(latents: Tensor, tokens: Tensor, weights: Tensor, checkpoint: Path, plan: Plan) -> None:
    """Train U-Net and text encoder by a plan, or go on from `checkpoint`.

    Args:
        latents: (n, 4, 16, 16) float16, normalised.
        tokens: As `token_table` gives them for the n captions.
        weights: As `place_weights` gives them for the n scenes.
        checkpoint: State of the run, written every two minutes; holds the averaged weights too.
        plan: Budget, rate and workers.
    """
    Path(f"{checkpoint}.meet").unlink(missing_ok=True)  # of an interrupted run
    for table in (latents, tokens, weights):
        table.share_memory_()
    torch.multiprocessing.spawn(_work, (latents, tokens, weights, checkpoint, plan), nprocs=plan.workers)  # pyright: ignore[reportPrivateImportUsage]


def _work(rank: int, latents: Tensor, tokens: Tensor, weights: Tensor, checkpoint: Path, plan: Plan) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{checkpoint.absolute()}.meet", rank=rank, world_size=plan.workers
    )
    torch.manual_seed(0)
    both = torch.nn.ModuleDict({"unet": prepare(new_unet()), "text": new_text_encoder()})
    if plan.start is not None:
        _begin_with(both, plan.start)
    average, opts = Average(both, 0.998), optimizers(both, plan.lr)
    step, spent = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(state["model"])
        average.values, average.steps = state["average"], state["step"]
        for optimizer, saved in zip(opts, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, spent = state["step"], state["spent"]
    torch.manual_seed(step * plan.workers + rank)
    alpha_bar = new_scheduler().alphas_cumprod
    params = [p for p in both.parameters() if p.requires_grad]
    clock, written, losses = Clock(plan.seconds, spent, plan.decay), spent, []
    while spent < plan.seconds:
        loss = _loss(both, latents, tokens, weights, alpha_bar, plan.batch)
        loss.backward()
        loss, spent = _share_gradients(params, loss.detach(), clock.spent if rank == 0 else 0.0)
        set_rates(opts, plan.lr, clock.factor(step, spent=spent))
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if rank > 0:
            continue
        average.update(both)
        losses.append(loss)
        if step % 50 == 0:
            samples = step * plan.batch * plan.workers
            log.info(
                "%5.0f s  step %6d  samples %7d  loss %.4f", spent, step, samples, np.mean(losses[-200:])
            )
        if spent - written > 120 or spent >= plan.seconds:
            written = spent
            rates = [optimizer.state_dict() for optimizer in opts]
            state = {"model": both.state_dict(), "average": average.values, "optimizers": rates}
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state | {"step": step, "spent": spent}, temporary)
            temporary.replace(checkpoint)
    dist.destroy_process_group()


def _begin_with(both: torch.nn.ModuleDict, folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    both["unet"].load_state_dict(unet.float().state_dict())
    both["text"].load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").float().state_dict())


def _loss(
    both: torch.nn.ModuleDict,
    latents: Tensor,
    tokens: Tensor,
    weights: Tensor,
    alpha_bar: Tensor,
    batch: int,
) -> Tensor:
    rows = torch.randint(len(latents), (batch,))
    captions = torch.where(torch.rand(batch) < 0.1, len(tokens) - 1, rows)
    # one timestep per equal share of the range: the same uniform law, less variance from step to step
    timesteps = ((torch.arange(batch) + torch.rand(batch)) * (1000 / batch)).long()
    noisy, velocity = add_noise(latents[rows].float(), timesteps, alpha_bar)
    with autocast():
        context = both["text"](tokens[captions]).last_hidden_state
        output = both["unet"](noisy, timesteps, context).sample
    weight = weights[rows].float()[:, None]
    return ((output.float() - velocity).square() * weight).mean() / weight.mean()


def place_weights(instances: Sequence[np.ndarray]) -> Tensor:
    """Weight of each latent place, (n, 16, 16) float16: 1 on and next to solids, 0.3 elsewhere.

    Args:
        instances: Parts of (n, 128, 128) uint8; 0 is the floor.
    """
    near = [
        F.max_pool2d(torch.from_numpy(part > 0).half().float()[:, None], 24, stride=8, padding=8)[:, 0]
        for part in instances
    ]
    return 0.3 + 0.7 * torch.cat(near).half()


def _share_gradients(params: Sequence[Tensor], loss: Tensor, spent: float) -> tuple[float, float]:
    """Average gradients and loss over the workers, in place; also hands round the first worker's clock."""
    workers = dist.get_world_size()
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in params]
    flat = torch.cat([*(g.flatten() for g in grads), loss.reshape(1), torch.tensor([spent])])
    if workers > 1:
        dist.all_reduce(flat)
    for param, part in zip(params, flat[:-2].split([g.numel() for g in grads]), strict=True):
        param.grad = part.view(param.shape) / workers
    return float(flat[-2]) / workers, float(flat[-1])


def load_denoiser(checkpoint: Path) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """The averaged weights of a run."""
    both = torch.nn.ModuleDict({"unet": prepare(new_unet()), "text": new_text_encoder()})
    both.load_state_dict(torch.load(checkpoint, weights_only=True)["average"], strict=False)
    return both["unet"].eval(), both["text"].eval()  # pyright: ignore[reportReturnType]

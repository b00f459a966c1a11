"""How is the CLIP trained that measures text guidance? On rendered pictures, disturbed as the judge's are.

Nothing of it is shared with the towers that guide: other networks, other inputs, another seed and order.
"""

import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from controlkit.embedded.vocabulary import encode
from controlkit.evaluation.clip import JudgeClip, JudgeClipNet
from controlkit.training.data import PART, Scenes
from controlkit.training.guides import contrastive_loss, write_average
from controlkit.training.judge import disturb
from controlkit.training.optim import Average, Clock, autocast, optimizers, set_rates

log = logging.getLogger(__name__)


def train_judge_clip(
    scenes: Scenes, checkpoint: Path, *, seconds: float, lr: float = 2e-3, batch: int = 64, seed: int = 20_000
) -> JudgeClip:
    """Train from nothing for a number of seconds; the averaged weights are written every two minutes."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = JudgeClipNet()
    tokens = [torch.tensor(encode(captions)) for captions in scenes.captions]
    average, opts = Average(net, 0.995), optimizers(net, lr)
    clock, step, written, seen = Clock(seconds, decay=0.7), 0, 0.0, []
    while not clock.over:
        images, captions = [], []
        for index in rng.integers(len(scenes), size=batch):
            part, row = divmod(int(index), PART)
            mirrored = int(rng.random() < 0.5)
            images.append(scenes.image[part][row][:, :: -1 if mirrored else 1])
            captions.append(tokens[mirrored][index])
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().contiguous() / 255.0
        unique, which = torch.unique(torch.stack(captions), dim=0, return_inverse=True)
        x = F.avg_pool2d(disturb(x, rng), 2)
        set_rates(opts, lr, clock.factor(step, warmup=50))
        with autocast():
            image, text = net.encode_image(x), net.encode_text(unique)
        loss = contrastive_loss(image.float(), text.float(), which, net.log_scale.clamp(max=4.6).exp())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimizer in opts:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(net)
        step += 1
        seen.append(loss.item())
        if step % 50 == 0:
            log.info("judge-clip %5.0f s  step %6d  loss %.4f", clock.spent, step, np.mean(seen[-100:]))
        if clock.spent - written > 120 or clock.over:
            written = clock.spent
            write_average(checkpoint, net, average)
    average.copy_to(net)
    return JudgeClip(net)

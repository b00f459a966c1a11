"""What must run where there is no diffusers, as in web UIs: torch, numpy, pillow and safetensors alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import importlib.abc, sys

ABSENT = {"diffusers", "transformers", "accelerate", "pydantic", "huggingface_hub", "typer", "rich", "peft"}


class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)


sys.meta_path.insert(0, Absent())
import torch
import controlkit as ck
from controlkit.adapters.controlnet import ControlNetConfig

torch.manual_seed(0)
config = ControlNetConfig(
    block_out_channels=(32, 64),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    cross_attention_dim=16,
    attention_head_dim=4,
    layers_per_block=1,
    conditioning_embedding_out_channels=(8, 8, 8, 8),
)
net = ck.ControlNet(config).eval()
again = ck.load(net.state_dict(), config=config.to_dict())
with torch.no_grad():
    out = again(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, 16), torch.rand(1, 3, 64, 64))
assert len(out.skips) == 4 and out.mid.shape == (1, 64, 4, 4)
adapter = ck.T2IAdapter().eval()
with torch.no_grad():
    assert len(adapter(torch.rand(1, 3, 64, 64))) == 4
ck.Guidance(lambda x, y, t: -(x**2).flatten(1).sum(1), scale=2.0)
ck.Guidance(ck.guidance.color(), "red")
pair = (ck.guidance.classifier(lambda x: x.mean((2, 3)), sees="image"), 1)
both = ck.guidance.total((ck.guidance.edges(), torch.eye(32)), pair)
assert both(torch.rand(2, 3, 32, 32), None, torch.zeros(2)).shape == (2,)
again.on(torch.rand(1, 3, 64, 64), scale=0.5, end=0.5)
picture = ck.preprocess(torch.rand(3, 32, 48), "blur")
assert picture.size == (48, 32)
assert ck.detectors()
import controlkit.attaching
assert not ABSENT & {name.partition(".")[0] for name in sys.modules}
print("ran")
"""


def test_modules_guidance_and_detectors_run_without_diffusers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "ran"

"""Ready-made guidance without any network: edges, colours, a region, a sketch, over a ladder of scales."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

import controlkit as ck

STEPS = 10
SCALES = (0.3, 1.0)
PROMPT = "a cube on a snow floor"

pipe = ck.embedded.pipeline()
scene = ck.embedded.scene(5)
sketch = Image.new("RGB", (128, 128), "#d6bc8e")  # a floor of sand, and something blue on the right
sketch.paste("#2c60ec", (76, 40, 116, 100))
left = np.zeros((128, 128), np.float32)
left[:, :64] = 1

wanted = {
    "edges": (ck.guidance.edges(), scene.canny),
    "color": (ck.guidance.color(), "red"),
    "segmentation": (ck.guidance.segmentation(), sketch),
    "region": (ck.guidance.region(left), scene.image),
}


def draw(*controls: ck.Guidance) -> Image.Image:
    """One picture, always from the same noise."""
    generator = torch.Generator().manual_seed(0)
    with ck.attach(pipe, *controls) as run:
        found = pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=2.0, generator=generator)
    print(run.report())
    return found.images[0]


def row(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, each 128 pixels wide."""
    sheet = Image.new("RGB", (128 * len(pictures), 128))
    for place, picture in enumerate(pictures):
        sheet.paste(picture.resize((128, 128)), (128 * place, 0))
    return sheet


unguided = draw()
for name, (phi, y) in wanted.items():
    target = y if isinstance(y, Image.Image) else Image.new("RGB", (128, 128), y)
    guided = [draw(ck.Guidance(phi, y, scale=scale, name=name)) for scale in SCALES]
    row([target, unguided, *guided]).save(f"guided-{name}.png")

"""Segmentation guidance: solids where the label maps of the first row have them, one row for each scale."""

import torch
from PIL import Image

import controlkit as ck

SCALES = (0.0, 1.0, 4.0)
STEPS = 20
pipe = ck.embedded.pipeline()
scenes = [ck.embedded.scene(seed) for seed in (2, 3, 6, 8)]
labels = ck.guidance.segmentation(ck.embedded.segmentation())
rows = [[scene.seg for scene in scenes]]

for scale in SCALES:
    control = ck.Guidance(
        labels, [scene.labels for scene in scenes], scale=scale, recurrence=3
    )  # three turns a step: solids of one piece
    with ck.attach(pipe, control) as run:
        found = pipe(
            [""] * 4,  # no prompt: whatever is asked for comes from guidance
            num_inference_steps=STEPS,
            guidance_scale=1.0,
            generator=[torch.Generator().manual_seed(seed) for seed in range(4)],
        )
    rows.append(found.images)
    print(run.report())

sheet = Image.new("RGB", (4 * 128, len(rows) * 128))
for line, pictures in enumerate(rows):
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (128 * place, 128 * line))
sheet.save("guided-segmentation.png")

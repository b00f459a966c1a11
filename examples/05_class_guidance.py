"""Class guidance: cones that no prompt asks for, one row of pictures for each scale."""

import torch
from PIL import Image

import controlkit as ck

SCALES = (0.0, 1.0, 5.0)
STEPS = 20
pipe = ck.embedded.pipeline()
kinds = ck.guidance.classifier(ck.embedded.load("classifier"))  # reads noisy latents
cone = ck.embedded.LABELS.index("cone") - 1  # its classes are the labels without the floor
rows = []

for scale in SCALES:
    control = ck.Guidance(kinds, cone, scale=scale, recurrence=3)  # three turns a step: solids of one piece
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
sheet.save("guided-class.png")

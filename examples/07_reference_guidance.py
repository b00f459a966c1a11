"""Reference guidance: pictures like those of the first row, one row for each scale."""

import torch
from PIL import Image

import controlkit as ck

SCALES = (0.0, 1.0, 5.0, 20.0)
STEPS = 20
pipe = ck.embedded.pipeline()
references = [ck.embedded.scene(seed).image for seed in (2, 3, 6, 8)]
likeness = ck.guidance.image(ck.embedded.clip())
rows = [references]

for scale in SCALES:
    control = ck.Guidance(
        likeness, references, scale=scale, recurrence=3
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
sheet.save("guided-reference.png")

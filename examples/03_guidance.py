"""Guidance by a function: no weights, only the gradient of phi with respect to the predicted picture."""

from torch import Tensor

import controlkit as ck


def redness(image: Tensor, amount: float, _timestep: Tensor) -> Tensor:
    """Log-probability, up to a constant, of (images, 3, H, W) in [-1, 1]: redder is likelier."""
    return amount * (image[:, 0] - image[:, 1:].mean(1)).mean((1, 2))


pipe = ck.embedded.pipeline()
for amount in (0.0, 200.0):
    guidance = ck.Guidance(redness, amount, sees="image", max_norm=5.0, name="redness")
    with ck.attach(pipe, guidance) as run:
        image = pipe("a cube on a snow floor", num_inference_steps=20, guidance_scale=2.0).images[0]
    image.save(f"redness-{amount:g}.png")
    print(run.report())

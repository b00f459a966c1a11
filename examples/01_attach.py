"""Two controls on one pipeline: edges for the first 60 % of the steps, depth fading out over the run."""

import controlkit as ck

scene = ck.embedded.scene(3)
pipe = ck.embedded.pipeline()
edges, depth = ck.embedded.load("controlnet-canny"), ck.embedded.load("t2i-depth")

controls = [
    edges.on(scene.canny, end=0.6),
    depth.on(scene.depth, scale=[(0.0, 1.0), (1.0, 0.3)]),
]
with ck.attach(pipe, *controls) as run:
    image = pipe(scene.caption, num_inference_steps=20, guidance_scale=2.0).images[0]

image.save("attached.png")
print(run.report())

"""A recipe makes a picture; the picture carries the recipe; and that makes the same picture again."""

from pathlib import Path

import controlkit as ck
from controlkit.recipes import png_bytes, write

recipe = ck.Recipe.load(
    {
        "prompt": "a red cube on a sand floor",
        "seed": 7,
        "guidance_scale": 2.0,
        "controls": [
            {"module": "embedded:controlnet-canny", "image": ck.embedded.scene(3).canny, "end": 0.8}
        ],
    }
)
picture = ck.run(recipe)[0]
path = write(Path("recipe.png"), png_bytes(picture, ck.Recipe.load(picture)), number=True)

again = ck.run(ck.Recipe.load(path))[0]
print("the same picture, to the bit:", again.tobytes() == picture.tobytes())

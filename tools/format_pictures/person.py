"""Points on a photograph, scikit-image's astronaut of 512 x 512 pixels: where joints and a face are.

Those of the body were placed by eye; those of the face are MediaPipe's, rounded. Her left arm and both
hands are hidden.
"""

from __future__ import annotations

SIDE = 512
"""Pixels of the photograph's sides."""
Place = tuple[float, float]
BODY: dict[int, Place] = {
    0: (224, 127),
    1: (247, 103),
    2: (203, 101),
    3: (272, 126),
    4: (178, 122),
    5: (330, 270),
    6: (84, 270),
    8: (44, 446),
    10: (120, 488),
}
"""x and y of the joints that are seen, under COCO's numbers: nose, eyes, ears, shoulders (left first), right
elbow and wrist."""
_FACE = """
    181,92 179,110 179,119 182,139 185,148 189,155 200,167 212,176 221,177 230,177 244,170 256,159 261,153
    265,144 270,124 270,116 270,98 185,89 192,88 199,87 207,88 216,90 236,92 245,91 253,91 259,93 266,93
    225,100 224,110 224,120 224,126 213,128 217,131 223,132 230,132 234,130 195,101 199,98 206,98 213,104
    207,104 200,104 237,105 245,100 252,101 256,104 250,107 243,106 202,139 211,139 217,139 224,140 230,140
    236,140 245,141 235,152 229,154 223,155 216,154 211,151 203,140 218,142 224,143 229,143 243,142 229,150
    223,150 217,149"""
FACE: list[Place] = [
    (float(across), float(down)) for across, down in (pair.split(",") for pair in _FACE.split())
]
"""68 points in the order of dlib and COCO-WholeBody: jaw, brows, nose, eyes, mouth."""
assert len(FACE) == 68

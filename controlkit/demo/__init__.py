"""The demonstration: one contact sheet of what control does, drawn with the embedded models.

`sources.py` has the two pictures that are followed, `drawing.py` samples with and without control and
measures, `sheet.py` lays everything out.
"""

from controlkit.demo.drawing import DemoRow, Score, draw
from controlkit.demo.sheet import contact_sheet
from controlkit.demo.sources import DemoSource, sources

__all__ = ["DemoRow", "DemoSource", "Score", "contact_sheet", "draw", "sources"]

"""The one door through which every picture enters: what goes in, what comes out, what is refused.

One set of rules for photographs, control maps and masks, whatever they come as:

- **Range.** uint8 is 0..255, 16-bit is 0..65535, bool is 0 or 1, floats are [0, 1]. Nothing is clipped to
  black or white because of its type. Floats in [-0.01, 1.5] are read as [0, 1] with overshoot (as
  resampling makes) and clamped, with a note; anything outside is refused with the likely cause.
- **Transparency.** Transparent means that nothing is there, and in a control map nothing is black: pixels
  are laid on black. ``background`` chooses another colour. Arrays carry no word on what a fourth channel
  means and are refused.
- **Orientation.** EXIF orientation is applied, once.
- **Colour.** Gray is repeated; CMYK and LAB are converted, through their ICC profile where they have one.
  The numbers of RGB and gray pictures are never changed by a profile (they may be labels or depths); a
  profile other than sRGB is noted.
- **Layout.** Channels first or last is found only where one reading fits; otherwise the shape is refused.
- **Notes.** What a user would want to know (a note) is appended to ``notes`` where a list is given, and is
  otherwise a `ControlKitWarning`.

Paths and addresses are never read here by accident: only `open_image` opens files, and nothing fetches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from controlkit.images.door import as_map, as_mask, as_picture, as_pictures, to_picture
from controlkit.images.files import open_image
from controlkit.images.hidden import as_saved
from controlkit.images.limits import MAX_ASPECT, MAX_PIXELS

if TYPE_CHECKING:
    from controlkit.images.sizes import fit

__all__ = [
    "MAX_ASPECT",
    "MAX_PIXELS",
    "as_map",
    "as_mask",
    "as_picture",
    "as_pictures",
    "as_saved",
    "fit",
    "open_image",
    "to_picture",
]


def __getattr__(name: str) -> Any:
    if name == "fit":  # needs torch, which a detector in a process of its own does not
        from controlkit.images.sizes import fit

        return fit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

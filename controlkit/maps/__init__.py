"""A control map that cannot be right is noticed: what a picture looks like, and what a condition needs."""

from controlkit.maps.checking import MapCheck, check_map
from controlkit.maps.noticing import notice
from controlkit.maps.palettes import PALETTES

__all__ = ["PALETTES", "MapCheck", "check_map", "notice"]

"""Command-line flags of a web UI that has this repository as an extension (AUTOMATIC1111, Forge, SD.Next)."""

from typing import Any


def preload(parser: Any) -> None:
    """Add ours; the web UI calls this before it reads its command line."""
    about = "a folder with control files, before the web UI's own models/ControlNet"
    parser.add_argument("--controlkit-dir", type=str, default=None, help=about)

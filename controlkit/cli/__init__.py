"""Command line: ``controlkit demo | generate | preprocess | detectors | inspect | models | ui``.

Commands are in a file each; `console.py` has what they print with, `controls.py` how ``--control`` is read.
Nothing heavy is imported before a command needs it, so that ``--help`` is quick.
"""

from controlkit.cli.app import main

__all__ = ["main"]

"""The model card beside saved weights: what they are, where they came from, how to use them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from controlkit.module import ControlModule

CARD = "README.md"
_MARK = "<!-- written by controlkit -->"


def card_of(module: ControlModule) -> str:
    """The text of a model card, Markdown with the hub's front matter."""
    source = Path(module.source)
    rows = {
        "kind": module.kind,
        "base model": module.base,
        "condition": module.condition or "not known",
        "parameters": f"{sum(parameter.numel() for parameter in module.parameters()):,}",
        "dtype": str(next(module.parameters()).dtype).removeprefix("torch."),
        "made from": (source.name if source.is_absolute() else module.source) or "weights in memory",
        "SHA-256 of that file": module.digest or "not known",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: controlkit
tags: [{module.kind}, {module.base}]
---
{_MARK}

# {module.kind}{f" {module.condition}" if module.condition else ""}

| | |
| --- | --- |
{table}

```python
import controlkit as ck

module = ck.load("path/of/this/folder")
```
"""


def is_ours(path: Path) -> bool:
    """Whether the card may be written: there is none yet, or it is one of these."""
    try:
        return not path.exists() or _MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False

"""Write ``docs/recipe.schema.json`` from the recipe's model; a test compares the two."""

from __future__ import annotations

import json
from pathlib import Path

import controlkit as ck

TARGET = Path(__file__).resolve().parent.parent / "docs" / "recipe.schema.json"

if __name__ == "__main__":
    TARGET.write_text(json.dumps(ck.Recipe.model_json_schema(), indent=2, ensure_ascii=False) + "\n")
    print(TARGET)

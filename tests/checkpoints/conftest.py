"""Failed assertions in the tables of this folder are explained like those in tests."""

from __future__ import annotations

import pytest

for part in ("files", "pickles", "weights", "configs", "places", "hub"):
    pytest.register_assert_rewrite(f"tests.checkpoints.faults_{part}")

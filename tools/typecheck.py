"""Run pyright, and fail also when it has looked at fewer files than there are.

A type checker that is pointed at the wrong folder reports no errors; so the number of files that it
analysed is compared with the number of files that it should have.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("controlkit", "adapters", "preprocessors", "tests")


def expected_files() -> int:
    """Python files that pyright must have seen; links are not followed, so nothing counts twice."""
    return sum(1 for folder in FOLDERS for _ in (ROOT / folder).rglob("*.py"))


def main() -> int:
    """Print pyright's findings and a summary; 0 when there are no errors and every file was seen."""
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", *sys.argv[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        print(done.stdout, done.stderr, file=sys.stderr)
        return 1
    for found in report["generalDiagnostics"]:
        path = Path(found["file"])
        place = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        rule = f" ({found['rule']})" if "rule" in found else ""
        line = found["range"]["start"]["line"] + 1 if "range" in found else 1
        print(f"{place}:{line}: {found['severity']}: {found['message']}{rule}")
    errors, seen = report["summary"]["errorCount"], report["summary"]["filesAnalyzed"]
    floor = expected_files()
    print(f"pyright: {errors} errors in {seen} files")
    if not sys.argv[1:] and seen < floor:
        print(f"pyright saw {seen} of {floor} files: check [tool.pyright] include", file=sys.stderr)
        return 1
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())

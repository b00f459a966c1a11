"""``controlkit models``: the models that come with the package."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from controlkit.cli.console import emit_json, table


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
) -> None:
    """List the embedded models: small ones that need no download, for trying things out and for tests.

    Examples:

    - `controlkit models`
    - `controlkit generate "a red cube" --control controlnet-canny=edges.png`
    """
    found = [_describe(name) for name in _names()]
    if as_json:
        emit_json(found)
        return
    rows = [(entry["name"], entry["kind"], f"{entry['parameters']:,}") for entry in found]
    table("name", "kind", "parameters", rows=rows)


def _names() -> list[str]:
    from controlkit import embedded

    return list(embedded.names())


def _describe(name: str) -> dict[str, Any]:
    from controlkit import embedded

    module = embedded.load(name)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {"name": name, "kind": getattr(module, "kind", type(module).__name__), "parameters": parameters}

"""``controlkit ui``: the page in the browser, and the HTTP API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from controlkit.cli.console import emit_json, stdout


def ui(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of pictures.")] = Path("pictures"),
    models: Annotated[
        Path | None, typer.Option(help="Folder of local weights; nothing outside is read.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="Model to begin with: embedded, a hub id, or a folder below --models.")
    ] = "embedded",
    port: Annotated[int, typer.Option(help="To listen on; where it is taken, the next free one.")] = 7860,
    host: Annotated[
        str, typer.Option(help="To listen on; others than this machine's own need a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str, typer.Option(help="What clients must show.", envvar="CONTROLKIT_TOKEN", show_envvar=True)
    ] = "",
    name: Annotated[
        list[str] | None, typer.Option(help="A further name that the server is reached by; may be repeated.")
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="A page elsewhere that may use the API, such as https://example.org."),
    ] = None,
    downloads: Annotated[
        bool, typer.Option("--downloads", help="Let models be fetched from the hub; else only what is here.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the browser.")] = False,
    page: Annotated[bool, typer.Option("--page/--no-page", help="The page, or the API alone.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as JSON.")] = False,
) -> None:
    """Open the page: a model, controls with live previews, pictures. Also an HTTP API, at /api/docs.

    It listens on this machine alone, and asks nothing of the network.

    Examples:

    - `controlkit ui --browser`
    - `controlkit ui --models ~/models --out ~/pictures`
    - `CONTROLKIT_TOKEN=... controlkit ui --host 0.0.0.0`
    """
    from controlkit.cli.controls import is_hub
    from controlkit.ui.guard import Door
    from controlkit.ui.serving import Settings, serve

    source = "embedded:base" if model in ("embedded", "embedded:base") else model
    if ":" not in source:
        below = models is not None and (models / source).exists()
        source = f"file:{source}" if below or not is_hub(source) else f"hub:{source}"
    door = Door(host, token, tuple(name or ()), tuple(origin or ()))

    def ready(address: str) -> None:
        if as_json:
            emit_json({"address": address, "api": f"{address}api/docs", "out": str(out)})
        else:
            stdout.print(f"{address}  (Ctrl-C ends it)", markup=False)
        if browser:
            import webbrowser

            webbrowser.open(address)

    serve(Settings(out, models, source, door, port, page, downloads), ready)

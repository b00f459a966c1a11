"""The description of the API as a page of its own: the usual viewers are fetched from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>controlkit: HTTP API</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
h2{margin:2.2rem 0 .4rem;font-size:1.1rem;text-transform:capitalize}
details{border:1px solid #ddd;border-radius:8px;margin:.5rem 0;padding:.5rem .8rem}
summary{cursor:pointer}code,pre{font:13px/1.45 ui-monospace,monospace}
pre{background:#f6f6f6;padding:.8rem;overflow:auto;max-height:24rem;border-radius:6px}
b{display:inline-block;min-width:4.2rem}
@media (prefers-color-scheme:dark){body{background:#16181d;color:#ddd}pre{background:#22252c}
details{border-color:#3a3f49}a{color:#8ab4ff}}
</style></head><body>"""


def page(description: dict[str, Any]) -> str:
    """The page for a description in OpenAPI's terms.

    Args:
        description: As ``app.openapi()`` gives it.
    """
    info = description.get("info", {})
    parts = [_HEAD, f"<h1>{escape(info.get('title', ''))} {escape(info.get('version', ''))}</h1>"]
    parts += [f"<p>{escape(text)}</p>" for text in info.get("description", "").split("\n\n")]
    parts.append('<p><a href="/api/openapi.json">openapi.json</a> · <a href="/">the page</a></p>')
    groups: dict[str, list[str]] = {}
    for path, methods in description.get("paths", {}).items():
        for method, about in methods.items():
            tag = (about.get("tags") or ["other"])[0]
            groups.setdefault(tag, []).append(_route(path, method, about))
    for tag, routes in groups.items():
        parts += [f"<h2>{escape(tag)}</h2>", *routes]
    return "".join(parts) + "</body></html>"


def _route(path: str, method: str, about: dict[str, Any]) -> str:
    text = " ".join(about.get("description", about.get("summary", "")).split())
    inner = [f"<p>{escape(text)}</p>"]
    for given in about.get("parameters", []):
        kind = given.get("schema", {}).get("type", "")
        inner.append(
            f"<p><code>{escape(given['name'])}</code> ({escape(given['in'])}) {escape(str(kind))}</p>"
        )
    body = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        inner.append(f"<pre>{escape(json.dumps(body, indent=2))}</pre>")
    head = f"<summary><b>{method.upper()}</b> <code>{escape(path)}</code></summary>"
    return f"<details>{head}{''.join(inner)}</details>"

"""How the page looks: one column on a phone, two on a desk, and the pieces of HTML that show progress."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controlkit.ui import captions

if TYPE_CHECKING:
    from PIL import Image

    from controlkit.ui.jobs import Job, Made

CSS = """
.gradio-container{max-width:1500px!important;padding:12px!important}
#title h1{margin:0;font-size:1.35rem}#title p{margin:0;opacity:.75}
#go,#cancel{min-height:46px}.form:has(>.ck-hidden){display:none}
.ck-stage{min-height:300px;display:flex;flex-direction:column;gap:8px;align-items:center;justify-content:center;
 border:1px solid var(--border-color-primary);border-radius:10px;padding:10px;
 background:var(--background-fill-secondary)}
.ck-stage img{width:min(100%,512px);image-rendering:auto;border-radius:6px;display:block}
.ck-bar{width:100%;height:8px;border-radius:4px;background:var(--border-color-primary);overflow:hidden}
.ck-bar div{height:100%;background:var(--color-accent)}
.ck-note{margin:0;font-size:.9rem;text-align:center}
.ck-bad{color:#c62828;font-weight:600}.dark .ck-bad{color:#ff8a80}
.ck-grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(96px,1fr));gap:6px}
.ck-grid img{width:100%;aspect-ratio:1;object-fit:cover;border-radius:6px;display:block}
.ck-grid a{display:block;color:inherit;text-decoration:none}
.ck-grid small{display:block;font-size:.72rem;opacity:.8}
.ck-again{font-size:.72rem!important;font-weight:400!important;padding:3px 0!important;min-height:28px;
 display:block;width:100%;margin:0!important;color:var(--link-text-color)!important;
 background:none!important;border:none!important;cursor:pointer}
.ck-score{font-size:.82rem;opacity:.85}
.ck-sheet,.ck-stage .ck-sheet img{width:100%;max-width:100%}
.ck-hint p{margin:0;font-size:.8rem;opacity:.7}
.ck-doubt p{margin:0;font-size:.88rem}
.ck-seen img{image-rendering:pixelated}
.ck-picture .image-frame{padding-top:30px;box-sizing:border-box}
.ck-picture .image-frame img{object-fit:contain!important;width:100%!important;height:100%!important}
.ck-curve{max-width:480px}.ck-curve svg{width:100%;display:block;touch-action:pan-y;user-select:none}
.ck-curve text{font-size:10px;fill:currentColor;opacity:.65}
.ck-axis line{stroke:currentColor;opacity:.18;stroke-width:1}
.ck-outside{fill:currentColor;opacity:.12}
.ck-line{fill:none;stroke:var(--color-accent);stroke-width:2.5;stroke-linejoin:round}
.ck-spot{cursor:grab;outline:none}.ck-spot circle{touch-action:none}.ck-reach{fill:transparent}
.ck-dot{fill:var(--color-accent);stroke:var(--body-background-fill);stroke-width:1.5}
.ck-spot:focus .ck-dot{stroke:currentColor;stroke-width:2.5}
.ck-flat .ck-line{stroke-dasharray:5 4}
.ck-flat .ck-dot{fill:var(--body-background-fill);stroke:var(--color-accent)}
.ck-curve-row{display:flex;flex-wrap:wrap;gap:8px;align-items:center;font-size:.8rem}
.ck-curve-row button{padding:4px 10px!important;border:1px solid var(--border-color-primary)!important;
 border-radius:6px;font-size:.8rem!important;font-weight:500!important;min-height:32px}
.ck-curve-row span{opacity:.7}
#report textarea{font-family:ui-monospace,monospace;font-size:.78rem;white-space:pre;overflow-x:auto}
"""


PHONE = """<style>
@media (max-width:700px){
 .gradio-container{padding:4px!important}
 .gradio-container .main.fillable{padding:6px!important}
 .ck-columns,.ck-pair{flex-direction:column!important}
 .ck-columns>*,.ck-pair>*{min-width:0!important;width:100%!important}
 .ck-stage{min-height:220px}
 #actions{position:fixed;left:0;right:0;bottom:0;z-index:60;margin:0;padding:8px 10px;flex-wrap:nowrap;
  background:var(--body-background-fill);border-top:1px solid var(--border-color-primary)}
 #actions>*{min-width:0!important}
 .gradio-container{padding-bottom:76px!important}
}
</style>"""
"""For narrow screens; in the head, as Gradio rewrites the selectors of what it is given as CSS."""

DESK = """<style>
@media (min-width:701px){
 #actions{position:sticky;top:0;z-index:60;padding:6px 0;background:var(--body-background-fill)}
}
</style>"""
"""For wide screens: the button that makes pictures stays in sight beside the settings."""

AGAIN = """<script>document.addEventListener('click', event => {
 const name = event.target.closest?.('.ck-again')?.dataset.name
 const field = document.querySelector('#again textarea, #again input')
 if (!name || !field) return
 const told = `${name}|${Date.now()}`
 Object.getOwnPropertyDescriptor(Object.getPrototypeOf(field), 'value').set.call(field, told)
 field.dispatchEvent(new Event('input', {bubbles: true}))
})</script>"""
"""Hands the name of a picture in the gallery to the page, which takes its settings."""

HEAD = f"{PHONE}{DESK}{AGAIN}<script>{Path(__file__).with_name('curve.js').read_text('utf-8')}</script>"
"""What goes into the head of the page."""

TO_THE_STAGE = """() => { const stage = document.querySelector('#stage'), box = stage.getBoundingClientRect()
 const seen = box.top >= 0 && box.bottom <= window.innerHeight
 if (!seen) stage.scrollIntoView({behavior: 'smooth', block: 'center'}) }"""
"""The picture may be far from the button that makes it."""


def stage(job: Job | None, ahead: int = 0) -> str:
    """The picture being made, with how far it is."""
    if job is None:
        return '<div class="ck-stage"><p class="ck-note">The picture comes here.</p></div>'
    words = {
        "waiting": f"waiting, {ahead} before it" if ahead > 1 else "waiting",
        "loading": "loading the model",
        "running": f"{_picture(job)}step {job.steps} of {job.total}",
        "done": f"done: {job.total} steps",
        "failed": "failed",
        "cancelled": f"cancelled after {job.steps} of {job.total} steps",
    }[job.state]
    parts = [f'<div class="ck-stage" data-state="{job.state}" data-steps="{job.steps}">']
    last = job.made[-1] if job.made else None
    if job.sheet:
        address = f"/api/results/{escape(job.sheet)}"
        parts.append(
            f'<a href="{address}" target="_blank" class="ck-sheet"><img alt="the grid" src="{address}"></a>'
        )
    elif last is not None and (job.finished or job.preview is None):
        parts.append(f'<img alt="the picture" src="/api/results/{escape(last.name)}">')
        parts.append(scored(last.adherence))
    elif job.preview is not None:
        parts.append(f'<img class="ck-preview" alt="what is expected now" src="{_data(job.preview)}">')
    done = round(100 * job.steps / max(1, job.total))
    if not job.finished:
        parts.append(f'<div class="ck-bar" role="progressbar"><div style="width:{done}%"></div></div>')
    parts.append(f'<p class="ck-note">{escape(words)}</p>')
    if job.error:
        parts.append(f'<p class="ck-note ck-bad">{escape(job.error["message"])}</p>')
    return "".join(parts) + "</div>"


def problem(error: Exception) -> str:
    """What is shown where nothing could be started."""
    return (
        f'<div class="ck-stage" data-state="refused"><p class="ck-note ck-bad">{escape(str(error))}</p></div>'
    )


def _picture(job: Job) -> str:
    return f"picture {min(len(job.made) + 1, job.count)} of {job.count}, " if job.count > 1 else ""


def scored(scores: Sequence[dict[str, Any]]) -> str:
    """How well a picture follows its maps, a line for each control."""
    return "".join(f'<p class="ck-note ck-score">{escape(line)}</p>' for line in captions.lines(scores))


def gallery(pictures: Sequence[Path]) -> str:
    """The newest pictures with their scores; each opens as the file that carries its recipe, and can give the
    page its settings."""
    if not pictures:
        return '<p class="ck-note">No pictures yet.</p>'
    return f'<div class="ck-grid">{"".join(_thumbnail(path) for path in pictures)}</div>'


def _thumbnail(path: Path) -> str:
    name, scores = escape(path.name), captions.of_file(path)
    title = "\n".join([name, *map(escape, captions.lines(scores))])
    below = "".join(f"<small>{escape(word)}</small>" for word in captions.brief(scores))
    return (
        f'<div><a href="/api/results/{name}" target="_blank" title="{title}">'
        f'<img loading="lazy" alt="{name}" src="/api/results/{name}">{below}</a>'
        f'<button type="button" class="ck-again" data-name="{name}">'
        "Use its settings</button></div>"
    )


def reports(made: list[Made]) -> str:
    """The reports of pictures, as text."""
    parts = [
        "\n".join([f"{one.name}, seed {one.seed}", one.text, *captions.lines(one.adherence)]) for one in made
    ]
    return "\n\n".join(parts)


def _data(picture: Image.Image) -> Any:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

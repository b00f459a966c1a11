"""How the page looks: one column on a phone, two on a desk, and the pieces of HTML that show progress."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from controlkit.ui.jobs import Job, Made

CSS = """
.gradio-container{max-width:1500px!important;padding:12px!important}
#title h1{margin:0;font-size:1.35rem}#title p{margin:0;opacity:.75}
#go{min-height:46px}
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
.ck-hint p{margin:0;font-size:.8rem;opacity:.7}
.ck-doubt p{margin:0;font-size:.88rem}
.ck-seen img{image-rendering:pixelated}
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

TO_THE_STAGE = """() => { if (window.innerWidth < 700)
 document.querySelector('#stage').scrollIntoView({behavior: 'smooth', block: 'center'}) }"""
"""On a phone the picture is far below the button that makes it."""


def stage(job: Job | None, ahead: int = 0) -> str:
    """The picture being made, with how far it is."""
    if job is None:
        return '<div class="ck-stage"><p class="ck-note">The picture comes here.</p></div>'
    words = {
        "waiting": f"waiting, {ahead} before it" if ahead > 1 else "waiting",
        "loading": "loading the model",
        "running": f"step {job.steps} of {job.total}",
        "done": f"done: {job.total} steps",
        "failed": "failed",
        "cancelled": f"cancelled after {job.steps} of {job.total} steps",
    }[job.state]
    parts = [f'<div class="ck-stage" data-state="{job.state}" data-steps="{job.steps}">']
    if job.made:
        parts += [f'<img alt="the picture" src="/api/results/{escape(made.name)}">' for made in job.made[-1:]]
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


def gallery(names: list[str]) -> str:
    """The newest pictures; each opens as the file that carries its recipe."""
    if not names:
        return '<p class="ck-note">No pictures yet.</p>'
    shown = [
        f'<a href="/api/results/{escape(name)}" target="_blank" title="{escape(name)}">'
        f'<img loading="lazy" alt="{escape(name)}" src="/api/results/{escape(name)}"></a>'
        for name in names
    ]
    return f'<div class="ck-grid">{"".join(shown)}</div>'


def reports(made: list[Made]) -> str:
    """The reports of pictures, as text."""
    return "\n\n".join(f"{one.name}, seed {one.seed}\n{one.text}" for one in made)


def _data(picture: Image.Image) -> Any:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

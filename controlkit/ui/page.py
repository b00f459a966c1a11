"""The page: Gradio's blocks over the service, mounted into the application of the API."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from controlkit import __version__
from controlkit.errors import ControlKitError
from controlkit.recipes import write
from controlkit.ui import fields, listing, presets, style, sweeping, widgets
from controlkit.ui.panels import Panel, guide_panel, unit_panel
from controlkit.ui.service import Service
from controlkit.ui.settings import GUIDES, NO_SCHEDULER, UNITS, Guide, Page, Start, Unit
from controlkit.ui.starting import start_panel

BEAT = 0.1
"""Seconds between two looks at a job."""

SESSIONS = 32
"""Visits that Gradio remembers, the last ones used: by itself it keeps 10,000, of about a megabyte each."""

SHOWN = 3, 1
"""Controls and guidance functions that a fresh page shows; more are a press of a button away."""

_MAIN = 10
"""Fields of `Page` before ``rest``."""


def page_from(values: tuple[Any, ...]) -> Page:
    """The page's settings from the values of its widgets, in order."""
    page = Page(*values[: _MAIN + 1])
    at = _MAIN + 1
    wide, narrow = len(dataclasses.fields(Unit)), len(dataclasses.fields(Guide))
    page.start = Start(*values[at : (at := at + len(dataclasses.fields(Start)))])
    page.units = [Unit(*values[at + k * wide : at + (k + 1) * wide]) for k in range(UNITS)]
    at += UNITS * wide
    page.guides = [Guide(*values[at + k * narrow : at + (k + 1) * narrow]) for k in range(GUIDES)]
    return page


def values_of(page: Page, service: Service, ticks: int) -> list[Any]:
    """The values of all widgets that show these settings: the reverse of `page_from`, and the drawings."""
    values = [getattr(page, each.name) for each in dataclasses.fields(Page)[: _MAIN + 1]]
    values += [getattr(page.start, each.name) for each in dataclasses.fields(Start)]
    for unit in page.units:
        values += [getattr(unit, each.name) for each in dataclasses.fields(Unit)]
    for guide in page.guides:
        values += [getattr(guide, each.name) for each in dataclasses.fields(Guide)]
    values.append(widgets.drawing(page.start.image, page.start.mask))
    values.append(gr.skip() if page.start.image is None else gr.update(open=True))
    for unit in page.units:
        values += [widgets.drawing(unit.image, unit.mask), ticks if unit.use else 0]
    return values


def generate(
    service: Service, page: Page, grid: tuple[str, str, str] | None = None
) -> Iterator[tuple[str, str, str, str]]:
    """Make the pictures of a page, and tell how far they are.

    Args:
        service: What the server can do.
        page: What is set.
        grid: The control, scales and seeds of a sweep; None: the pictures of the page alone.

    Yields:
        The stage, the job's name, the gallery, and the report.
    """
    shown = style.gallery(service.places.pictures())
    try:
        sweep = sweeping.sweep_of(page, *grid) if grid else None
        job = service.jobs.submit(fields.recipe_of(page, service.places), sweep)
    except ControlKitError as error:
        yield style.problem(error), "", shown, ""
        return
    try:
        version = -1
        while not job.finished:
            if job.version != version:
                version = job.version
                yield style.stage(job, service.jobs.ahead(job)), job.id, shown, style.reports(job.made)
            job.over.wait(BEAT)
    finally:
        if not job.finished:  # the browser went away
            service.jobs.cancel(job.id)
    shown = style.gallery(service.places.pictures())
    yield style.stage(job), "", shown, style.reports(job.made)


def code_of(service: Service, page: Page) -> str:
    """The page as Python, once the pictures that it reads are beside the results."""
    from controlkit.ui.python import as_python

    code, files = as_python(fields.recipe_of(page, service.places), models=service.places.models)
    for name, content in files.items():
        if not (service.places.inputs / name).exists():
            write(service.places.inputs / name, content, force=True)
    folder = f"# Run it in {service.places.output.name}/, where its inputs/ lie.\n" if files else ""
    return folder + code


def restored(service: Service, content: bytes) -> Page:
    """The page that a picture or a recipe was made with.

    Raises:
        ControlKitError: There is no recipe in it, or one that the page has no room for.
    """
    return fields.page_of(service.recipe_of(sweeping.recipe_in(content)), service.places)


def build(service: Service) -> gr.Blocks:
    """The blocks of the page.

    Args:
        service: What the server can do.
    """
    with gr.Blocks(title="controlkit", analytics_enabled=False, delete_cache=(3600, 6 * 3600)) as blocks:
        gr.Markdown(f"# controlkit\n{__version__} · [HTTP API](/api/docs)", elem_id="title")
        job = gr.State("")
        with gr.Row(elem_classes="ck-columns"):
            with gr.Column(scale=6, min_width=320):
                main, panels = _settings(service)
            with gr.Column(scale=5, min_width=320):
                result = _results(service)
        inputs = [*main, *(value for panel in panels for value in panel.values)]
        _wire(service, blocks, job, inputs, panels, result)
    return blocks


def _settings(service: Service) -> tuple[list[Any], list[Panel]]:
    own = Page(model=service.model)
    prompt = gr.Textbox(own.prompt, label="Prompt", lines=2, elem_id="prompt")
    with gr.Accordion("Model and sampling", open=True):
        with gr.Row(elem_classes="ck-pair"):
            model = gr.Dropdown(
                listing.models(service.places),
                value=own.model,
                label="Model",
                info="embedded:base, a folder below the folder of models, or hub:OWNER/NAME",
                allow_custom_value=True,
                elem_id="model",
                scale=2,
            )
            scheduler = gr.Dropdown(
                [NO_SCHEDULER, *listing.SCHEDULERS],
                value=own.scheduler,
                label="Scheduler",
                allow_custom_value=True,
                elem_id="scheduler",
            )
        with gr.Row(elem_classes="ck-pair"):
            steps = gr.Slider(1, 100, own.steps, step=1, label="Steps", elem_id="steps")
            guidance = gr.Slider(0, 15, own.guidance_scale, step=0.1, label="Guidance scale", elem_id="cfg")
        with gr.Row():
            small: dict[str, Any] = {"min_width": 60}
            seed = gr.Textbox("0", label="Seed", elem_id="seed", max_lines=1, **small)
            width = gr.Number(0, label="Width", step=8, precision=0, elem_id="width", **small)
            height = gr.Number(0, label="Height", step=8, precision=0, elem_id="height", **small)
            images = gr.Number(
                1, label="Pictures", minimum=1, maximum=16, precision=0, elem_id="images", **small
            )
        gr.Markdown("Width and height of 0 are the model's own size.", elem_classes="ck-hint")
        negative = gr.Textbox(label="Negative prompt", elem_id="negative")
    rest = gr.State({})
    frame = [model, width, height]
    panels = [start_panel(service, frame)]
    uses: list[Any] = []
    pages: list[Any] = []
    with gr.Tabs(elem_id="units") as tabs:
        for number in range(1, UNITS + 1):
            with gr.Tab(f"Control {number}", id=f"unit{number}", visible=number <= SHOWN[0]) as tab:
                panels.append(unit_panel(number, service, frame))
            pages.append(tab)
            uses.append(_marked(tab, f"Control {number}", panels[-1].values[0]))
            tick = panels[-1].tick  # options of a detector are made when they are first to be seen
            tab.select(lambda count: count or 1, tick, tick, show_progress="hidden", api_visibility="private")
        for number in range(1, GUIDES + 1):
            with gr.Tab(f"Guidance {number}", id=f"guide{number}", visible=number <= SHOWN[1]) as tab:
                panels.append(guide_panel(number))
            pages.append(tab)
            uses.append(_marked(tab, f"Guidance {number}", panels[-1].values[0]))
    with gr.Row():
        small = {"size": "sm", "min_width": 120}
        _more(gr.Button("Another control", elem_id="more-unit", **small), tabs, pages[:UNITS], uses[:UNITS])
        _more(gr.Button("Another guidance", elem_id="more-guide", **small), tabs, pages[UNITS:], uses[UNITS:])
    main = [prompt, negative, model, scheduler, steps, seed, width, height, guidance, images, rest]
    return main, panels


def _marked(tab: Any, name: str, use: Any) -> Any:
    """Mark and show the tab of what is in use; returns the box that says so."""

    def label(used: bool) -> Any:
        return gr.Tab(label=f"{name} ●", visible=True) if used else gr.Tab(label=name)

    use.change(label, use, tab, show_progress="hidden", api_visibility="private")
    return use


def _more(button: Any, tabs: Any, pages: list[Any], uses: list[Any]) -> None:
    """Let a button show the next tab, after the last that is shown or in use."""
    count = gr.State(sum(page.visible for page in pages))

    def show(shown: int, *used: bool) -> list[Any]:
        last = max([shown, *(number for number, one in enumerate(used, 1) if one)])
        last = min(last + 1, len(pages))
        seen = [gr.Tab(visible=True) if number <= last else gr.skip() for number in range(1, len(pages) + 1)]
        return [last, gr.Tabs(selected=pages[last - 1].id), *seen]

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    button.click(show, [count, *uses], [count, tabs, *pages], **quiet)


def _results(service: Service) -> dict[str, Any]:
    made: dict[str, Any] = {}
    with gr.Row(elem_id="actions"):
        made["go"] = gr.Button("Generate", variant="primary", elem_id="go", scale=3)
        made["cancel"] = gr.Button("Cancel", variant="stop", elem_id="cancel", scale=1)
    made["stage"] = gr.HTML(style.stage(None), elem_id="stage")
    made["report"] = gr.Textbox(
        label="Report", lines=3, max_lines=12, interactive=False, elem_id="report", buttons=["copy"]
    )
    with gr.Accordion("Pictures", open=True):
        made["gallery"] = gr.HTML("", elem_id="gallery")
    made["file"] = gr.File(
        label="Drop a picture here: it restores all settings",
        file_types=[".png", ".json"],
        height=140,
        elem_id="restore",
    )
    made["again"] = gr.Textbox(show_label=False, elem_id="again", elem_classes="ck-hidden")
    made["said"] = gr.Markdown(elem_id="said")
    made["sweep"] = sweeping.panel()
    with gr.Accordion("Presets", open=False):
        with gr.Row():
            made["preset"] = gr.Dropdown(
                presets.names(service.places), value=None, label="Preset", elem_id="preset"
            )
            made["load"] = gr.Button("Load", size="sm", elem_id="preset-load")
        with gr.Row():
            made["name"] = gr.Textbox(
                label="Name", info="default: what the page begins with", max_lines=1, elem_id="preset-name"
            )
            made["save"] = gr.Button("Save", size="sm", elem_id="preset-save")
    with gr.Accordion("Copy as Python", open=False, elem_id="python-open"):
        made["write"] = gr.Button("Write the code", size="sm", elem_id="write")
        made["code"] = gr.Code(language="python", interactive=False, elem_id="code", label="Python")
    return made


def _wire(
    service: Service, blocks: Any, job: Any, inputs: list[Any], panels: list[Panel], made: dict[str, Any]
) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    everything = [*inputs, *(other for panel in panels for other in panel.others)]
    outputs = [*everything, made["said"]]

    def run(*values: Any) -> Iterator[Any]:
        yield from generate(service, page_from(values))

    def run_grid(control: str, scales: str, seeds: str, *values: Any) -> Iterator[Any]:
        yield from generate(service, page_from(values), (control, scales, seeds))

    def stop(key: str) -> None:
        if key:
            service.jobs.cancel(key)

    fills = itertools.count(1000, 1000)  # far from what panels count to by themselves

    def fill(page: Page, said: str) -> list[Any]:
        return [*values_of(page, service, next(fills)), said]

    def tried(act: Any, said: str) -> list[Any]:
        try:
            return fill(act(), said)
        except ControlKitError as error:
            raise gr.Error(str(error), title="Cannot be restored", print_exception=False) from None

    def drop(path: str) -> Any:
        return tried(
            lambda: restored(service, Path(path).read_bytes()), "All settings are those of the picture."
        )

    def own(told: str) -> tuple[Any, ...]:
        """All settings are those of a picture in the gallery; its name comes with the time of the click."""
        name = told.partition("|")[0]
        filled = tried(
            lambda: restored(service, service.places.result(name).read_bytes()),
            f"All settings are those of {name}.",
        )
        return (*filled, *sweeping.fields_in(str(service.places.result(name))))

    def save(name: str, *values: Any) -> tuple[Any, str]:
        try:
            presets.save(service.places, name.strip(), fields.recipe_of(page_from(values), service.places))
        except ControlKitError as error:
            raise gr.Error(str(error), title="Not saved", print_exception=False) from None
        return gr.update(
            choices=presets.names(service.places), value=name.strip()
        ), f"Saved as {name.strip()}."

    def load(name: str | None) -> Any:
        if not name:
            raise gr.Error("Choose one from the list.", title="No preset", print_exception=False)
        recipe: Any = lambda: fields.page_of(presets.load(service.places, name), service.places)  # noqa: E731
        return tried(recipe, f"Loaded {name}.")

    def has_default() -> None:
        if presets.DEFAULT not in presets.names(service.places):
            raise gr.Error("none", visible=False, print_exception=False)  # ends the chain, and says nothing

    def code(*values: Any) -> str:
        try:
            return code_of(service, page_from(values))
        except ControlKitError as error:
            raise gr.Error(str(error), title="No code", print_exception=False) from None

    def begin() -> Any:
        service.jobs.warm(service.model)
        return style.gallery(service.places.pictures())

    shown = [made["stage"], job, made["gallery"], made["report"]]
    made["go"].click(run, inputs, shown, concurrency_limit=8, **quiet)
    made["go"].click(None, js=style.TO_THE_STAGE)
    grid = [made["sweep"][name] for name in ("control", "scales", "seeds")]
    made["sweep"]["go"].click(run_grid, [*grid, *inputs], shown, concurrency_limit=8, **quiet)
    made["sweep"]["go"].click(None, js=style.TO_THE_STAGE)
    sheet = [*grid, made["sweep"]["open"]]
    made["file"].upload(sweeping.fields_in, made["file"], sheet, **quiet)
    made["again"].change(own, made["again"], [*outputs, *sheet], **quiet)
    made["cancel"].click(stop, job, None, concurrency_limit=8, **quiet)
    made["file"].upload(drop, made["file"], outputs, **quiet)
    made["save"].click(save, [made["name"], *inputs], [made["preset"], made["said"]], **quiet)
    made["load"].click(load, made["preset"], outputs, **quiet)
    made["write"].click(code, inputs, made["code"], **quiet)
    blocks.load(begin, None, made["gallery"], **quiet)
    ticks = [panel.tick for panel in panels if panel.tick is not None]
    blocks.load(lambda: 1, None, ticks[0], **quiet)
    default = blocks.load(has_default, None, None, **quiet)
    default.success(lambda: load(presets.DEFAULT), None, outputs, **quiet)


def mount(app: Any, service: Service) -> Any:
    """The application with the page at its root.

    Args:
        app: The application of `controlkit.ui.api`.
        service: What the server can do.
    """
    _close_the_network()
    blocks = build(service)
    blocks.state_session_capacity = SESSIONS
    mounted: Any = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        server_name="127.0.0.1",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size="40mb",
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        css=style.CSS,
        head=style.HEAD,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    blocks.has_launched = True  # else Gradio does not look whether a file that a client names was uploaded
    queue: Any = blocks._queue  # pyright: ignore[reportPrivateUsage]
    queue.pending_messages_per_session.max_size = SESSIONS  # of pages that went away before reading them
    return mounted


def _close_the_network() -> None:
    """Gradio fetches an address where a client names one in place of a file; here it cannot."""
    from gradio import processing_utils

    async def refuse(url: str, *_more: Any, **_others: Any) -> Any:
        raise gr.Error("nothing is fetched: upload the file", print_exception=False)

    for name in ("async_ssrf_protected_get", "async_ssrf_protected_download"):
        setattr(processing_utils, name, refuse)

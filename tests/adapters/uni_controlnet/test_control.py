"""What a Uni-ControlNet does in a pipeline, alone and among others, against the sum written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import controlkit as ck
from controlkit.adapters.uni_controlnet import UniControlNet
from controlkit.contracts import RunInfo, Step
from controlkit.hosts.diffusers import DiffusersHost
from tests import tiny
from tests.adapters.uni_controlnet.builders import LOCAL, WIDTH, noise, picture, stacked, uni
from tests.engine.test_composition import TASKS, call
from tests.engine.test_undo import Failing, unchanged

MAPS = {"canny": picture(1), "midas": picture(2)}
CONTENT = noise(1, WIDTH, seed=5)


class ByHand:
    """The U-Net call with Uni-ControlNet, and where given a ControlNet and a T2I-Adapter, written out."""

    def __init__(
        self, pipe: Any, module: UniControlNet, *others: Any, local: float = 1.0, content: float | None = 1.0
    ) -> None:
        self.original, self.module, self.others = pipe.unet.forward, module, others
        self.local, self.content = local, content

    def __call__(self, sample: Tensor, timestep: Tensor, **kwargs: Any) -> Any:
        noisy, prompt = sample[:, :4], kwargs["encoder_hidden_states"]
        context = prompt
        if self.content is not None:
            halves = torch.cat([torch.zeros_like(CONTENT), CONTENT])
            context = torch.cat([prompt, self.content * self.module.tokens(halves)], dim=1)
        maps = stacked(self.module, MAPS).repeat(2, 1, 1, 1)
        own = self.module.local(noisy, timestep, context, maps)
        skips, mid = [self.local * skip for skip in own.skips], self.local * own.mid
        if self.others:
            net, adapter = self.others
            theirs = net(noisy, timestep, prompt, picture(3).repeat(2, 1, 1, 1))
            skips = [a + 0.7 * b for a, b in zip(skips, theirs.skips, strict=True)]
            mid = mid + 0.7 * theirs.mid
            features = adapter(picture(4).repeat(2, 1, 1, 1))
            kwargs["down_intrablock_additional_residuals"] = [0.4 * feature for feature in features]
        kwargs["encoder_hidden_states"] = context
        kwargs["down_block_additional_residuals"] = tuple(skips)
        kwargs["mid_block_additional_residual"] = mid
        return self.original(sample, timestep, **kwargs)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("task", TASKS)
def test_with_other_kinds_it_equals_the_sum_by_hand(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, inputs, changes = TASKS[task]
    pipe = tiny.pipeline("sd1", cls=getattr(diffusers, cls), unet=tiny.unet("sd1", **changes))
    module, net, adapter = uni(), tiny.controlnet("sd1"), tiny.t2i_adapter("sd1")
    hand = ByHand(pipe, module, net, adapter, local=0.6, content=1.3)
    with ck.attach(
        pipe,
        net.on(picture(3), scale=0.7),
        module.on(MAPS, content=CONTENT, local_scale=0.6, global_scale=1.3),
        adapter.on(picture(4), scale=0.4),
    ) as run:
        found = call(pipe, **inputs)
    rows = run.report().rows
    assert [row.applied == row.steps > 0 for row in rows] == [True] * 3
    assert rows[1].control.startswith("uni-controlnet")
    assert rows[1].counts["hint"] == 1
    notes = [note for note in rows[1].notes if "doubtful map" not in note]  # the maps are noise
    assert notes == ["maps: canny, midas", "local scale 0.6", "global scale 1.3"]
    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet, "forward", hand)
        expected = call(pipe, **inputs)
    assert_close(found, expected)
    assert (found - call(pipe, **inputs)).abs().max() > 1e-2


def test_each_half_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, module = tiny.pipeline("sd1"), uni()
    with ck.attach(pipe, module.on(MAPS, local_scale=0.6, global_scale=0.5)) as run:
        found = call(pipe)
    assert run.report().rows[0].scale == "0.6"
    assert run.report().rows[0].notes[-1] == "global_scale has no effect without content"
    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet, "forward", ByHand(pipe, module, local=0.6, content=None))
        assert_close(found, call(pipe))

    with ck.attach(pipe, module.on(content=CONTENT, global_scale=1.3)) as run:
        found = call(pipe)
    assert run.report().rows[0].counts == {"forward": 0}
    original = pipe.unet.forward

    def longer(sample: Tensor, timestep: Tensor, **kwargs: Any) -> Any:
        extra = 1.3 * module.tokens(torch.cat([torch.zeros_like(CONTENT), CONTENT]))
        kwargs["encoder_hidden_states"] = torch.cat([kwargs["encoder_hidden_states"], extra], dim=1)
        return original(sample, timestep, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pipe.unet, "forward", longer)
        assert_close(found, call(pipe))


def test_no_content_and_zeros_are_not_the_same() -> None:
    pipe, module = tiny.pipeline("sd1"), uni()

    def run(**options: Any) -> Tensor:
        with ck.attach(pipe, module.on(MAPS, **options)):
            return call(pipe, num_inference_steps=1)

    none = run()
    zeros = run(content=torch.zeros(1, WIDTH))
    assert (none - zeros).abs().max() > 1e-3
    assert torch.equal(run(content=CONTENT, global_scale=0.0), none)
    with ck.attach(pipe, module.on(MAPS, content=CONTENT, local_scale=-3.0)) as report:
        call(pipe, num_inference_steps=1)
    assert "local scale -3 is outside the usual -2 .. 2" in report.report().rows[0].notes
    with ck.attach(pipe, module.on(content=CONTENT)):
        only = call(pipe, num_inference_steps=1)
    assert_close(run(content=CONTENT, local_scale=0.0), only)


def test_a_black_map_is_not_the_absence_of_maps() -> None:
    pipe, module = tiny.pipeline("sd1"), uni()
    black = torch.zeros(1, 3, 64, 64)
    with ck.attach(pipe, module.on({"canny": black})):
        one = call(pipe, num_inference_steps=1)
    with ck.attach(pipe, module.on({"seg": black, "hed": black})):
        assert torch.equal(call(pipe, num_inference_steps=1), one)
    assert (call(pipe, num_inference_steps=1) - one).abs().max() > 1e-3


def test_maps_stacked_by_hand_are_the_same() -> None:
    pipe, module = tiny.pipeline("sd1"), uni()
    results: list[Tensor] = []
    for maps in (MAPS, dict(reversed(MAPS.items())), stacked(module, MAPS)):
        with ck.attach(pipe, module.on(maps, content=CONTENT)):
            results.append(call(pipe, num_inference_steps=1))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_each_half_follows_its_own_curve_within_one_window() -> None:
    pipe, module = tiny.pipeline("sd1"), uni()
    seen: list[tuple[int, float]] = []

    def look(_unet: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        middle = kwargs.get("mid_block_additional_residual")
        seen.append(
            (kwargs["encoder_hidden_states"].shape[1], 0.0 if middle is None else float(middle.abs().max()))
        )

    control = module.on(
        MAPS,
        content=CONTENT,
        local_scale=lambda done: 1.0 if done < 0.5 else 0.0,
        global_scale=[(0.24, 0.0), (0.25, 1.0)],
        end=0.75,
    )
    with ck.attach(pipe, control) as run:
        handle = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
        call(pipe, num_inference_steps=4)
        handle.remove()
    assert [length - tiny.TOKENS for length, _ in seen] == [0, 4, 4, 0]
    assert [largest > 0 for _, largest in seen] == [True, True, False, False]
    row = run.report().rows[0]
    assert (row.applied, row.skipped, row.counts) == (3, 1, {"forward": 2, "hint": 1})


def test_a_mask_confines_the_residuals_and_control_mode_keeps_them_off_the_unconditional_half() -> None:
    pipe, module = tiny.pipeline("sd1"), uni()
    given: list[dict[str, Any]] = []

    def run(**options: Any) -> dict[str, Any]:
        with ck.attach(pipe, module.on(MAPS, content=CONTENT, **options)):
            handle = pipe.unet.register_forward_pre_hook(
                lambda _unet, _args, kwargs: given.append(dict(kwargs)), with_kwargs=True
            )
            call(pipe, num_inference_steps=1)
            handle.remove()
        return given[-1]

    whole = run()
    left = torch.zeros(1, 1, 64, 64)
    left[..., :32] = 1
    masked = run(mask=left)
    assert torch.equal(masked["encoder_hidden_states"], whole["encoder_hidden_states"])
    first, full = masked["down_block_additional_residuals"][0], whole["down_block_additional_residuals"][0]
    assert torch.equal(first[..., :4], full[..., :4])
    assert not first[..., 4:].any()
    alone = run(mode="control")
    assert torch.equal(alone["encoder_hidden_states"], whole["encoder_hidden_states"])
    uncond, cond = alone["mid_block_additional_residual"].chunk(2)
    assert not uncond.any()
    assert_close(cond, whole["mid_block_additional_residual"].chunk(2)[1])
    blocks = [0.0] * 8 + [0.5]
    scaled = run(block_scales=blocks)
    assert not any(skip.any() for skip in scaled["down_block_additional_residuals"])
    assert_close(scaled["mid_block_additional_residual"], 0.5 * whole["mid_block_additional_residual"])
    for options in ({"mask": left}, {"mode": "control"}):
        with pytest.raises(ck.NotApplicable, match="Prompt tokens act on the whole picture"):
            ck.attach(pipe, module.on(content=CONTENT, **options))


def test_one_entry_per_prompt() -> None:
    pipe, module = tiny.pipeline("sd1"), uni()
    latents = noise(2, 4, 8, 8, seed=8)
    maps = {"canny": [picture(1), picture(2)], "seg": picture(3)}
    content = noise(2, WIDTH, seed=5)
    prompts = ["a red cube", "a blue ball"]
    with ck.attach(pipe, module.on(maps, content=content)):
        both = call(pipe, prompt=prompts, latents=latents)
    for index, prompt in enumerate(prompts):
        own = {"canny": maps["canny"][index], "seg": picture(3)}
        with ck.attach(pipe, module.on(own, content=content[index])):
            one = call(pipe, prompt=prompt, latents=latents[index : index + 1])
        assert_close(both[index : index + 1], one)
    three = {"canny": [picture(seed) for seed in (1, 2, 3)]}
    refused = pytest.raises(ck.BatchMismatch, match="canny: image; found 3 maps for 2 pictures")
    with refused, ck.attach(pipe, module.on(three)):
        call(pipe, prompt=prompts)
    refused = pytest.raises(ck.BatchMismatch, match="content; found 3 for 2 pictures")
    with refused, ck.attach(pipe, module.on(content=noise(3, WIDTH))):
        call(pipe, prompt=prompts)


@pytest.mark.parametrize(
    "branches",
    [
        ("cond",),
        ("uncond",),
        ("uncond", "cond"),
        ("cond", "image", "uncond"),
        ("uncond", "cond", "perturbed"),
    ],
)
@torch.no_grad()
def test_content_goes_with_the_prompt(branches: tuple[Any, ...]) -> None:
    module, unet = uni(), tiny.unet("sd1")
    content = noise(2, WIDTH, seed=5)
    run = RunInfo(DiffusersHost(unet).target(), 2, 8, 8, 1, torch.device("cpu"), torch.float32)
    active = module.on(MAPS, content=content, global_scale=1.5).prepare(run)
    rows = 2 * len(branches)
    prompt = noise(rows, 5, WIDTH)
    step = Step(0, 1, torch.tensor(10), noise(rows, 4, 8, 8), prompt, prompt, branches)
    assert active.tokens is not None
    found = active.tokens(step).chunk(len(branches))
    for branch, part in zip(branches, found, strict=True):
        embedding = content if branch in ("cond", "perturbed") else torch.zeros(2, WIDTH)
        assert_close(part, 1.5 * module.tokens(embedding))
    again = active.tokens(Step(0, 1, step.timestep, step.latents[:2], prompt[:2], prompt[:2], ("uncond",)))
    assert_close(again, 1.5 * module.tokens(torch.zeros(2, WIDTH)))


def test_a_loop_that_runs_the_halves_one_after_the_other() -> None:
    module, unet = uni(), tiny.unet("sd1")
    x, prompt = noise(1, 4, 8, 8), noise(2, 5, WIDTH)
    control = module.on(MAPS, content=CONTENT)
    with torch.no_grad(), ck.attach(unet, control):
        both = unet(torch.cat([x, x]), 10, prompt).sample
    with torch.no_grad(), ck.attach(unet, control, num_steps=2) as run:
        for index, branch in enumerate(("uncond", "cond")):
            run.branches = (branch,)
            assert_close(unet(x, 10, prompt[index : index + 1]).sample, both[index : index + 1])


def test_a_picture_is_embedded_by_the_encoder() -> None:
    library = import_module("transformers")
    config = library.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=WIDTH,
    )
    encoder = tiny.randomize(library.CLIPVisionModelWithProjection(config), 3)
    from controlkit.vision import embedding_of

    photo = picture(6, pixels=20)
    control = uni().on(MAPS, content=photo, encoder=encoder)
    assert control.embedding is not None  # pyright: ignore[reportAttributeAccessIssue]
    expected = embedding_of(photo, "pooled", encoder, dim=WIDTH, what="test")
    assert torch.equal(control.embedding, expected)  # pyright: ignore[reportAttributeAccessIssue]


def test_maps_are_detected_and_resized_by_name() -> None:
    pipe, module = tiny.pipeline("sd1"), uni()
    photo = (picture(1, pixels=48)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    edges = ck.preprocess(photo, "canny")
    with ck.attach(pipe, module.on({"canny": edges, "seg": picture(2)})):
        expected = call(pipe, num_inference_steps=1)
    control = module.on({"canny": photo, "seg": picture(2)}, detect={"canny": "canny"})
    with ck.attach(pipe, control) as run:
        assert torch.equal(call(pipe, num_inference_steps=1), expected)
    notes = run.report().rows[0].notes
    assert notes[0] == "maps: canny, seg"
    assert any(note.startswith("canny: map resized 48x48 -> 64x64") for note in notes)


REFUSED: list[tuple[Callable[[UniControlNet], Any], type[Exception], str]] = [
    (lambda m: m.on({"depth": picture(1)}), ck.ParameterError, "found 'depth'; needed names of canny, mlsd"),
    (lambda m: m.on(), ck.ParameterError, "neither; needed maps .canny, mlsd"),
    (lambda m: m.on({}), ck.ParameterError, "neither"),
    (lambda m: m.on([picture(1)]), ck.ParameterError, "a dict of images by name"),
    (lambda m: m.on({"": picture(1)}), ck.ParameterError, "found ''"),
    (lambda m: m.on(picture(1)), ck.HintError, "21"),
    (lambda m: m.on(MAPS, detect={"depth": "canny"}), ck.ParameterError, "detect; found 'depth'"),
    (lambda m: m.on(MAPS, detect={"hed": "canny"}), ck.ParameterError, "no image for it"),
    (lambda m: m.on(MAPS, detect_options={"canny": {"low": 1}}), ck.ParameterError, "without a detector"),
    (lambda m: m.on(MAPS, content=torch.zeros(1, 512)), ck.HintError, r"\(1, 512\); needed \(n, 768\)"),
    (lambda m: m.on(MAPS, content=picture(1), encoder=None), ck.ParameterError, "a CLIP vision model"),
    (lambda m: m.on(MAPS, local_scale=1000), ck.ParameterError, "between -100 and 100"),
    (lambda m: m.on(MAPS, content=CONTENT, global_scale="a"), ck.ParameterError, "a finite number"),
    (lambda m: m.on(MAPS, start=0.5, end=0.2), ck.ParameterError, "start"),
]


@pytest.mark.parametrize(("bind", "error", "match"), REFUSED)
def test_what_cannot_be_bound_is_refused(
    bind: Callable[[UniControlNet], Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        bind(uni())


def test_the_wrong_base_model_is_refused_before_the_first_step() -> None:
    module = uni()
    for options in ({"content": None}, {"content": CONTENT}):
        with pytest.raises(ck.BaseMismatch, match=r"Uni-ControlNet for sd1 .tokens 768 .*tokens 1024 wide"):
            ck.attach(tiny.pipeline("sd2"), module.on(MAPS, **options))
        with pytest.raises(ck.BaseMismatch, match=r"for sd1 .*tokens 2048 wide"):
            ck.attach(tiny.pipeline("sdxl"), module.on(MAPS, **options))
    with pytest.raises(ck.BaseMismatch, match=r"tokens 768 wide.*tokens 1024 wide"):
        ck.attach(tiny.pipeline("sd2"), module.on(content=CONTENT))
    other = tiny.pipeline("sd1", unet=tiny.unet("sd1", block_out_channels=(16, 16, 32, 32)))
    with pytest.raises(ck.BaseMismatch, match="levels 16/32/32/32"):
        ck.attach(other, module.on(MAPS))
    with ck.attach(other, module.on(content=CONTENT)):  # tokens fit wherever their width does
        call(other, num_inference_steps=1)


def test_a_curve_needs_the_steps_of_a_loop() -> None:
    module, unet = uni(), tiny.unet("sd1")
    with pytest.raises(ck.ParameterError, match="scheduler"):
        ck.attach(unet, module.on(MAPS, content=CONTENT, global_scale=[(0, 1.0), (1, 0.0)]))
    with ck.attach(unet, module.on(MAPS, content=CONTENT, local_scale=0.5, global_scale=2.0)):
        unet(noise(1, 4, 8, 8), 10, noise(1, 5, WIDTH))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_beside_a_float32_unet(dtype: torch.dtype) -> None:
    pipe, module = tiny.pipeline("sd1"), uni()
    with ck.attach(pipe, module.on(MAPS, content=CONTENT)):
        expected = call(pipe, num_inference_steps=1)
    half = ck.load(module.state_dict(), config=module.config_entries(), dtype=dtype)
    assert isinstance(half, UniControlNet)
    with ck.attach(pipe, half.on(MAPS, content=CONTENT, global_scale=1.0)) as run:
        found = call(pipe, num_inference_steps=1)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert any("beside a float32 U-Net" in note for note in run.report().rows[0].notes)


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize(("part", "at"), [("local", 1), ("local", 3), ("tokens", 1), ("local.extractor", 1)])
def test_whatever_happens_nothing_is_left_behind(part: str, at: int, error: BaseException) -> None:
    pipe, module = tiny.pipeline("sd1"), uni()
    failing = Failing(at, error)
    module.get_submodule(part).register_forward_pre_hook(failing)
    before = {name: (p.data_ptr(), p._version) for name, p in module.named_parameters()}
    kind = ck.ControlFailed if isinstance(error, Exception) else type(error)
    with unchanged(pipe):
        with pytest.raises(kind), ck.attach(pipe, module.on(MAPS, content=CONTENT)):
            call(pipe)
        failing.at = 0
        with ck.attach(pipe, module.on(MAPS, content=CONTENT)):
            call(pipe)
    assert {name: (p.data_ptr(), p._version) for name, p in module.named_parameters()} == before


def test_conditions_are_named_by_the_config() -> None:
    assert uni().conditions == LOCAL.names
    assert uni(local=None).conditions == ()

"""Whatever happens, the pipeline is afterwards exactly what it was."""

from __future__ import annotations

import copy
import gc
import pickle
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import controlkit as ck
from controlkit.errors import Busy, ControlFailed, ControlKitWarning, NonFiniteAtStep, StateError
from tests import tiny
from tests.engine.test_composition import call, phi, picture

SCHEDULERS = [
    diffusers.DDIMScheduler,
    diffusers.EulerDiscreteScheduler,
    diffusers.UniPCMultistepScheduler,
    diffusers.HeunDiscreteScheduler,
]


def fingerprint(pipe: Any) -> dict[str, Any]:
    """Everything a control could have left behind."""
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    state: dict[str, Any] = {"components": {name: id(part) for name, part in pipe.components.items()}}
    for name, part in modules.items():
        state[name] = {
            "repr": repr(part),
            "attributes": {key: sorted(vars(module)) for key, module in part.named_modules()},
            "hooks": {
                key: (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
                for key, module in part.named_modules()
            },
            "parameters": {
                key: (id(p), p.data_ptr(), p.requires_grad, p.dtype, p._version)
                for key, p in part.named_parameters()
            },
            "training": part.training,
        }
    state["processors"] = {key: id(value) for key, value in pipe.unet.attn_processors.items()}
    return state


@contextmanager
def unchanged(pipe: Any) -> Iterator[None]:
    """The pipeline and its next plain run are the same afterwards."""
    plain = call(pipe)
    before = fingerprint(pipe)
    yield
    gc.collect()
    assert fingerprint(pipe) == before
    assert torch.equal(call(pipe), plain)


class Failing:
    """Raises at the n-th time it is called, in whatever part of a control calls it."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error, self.calls = at, error, 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise self.error


def _parts(failing: Failing) -> dict[str, tuple[Callable[[], list[Any]], int]]:
    """Where it can fail: (controls, number of calls in a 4-step run)."""
    net, adapter = tiny.controlnet("sd1"), tiny.t2i_adapter("sd1")

    def guided(x: Tensor, y: Any, t: Tensor) -> Tensor:
        failing()
        return phi(x, y, t)

    def curve(_: float) -> float:
        failing()
        return 1.0

    net.register_forward_pre_hook(failing)
    wish = torch.zeros(1, 4, 8, 8)
    quiet = tiny.controlnet("sd1", seed=5)
    hinted = tiny.controlnet("sd1", seed=6)
    hinted.controlnet_cond_embedding.register_forward_pre_hook(failing)
    adapter.register_forward_pre_hook(failing)
    return {
        "network": (lambda: [quiet.on(picture(2)), net.on(picture(1))], 4),
        "hint encoder": (lambda: [quiet.on(picture(2)), hinted.on(picture(1))], 1),
        "adapter": (lambda: [quiet.on(picture(2)), adapter.on(picture(1))], 1),
        "phi": (lambda: [quiet.on(picture(2)), ck.Guidance(guided, wish, scale=0.1)], 4),
        "scale function": (lambda: [quiet.on(picture(2)), quiet.on(picture(1), scale=curve)], 4),
    }


POINTS = [
    (part, at) for part, (_, calls) in _parts(Failing(0, ValueError())).items() for at in range(1, calls + 1)
]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize(("part", "at"), POINTS)
def test_every_fault_point_leaves_the_pipeline_as_it_was(part: str, at: int, error: BaseException) -> None:
    pipe = tiny.pipeline("sd1")
    failing = Failing(at, error)
    controls, _ = _parts(failing)[part]
    is_ours = isinstance(error, Exception) and part != "scale function"
    with unchanged(pipe):
        caught = pytest.raises(ControlFailed if is_ours else type(error))
        with caught as info, ck.attach(pipe, *controls()):
            call(pipe)
        if is_ours:
            assert info.value.__cause__ is error
            assert "boom" in str(info.value)
        assert failing.calls == at


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_fault_in_the_unet_itself_or_in_a_callback(scheduler: Any, at: int) -> None:
    pipe = tiny.pipeline("sd1")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    net = tiny.controlnet("sd1")

    def callback(_pipe: Any, index: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == at - 1:
            raise RuntimeError("callback")
        return values

    with unchanged(pipe):
        with pytest.raises(RuntimeError, match="callback"), ck.attach(pipe, net.on(picture(1))):
            call(pipe, callback_on_step_end=callback)
        failing = Failing(at, OSError("deep inside"))
        handle = pipe.unet.mid_block.register_forward_pre_hook(failing)
        with pytest.raises(OSError, match="deep inside"), ck.attach(pipe, net.on(picture(1))):
            call(pipe)
        handle.remove()


def test_ctrl_c_at_any_moment() -> None:
    """A real signal, at moments spread over attaching, sampling and leaving."""
    pipe = tiny.pipeline("sd1")
    controls = [tiny.controlnet("sd1").on(picture(1)), tiny.t2i_adapter("sd1").on(picture(2))]
    started = time.perf_counter()
    with ck.attach(pipe, *controls):
        call(pipe, num_inference_steps=2)
    duration = time.perf_counter() - started
    interrupted = 0
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with unchanged(pipe):
            for k in range(40):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + duration * (k / 40) ** 2)
                    with ck.attach(pipe, *controls):
                        call(pipe, num_inference_steps=2)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted >= 20


def test_a_failed_run_does_not_disturb_the_next_one_in_the_same_block() -> None:
    pipe, net = tiny.pipeline("sd1"), tiny.controlnet("sd1")
    failing = Failing(3, ValueError("once"))
    handle = net.register_forward_pre_hook(failing)
    with ck.attach(pipe, net.on(picture(1), end=0.75)):
        expected_fault = pytest.raises(ControlFailed)
        with expected_fault:
            call(pipe)
        after = call(pipe)
    handle.remove()
    with ck.attach(pipe, net.on(picture(1), end=0.75)):
        assert torch.equal(call(pipe), after)


def test_a_refused_attach_leaves_nothing() -> None:
    pipe = tiny.pipeline("sd1")
    good, bad = tiny.controlnet("sd1").on(picture(1)), tiny.controlnet("sdxl").on(picture(1))
    with unchanged(pipe), pytest.raises(ck.BaseMismatch) as info:
        ck.attach(pipe, good, bad)
    assert "2048" in str(info.value)
    assert "768" in str(info.value)


def test_detach_twice_and_use_after_detach() -> None:
    pipe = tiny.pipeline("sd1")
    with unchanged(pipe):
        run = ck.attach(pipe, tiny.controlnet("sd1").on(picture(1)))
        assert run.attached
        controlled = call(pipe)
        run.detach()
        run.detach()
        assert not run.attached
        assert not torch.equal(call(pipe), controlled)
        with pytest.raises(StateError), run:
            pass


def test_a_dropped_run_is_detached_with_a_warning() -> None:
    pipe = tiny.pipeline("sd1")
    control = tiny.controlnet("sd1").on(picture(1))
    with unchanged(pipe), pytest.warns(ControlKitWarning, match="dropped"):
        ck.attach(pipe, control)


def test_a_thousand_attaches_leave_no_trace() -> None:
    pipe, control = tiny.pipeline("sd1"), tiny.controlnet("sd1").on(picture(1))
    with unchanged(pipe):
        for _ in range(1000):
            run = ck.attach(pipe, control)
            with pytest.warns(ControlKitWarning, match="never called"):
                run.detach()
    from controlkit.attachment import registry

    assert pipe.unet not in registry


def test_detach_from_a_callback_is_refused() -> None:
    pipe = tiny.pipeline("sd1")
    run = ck.attach(pipe, tiny.controlnet("sd1").on(picture(1)))

    def stop(_pipe: Any, _i: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
        run.detach()
        return values

    def more(_pipe: Any, _i: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
        ck.attach(pipe, tiny.t2i_adapter("sd1").on(picture(1)))
        return values

    with run:
        for callback in (stop, more):
            with pytest.raises(StateError, match="middle of its run"):
                call(pipe, callback_on_step_end=callback)


def test_a_call_from_within_a_call_is_refused() -> None:
    pipe = tiny.pipeline("sd1")

    def again(_pipe: Any, _i: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
        call(pipe)
        return values

    control = tiny.controlnet("sd1").on(picture(1))
    with unchanged(pipe), pytest.raises(Busy, match="within"), ck.attach(pipe, control):
        call(pipe, callback_on_step_end=again)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_changed_in_the_middle_is_noticed(scheduler: Any) -> None:
    pipe = tiny.pipeline("sd1")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)

    def change(pipe: Any, index: int, _t: Any, values: dict[str, Any]) -> dict[str, Any]:
        if index == 1:
            pipe.scheduler.set_timesteps(7)
        return values

    control = tiny.controlnet("sd1").on(picture(1))
    with pytest.raises((StateError, IndexError, ValueError)), ck.attach(pipe, control):
        call(pipe, callback_on_step_end=change)


def test_a_swapped_unet_is_noticed() -> None:
    pipe = tiny.pipeline("sd1")
    run = ck.attach(pipe, tiny.controlnet("sd1").on(picture(1)))
    pipe.unet = tiny.unet("sd1", seed=9)
    call(pipe)
    with pytest.raises(StateError, match="another U-Net"):
        run.detach()


@pytest.mark.parametrize("copying", [copy.deepcopy, pickle.dumps])
def test_a_controlled_pipeline_is_not_copied(copying: Callable[[Any], Any]) -> None:
    pipe = tiny.pipeline("sd1")
    with ck.attach(pipe, tiny.controlnet("sd1").on(picture(1))):
        call(pipe, num_inference_steps=1)
        with pytest.raises(StateError, match="pickled"):
            copying(pipe.unet)
    copying(pipe.unet)


def test_controls_can_be_copied_and_reused() -> None:
    pipe, control = tiny.pipeline("sd1"), tiny.controlnet("sd1").on(picture(1))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(control)))
    pictures = []
    for one in (control, twin, control):
        with ck.attach(pipe, one):
            pictures.append(call(pipe))
    assert torch.equal(pictures[0], pictures[1])
    assert torch.equal(pictures[0], pictures[2])


def test_another_hook_on_the_unet_survives() -> None:
    pipe, seen = tiny.pipeline("sd1"), list[int]()
    with ck.attach(pipe, tiny.controlnet("sd1").on(picture(1))):
        handle = pipe.unet.register_forward_pre_hook(lambda *_: seen.append(1))
        call(pipe)
    call(pipe)
    assert len(seen) == 8
    handle.remove()


@pytest.mark.parametrize("place", ["weights", "map to phi", "text"])
def test_not_finite_numbers_name_their_step_and_control(place: str) -> None:
    pipe, net = tiny.pipeline("sd1"), tiny.controlnet("sd1")
    controls: list[Any] = [net.on(picture(1))]
    extra: dict[str, Any] = {}
    error: tuple[type[Exception], str] = (NonFiniteAtStep, "step 1 of 4")
    if place == "weights":
        with torch.no_grad():
            next(net.controlnet_mid_block.parameters()).flatten()[0] = float("nan")
    elif place == "map to phi":
        controls = [ck.Guidance(lambda x, _y, _t: (x / 0 * 0).flatten(1).sum(1))]
    else:
        extra = {"prompt": None, "prompt_embeds": torch.full((1, tiny.TOKENS, 768), float("nan"))}
        extra["negative_prompt_embeds"] = torch.zeros(1, tiny.TOKENS, 768)
        error = (ck.ParameterError, "prompt embeddings")
    with pytest.raises(error[0], match=error[1]), ck.attach(pipe, *controls):
        call(pipe, **extra)


# --- threads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("shared", [True, False], ids=["one attach", "attach in each"])
def test_threads_get_the_right_picture_or_a_typed_error(scheduler: Any, shared: bool) -> None:
    pipe = tiny.pipeline("sd1")
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    control = tiny.controlnet("sd1").on(picture(1))
    with ck.attach(pipe, control):
        right = call(pipe)
    results: list[Any] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        for _ in range(3):
            try:
                if shared:
                    results.append(call(pipe))
                else:
                    with ck.attach(pipe, control):
                        picture_ = call(pipe)
                    results.append(picture_)
            except (StateError, ck.ControlKitError) as error:
                results.append(error)
            except Exception as error:  # the scheduler itself may stumble: an error, never a wrong picture
                results.append(error)

    def race() -> None:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    outcome: BaseException | None = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if shared:
                with ck.attach(pipe, control):
                    race()
            else:
                race()
    except Busy as error:
        outcome = error
    assert len(results) == 12
    wrong = [r for r in results if isinstance(r, Tensor) and not torch.equal(r, right)]
    assert not wrong or outcome is not None
    errors = [r for r in results if isinstance(r, Exception)]
    assert any(isinstance(error, Busy) for error in errors)
    with ck.attach(pipe, control):
        assert torch.equal(call(pipe), right)

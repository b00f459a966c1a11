"""Guidance as a patch of ComfyUI's MODEL.

After classifier-free guidance the predicted clean picture is moved: with x = x0 + sigma ε, a shift of the
noise by δ is one of x0 by -sigma δ, the same on both halves. So it comes out as in every other host.

Where the gradient runs through the U-Net, the conditional half is run again as ComfyUI runs it, with what
controls added held as it was; the whole sampling then runs outside inference mode (`gradients`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from controlkit.contracts import Step
from controlkit.engine import Entry, Session, admit
from controlkit.errors import NotApplicable
from controlkit.guidance import Guidance
from controlkit.hosts.comfy.attachments import own_key
from controlkit.hosts.comfy.clock import step_at
from controlkit.hosts.comfy.host import host
from controlkit.hosts.comfy.kept import REPLAY
from controlkit.hosts.comfy.running import signal
from controlkit.hosts.comfy.unet import target_of
from controlkit.hosts.gradients import ordinary, ordinary_tensor, outside_inference
from controlkit.hosts.sessions import Sessions
from controlkit.report import ControlRecord


class Guide:
    """One guidance function on one model.

    Args:
        control: The function, bound to its target.
        vae: ComfyUI's VAE, for functions that see the picture; None: there is none.
    """

    def __init__(self, control: Guidance, vae: Any = None) -> None:
        if control.recurrence > 1:
            raise NotApplicable(
                control.name,
                found=f"recurrence={control.recurrence}",
                expected="1",
                fix="ComfyUI's samplers step by themselves; use more steps, or inner_steps.",
            )
        self.control, self.vae = control, vae
        self.record = ControlRecord(control.name)
        self._sessions: Sessions | None = None

    def install(self, patcher: Any) -> Any:
        """A copy of the MODEL that is guided; others on it stay, and each adds its own."""
        new = patcher.clone()
        key = own_key()

        # Functions, not methods: ComfyUI copies options deeply, and with methods what they belong to.
        def sample(executor: Any, *args: Any, **kwargs: Any) -> Any:
            return self.sampling(executor, *args, **kwargs)

        def guide(args: Mapping[str, Any]) -> Tensor:
            return self.guided(args)

        new.set_model_sampler_post_cfg_function(guide)
        kinds = host("comfy.patcher_extension").WrappersMP
        new.add_wrapper_with_key(kinds.OUTER_SAMPLE, key, sample)
        if self.vae is not None:
            new.set_additional_models(key, [self.vae.patcher])
        new.set_attachments(key, self)
        return new

    def sampling(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around a whole sampling."""
        self._end()
        self.record = ControlRecord(self.control.name)
        try:
            if not self.control.through_unet:
                return executor(*args, **kwargs)
            with outside_inference():
                guider = executor.class_obj
                ordinary(guider.model_patcher.model)
                for patcher in _controls_of(guider.conds):
                    ordinary(patcher.model)
                args = tuple(ordinary_tensor(value) for value in args)
                kwargs = {name: ordinary_tensor(value) for name, value in kwargs.items()}
                return executor(*args, **kwargs)
        finally:
            self._end()

    def guided(self, args: Mapping[str, Any]) -> Tensor:
        """The predicted clean latents with guidance in them; ``args`` as ComfyUI's post-CFG functions get."""
        denoised: Tensor = args["denoised"]
        sigma = float(args["sigma"].flatten()[0])
        if sigma <= 0:
            return denoised
        with outside_inference(weights=self._networks(args["model"])):
            x, predicted = ordinary_tensor(args["input"]), ordinary_tensor(args["cond_denoised"])
            model, options = args["model"], args["model_options"]
            index, count = step_at(options.get("transformer_options", {}).get("sample_sigmas"), sigma)
            levels = ordinary_tensor(args["sigma"])
            step = Step(
                index=index,
                count=count,
                timestep=model.model_sampling.timestep(levels).float(),
                latents=model.model_sampling.calculate_input(levels, x),
                prompt=None,
                tokens=None,
                branches=("cond",),
                alpha_bar=signal(sigma),
                again=_again(args, sigma),
            )
            session = self._begun(model, step)
            session.before(step)
            shift = session.shift((x - predicted) / sigma, step)
            if shift is None:
                return denoised
            return ordinary_tensor(denoised) - sigma * shift.to(denoised)

    def _networks(self, model: Any) -> list[nn.Module]:
        return [model, *([] if self.vae is None else [self.vae.first_stage_model])]

    def _begun(self, model: Any, step: Step) -> Session:
        if self._sessions is None:
            target = target_of(model)
            admit(self.control, target)
            if self.vae is not None:
                ordinary(self.vae.first_stage_model)
            decode = None if self.vae is None else _decoder(self.vae, model)
            self._sessions = Sessions([Entry(self.control, self.record)], target, decode=decode)
        return self._sessions.of(step)

    def _end(self) -> None:
        sessions, self._sessions = self._sessions, None
        if sessions is not None:
            sessions.close()


def _again(args: Mapping[str, Any], sigma: float) -> Callable[[Tensor], Tensor]:
    """The noise that the U-Net predicts on the conditional rows, for other latents of the same level."""
    options = dict(args["model_options"])
    options["transformer_options"] = {**options.get("transformer_options", {}), REPLAY: True}

    def noise(latents: Tensor) -> Tensor:
        x = latents * math.sqrt(1.0 + sigma**2)
        levels = ordinary_tensor(args["sigma"])
        batch = host("comfy.samplers").calc_cond_batch
        (clean,) = batch(args["model"], [args["cond"]], x, levels, options)
        return (x - clean) / sigma

    return noise


def _decoder(vae: Any, model: Any) -> Callable[[Tensor], Tensor]:
    """Clean latents to pixels in [-1, 1], with gradients where they are on."""

    def decode(latents: Tensor) -> Tensor:
        plain = model.process_latent_out(latents)
        return vae.first_stage_model.decode(plain.to(vae.vae_dtype)).float()

    return decode


def _controls_of(conds: Mapping[str, Any]) -> list[Any]:
    """The networks of every control in the conditionings of a sampling."""
    controls = {id(c["control"]): c["control"] for part in conds.values() for c in part if "control" in c}
    return [patcher for control in controls.values() for patcher in control.get_models()]

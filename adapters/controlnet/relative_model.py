"""ControlNets that are stored relative to a base model: they hold what differs, and need its U-Net.

`ControlLora` holds two thin factors for each weight of the encoder, `ControlNetDifference` the difference
itself. Both become a `ControlNet` once a U-Net is at hand: by themselves when they are attached to a
pipeline (`relative_control.py`), or with `with_base` for a loop of one's own and for saving.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from controlkit.adapters.controlnet.config import ControlNetConfig
from controlkit.adapters.controlnet.model import ControlNet
from controlkit.checkpoints.ldm import ldm_name
from controlkit.errors import BaseMismatch, DeviceMismatch, ParameterError, StateError, Unsupported
from controlkit.module import MapModule

if TYPE_CHECKING:
    from controlkit.binding import BoundMap
    from controlkit.contracts import Control
    from controlkit.strength import Strength

OWN = "own"
"""The tensors that are stored whole: hint encoder, zero convolutions; in a Control-LoRA norms and biases."""


class RelativeControlNet(MapModule):
    """A ControlNet without the part that it shares with its base model's U-Net.

    Args:
        config: Of the complete network.
        stored: The shape of each tensor it holds, by ``GROUP.NAME``: a group such as ``own``, and the name
            that the parameter has in a `ControlNet`.
        names: The name that each of them has in its file.
        marker: What the file is recognised by: a tensor's name, and its value.

    Attributes:
        config: The same, frozen.
    """

    title: ClassVar[str]

    def __init__(
        self,
        config: ControlNetConfig,
        stored: Mapping[str, tuple[int, ...]],
        names: Mapping[str, str],
        marker: tuple[str, tuple[float, ...]],
    ) -> None:
        super().__init__()
        self.config = config
        self._file_names, self._marker = dict(names), marker
        groups: dict[str, dict[str, nn.Parameter]] = {}
        for key, shape in stored.items():
            group, _, name = key.partition(".")
            groups.setdefault(group, {})[_escaped(name)] = nn.Parameter(torch.empty(shape))
        for group, parameters in groups.items():
            self.add_module(group, nn.ParameterDict(parameters))

    @property
    def base(self) -> str:
        """``sd1``, ``sd2``, ``sdxl``, ``embedded`` or ``other``, told by the width of the tokens."""
        return self.config.base

    @property
    def map_channels(self) -> int:
        return self.config.conditioning_channels

    @abstractmethod
    def restored(self, name: str, base: Callable[[], Tensor]) -> Tensor:
        """One parameter of the complete network, in float32.

        Args:
            name: Its name in a `ControlNet`.
            base: Gives the U-Net's, in float32.
        """

    def held(self, group: str, name: str) -> Tensor | None:
        """A tensor that is stored, or None."""
        parameters = getattr(self, group, {})
        return parameters[_escaped(name)].detach() if _escaped(name) in parameters else None

    def with_base(
        self, base: nn.Module | Mapping[str, Tensor] | Any, *, dtype: torch.dtype | None = None
    ) -> ControlNet:
        """The complete ControlNet, for a loop of one's own or to save it. Neither part is changed.

        Args:
            base: The U-Net that it was made for, a pipeline with it, or a state dict of it: in diffusers'
                names or the original ones, with or without ``model.diffusion_model.``.
            dtype: Of the result; the U-Net's by default.

        Returns:
            A `ControlNet` of its own weights, where the U-Net's are, in evaluation mode without gradients.

        Raises:
            BaseMismatch: The U-Net is another one; the message names both.
            DeviceMismatch: Its weights are not in memory.
            ParameterError: It is no U-Net.
        """
        unet = getattr(base, "unet", base) if not isinstance(base, nn.Module | Mapping) else base
        unet = getattr(unet, "_orig_mod", unet)
        weights = unet.state_dict() if isinstance(unet, nn.Module) else unet
        if not isinstance(weights, Mapping):
            raise ParameterError(
                "base",
                found=f"a {type(base).__name__}",
                expected="a U-Net, a pipeline or a state dict",
                fix="For a file, give ck.unet(path).",
            )
        return self.complete(weights, dtype)

    def complete(self, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> ControlNet:
        """See `with_base`; ``weights`` are the U-Net's by either kind of names."""
        find = _finder(weights, self.config.layers_per_block)
        sample = find("conv_in.weight")
        if sample is None:
            self._refuse("no conv_in.weight, so no U-Net that is known")
        dtype = dtype or sample.dtype
        with torch.device("meta"):
            net = ControlNet(self.config)
        state: dict[str, Tensor] = {}
        for name, target in net.state_dict().items():

            def base(name: str = name, target: Tensor = target) -> Tensor:
                found = find(name)
                if found is None or found.shape != target.shape:
                    self._refuse(f"no {name}" if found is None else f"{name} of shape {list(found.shape)}")
                if found.is_meta or not found.is_floating_point():
                    raise DeviceMismatch(
                        self.kind,
                        found=f"a U-Net whose {name} is {'not in memory' if found.is_meta else found.dtype}",
                        expected="its weights, in floating point",
                        fix="Complete it before the U-Net is offloaded or quantised: module.with_base(unet).",
                    )
                return found.detach().float()

            own = self.held(OWN, name)
            value = self.restored(name, base) if own is None else own
            state[name] = value.to(device=sample.device, dtype=dtype, copy=True)
        net.load_state_dict(state, strict=True, assign=True)
        net.source, net.digest, net.condition = self.source, self.digest, self.condition
        return net.eval().requires_grad_(False)

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible without a base.

        Raises:
            StateError: Always.
        """
        raise StateError(
            self.title,
            found="a call without its base model",
            expected="a complete ControlNet",
            fix="Call what module.with_base(unet) returns; attached to a pipeline it needs no such step.",
        )

    def bind(self, bound: BoundMap, strength: Strength) -> Control:
        from controlkit.adapters.controlnet.relative_control import RelativeControl

        return RelativeControl(self, bound, strength)

    def config_entries(self) -> dict[str, Any]:
        """Not possible: diffusers' layout has no place for it.

        Raises:
            Unsupported: Always; the message says how to save it.
        """
        raise Unsupported(
            self.title,
            found="a ControlNet without its base model",
            expected="a complete one, for diffusers' layout",
            fix="Save module.with_base(unet), or this with layout='original'.",
        )

    def original_state(self) -> dict[str, Tensor]:
        """What its file held, under the names it had there."""
        state = {
            self._file_names[name.replace("/", ".")]: tensor for name, tensor in self.state_dict().items()
        }
        name, value = self._marker
        like = next(self.parameters())
        shape = () if value else (0,)
        return {**state, name: torch.tensor(value, dtype=like.dtype).reshape(shape)}

    def _refuse(self, found: str) -> NoReturn:
        levels = "/".join(map(str, self.config.block_out_channels))
        raise BaseMismatch(
            self.title,
            found=f"a U-Net with {found}",
            expected=f"that of the base model it was made for: {self.base} (tokens "
            f"{self.config.cross_attention_dim} wide, levels {levels})",
            fix="Use it with that base model; what is stored here is relative to its weights.",
        )


class ControlLora(RelativeControlNet):
    """Stability's Control-LoRA: each weight of the encoder is the U-Net's plus a product of two factors.

    ``W = W_unet + up @ down``, with both factors flattened after their first dimension. Norms, biases, the
    hint encoder and the zero convolutions are stored whole.

    Source:
        `ControlLora` and `ControlLoraOps` in `comfy/controlnet.py` of Comfy-Org/ComfyUI@03b1ca67; written by
        the node ``ControlLoraSave`` of Stability-AI/stability-ComfyUI-nodes.
    """

    kind: ClassVar[str] = "control-lora"
    title: ClassVar[str] = "a Control-LoRA"

    def restored(self, name: str, base: Callable[[], Tensor]) -> Tensor:
        weight = base()
        up, down = self.held("up", name), self.held("down", name)
        assert up is not None  # each weight is whole or has both factors
        assert down is not None
        up, down = (part.to(weight.device).float().flatten(1) for part in (up, down))
        return weight + (up @ down).reshape(weight.shape)


class ControlNetDifference(RelativeControlNet):
    """A ControlNet of which the encoder is stored as its difference to the U-Net's.

    Weights that the difference leaves out are the U-Net's own. Hint encoder and zero convolutions are
    stored whole.

    Source:
        `extract_controlnet_diff.py` of Mikubill/sd-webui-controlnet@56cec5b2, which writes such files;
        `comfy/controlnet.py` of Comfy-Org/ComfyUI reads them.
    """

    kind: ClassVar[str] = "controlnet-difference"
    title: ClassVar[str] = "a ControlNet stored as a difference"

    def restored(self, name: str, base: Callable[[], Tensor]) -> Tensor:
        weight, difference = base(), self.held("difference", name)
        return weight if difference is None else weight + difference.to(weight.device).float()


def _escaped(name: str) -> str:
    return name.replace(".", "/")  # parameters may not have a dot in their name


def _finder(weights: Mapping[str, Tensor], layers: int) -> Callable[[str], Tensor | None]:
    """Looks up a U-Net's weight by diffusers' name, whatever names the weights have.

    Under peft's LoRA layers the weight is that of the layer beneath, without the LoRA.
    """
    prefix = next(
        (p for p in ("model.diffusion_model.", "diffusion_model.", "unet.") if _any(weights, p)), ""
    )
    original = f"{prefix}input_blocks.0.0.weight" in weights

    def find(name: str) -> Tensor | None:
        module, _, leaf = name.rpartition(".")
        theirs = ldm_name(name, layers=layers) if original else name
        return weights.get(f"{prefix}{theirs}", weights.get(f"{prefix}{module}.base_layer.{leaf}"))

    return find


def _any(names: Mapping[str, Tensor], beginning: str) -> bool:
    return any(name.startswith(beginning) for name in names)

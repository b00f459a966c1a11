"""The cross-attention layers of diffusers' U-Net: which there are, and how to add to what they compute.

Two hook handles per layer: one on the query's projection keeps the queries, one before the output's
projection adds to what it is given. So it works with every attention processor that calls ``attn.to_q`` and
``attn.to_out[0]``, and none is replaced. Where that was not so is noticed after the U-Net's call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from controlkit.attention import ExtraAttentions
from controlkit.contracts import AttentionLayer
from controlkit.errors import NotApplicable
from controlkit.hosts.hooks import Hook

_PARTS = ("down_blocks", "up_blocks", "mid_block")
"""The order of the U-Net's parts in IP-Adapter's files, which is that of ``unet.attn_processors``."""

_COMPILED = (
    "This U-Net is compiled, and a compiled one does not see what is added inside its layers. Attach to the"
    " U-Net as it was before torch.compile."
)


@dataclass(frozen=True, eq=False)
class Place:
    """One cross-attention layer.

    Args:
        name: Within the U-Net.
        attention: diffusers' ``Attention`` module.
        layer: What controls need to know of it.
    """

    name: str
    attention: Any
    layer: AttentionLayer


@dataclass(frozen=True, eq=False)
class CrossAttention:
    """The cross-attention layers of a U-Net in the order of IP-Adapter's files.

    Args:
        places: All of them.
        refusal: Why nothing can be added to them, or None.
    """

    places: tuple[Place, ...]
    refusal: str | None

    @property
    def layers(self) -> tuple[AttentionLayer, ...]:
        """What controls need to know of them."""
        return tuple(place.layer for place in self.places)


def cross_attention(unet: nn.Module, core: nn.Module) -> CrossAttention:
    """Find the cross-attention layers.

    Args:
        unet: What is called: the U-Net, or what ``torch.compile`` made of it.
        core: The U-Net itself.
    """
    compiled = unet is not core
    depth = len(cast(Sequence[Any], getattr(core, "down_blocks", ())))
    found: dict[str, list[Place]] = {part: [] for part in _PARTS}
    added = False
    modules = cast("Iterator[tuple[str, nn.Module]]", core.named_modules())
    for name, module in modules:
        compiled = compiled or getattr(module, "_compiled_call_impl", None) is not None
        part, _, rest = name.partition(".")
        if part not in found:
            continue
        added = added or getattr(module, "add_k_proj", None) is not None
        if name.endswith(".attn2") and getattr(module, "is_cross_attention", False):
            block = depth - 1 if part == "mid_block" else int(rest.partition(".")[0])
            level = depth - 1 - block if part == "up_blocks" else block
            known = cast(Any, module)
            layer = AttentionLayer(known.inner_dim, 2**level, known.cross_attention_dim)
            found[part].append(Place(name, known, layer))
    places = tuple(place for part in _PARTS for place in found[part])
    if compiled:
        return CrossAttention(places, _COMPILED)
    if not places:
        kind = "attends to pixels and tokens in one layer" if added else "has no cross-attention layers"
        return CrossAttention(
            (), f"This U-Net {kind}, so that there is nothing to add a picture's tokens to."
        )
    return CrossAttention(places, None)


class AttentionHooks:
    """The hooks in all cross-attention layers of a U-Net; in force between `install` and `remove`.

    Args:
        places: The layers.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = tuple(places)
        self._handles: list[Any] = []
        self._hooked: tuple[tuple[nn.Module, nn.Module], ...] = ()
        self._queries: dict[int, Tensor] = {}
        self._extra: ExtraAttentions | None = None
        self._reached: set[int] = set()

    def install(self) -> None:
        """Put the hooks in place; again where modules were exchanged since (a LoRA was loaded, say)."""
        now = tuple((place.attention.to_q, place.attention.to_out[0]) for place in self._places)
        same = len(now) == len(self._hooked) and all(
            a is c and b is d for (a, b), (c, d) in zip(now, self._hooked, strict=True)
        )
        if same:
            return
        self.remove()
        for index, (query, output) in enumerate(now):
            self._handles.append(query.register_forward_hook(Hook(self._keeper(index))))
            self._handles.append(output.register_forward_pre_hook(Hook(self._adder(index))))
        self._hooked = now

    def remove(self) -> None:
        """Take them away; harmless when they are away."""
        self.restart()
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()
        self._hooked = ()

    def begin(self, extra: ExtraAttentions | None) -> None:
        """Say what is added during the call of the U-Net that comes."""
        self.drop()
        self._extra = extra

    def drop(self) -> None:
        """Forget the call under way."""
        self._extra = None
        self._queries.clear()

    def restart(self) -> None:
        """Forget the run under way."""
        self.drop()
        self._reached.clear()

    def end(self) -> None:
        """The call is over: refuse its result where a layer was passed by.

        Every layer must be reached at the first call of a run. Later calls may leave layers out altogether
        (DeepCache does), but not call them another way.

        Raises:
            NotApplicable: A layer did not call the modules that the hooks are on.
        """
        extra, waiting = self._extra, sorted(self._queries)
        self.drop()
        if extra is None:
            return
        self._reached |= extra.reached
        missed = waiting or [index for index in range(len(self._places)) if index not in self._reached]
        if missed:
            self._refuse(missed[0], extra, "to_out[0]" if waiting else "to_q")

    def _keeper(self, index: int) -> Any:
        def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if self._extra is not None:
                self._queries[index] = output

        return keep

    def _adder(self, index: int) -> Any:
        def add(_module: nn.Module, args: tuple[Any, ...]) -> Any:
            if self._extra is None:
                return None
            if index not in self._queries:
                self._refuse(index, self._extra, "to_q")
            query = self._queries.pop(index)
            result = self._extra.add(index, args[0], query, self._places[index].attention.heads)
            return (result, *args[1:])

        return add

    def _refuse(self, index: int, extra: ExtraAttentions, what: str) -> NoReturn:
        place = self._places[index]
        processor = type(getattr(place.attention, "processor", None)).__name__
        raise NotApplicable(
            ", ".join(term.name for term in extra.terms),
            found=f"{place.name} with {processor}, which did not call {what} as a module",
            expected="an attention processor that does, or nothing would be added there",
            fix="Undo fused projections, compilation or a processor of your own, such as with"
            " unet.set_default_attn_processor().",
        )

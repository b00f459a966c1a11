"""`UniControlNet`: the local and the global half as one control module; either may be absent.

The networks are in `local.py` and `tokens.py`, what they do during a run is in `control.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, cast

from torch import Tensor, nn

from controlkit.adapters.uni_controlnet.config import CLASS, LocalConfig, TokensConfig
from controlkit.adapters.uni_controlnet.local import LocalAdapter
from controlkit.adapters.uni_controlnet.tokens import ContentTokens
from controlkit.checkpoints.config import as_dict
from controlkit.errors import ConfigError, ParameterError
from controlkit.module import ControlModule

if TYPE_CHECKING:
    from controlkit.contracts import Control
    from controlkit.strength import Mode, Scale

ENCODER = "openai/clip-vit-large-patch14"
"""The image encoder of the published weights."""

_BASES = {768: "sd1", 1024: "sd2", 128: "embedded"}


def base_of_tokens(width: int | None) -> str:
    """The base model, told by the width of its tokens."""
    return _BASES.get(width or 0, "other")


class Absent(nn.Module):
    """Stands where a half is not there, and says so when it is used."""

    def __init__(self, name: str, reads: str) -> None:
        super().__init__()
        self.name, self.reads = name, reads

    def forward(self, *_: Any, **__: Any) -> NoReturn:
        raise ParameterError(
            f"UniControlNet.{self.name}",
            found=f"weights without the half that reads {self.reads}",
            expected="the whole Uni-ControlNet",
            fix="Load the whole uni.ckpt, or the file of this half.",
        )


class UniControlNet(ControlModule):
    """Any subset of seven kinds of maps through one adapter, and a content image through another.

    Made for the base model named by `base`. The local half reads the prompt's tokens, and costs per step what
    a ControlNet costs, however many maps there are; it adds to every skip connection and after the middle
    block. The global half makes prompt tokens of a content image, once per run.

    Args:
        local: What to build for maps; None: without.
        tokens: What to build for content; None: without.

    Attributes:
        local: ``local(latents, timesteps, tokens, maps) -> Residuals``; see `LocalAdapter.forward`. Where it
            is absent, calling it is a `ParameterError`.
        tokens: ``tokens(embedding) -> (batch, count, dim)``; see `ContentTokens.forward`. Likewise.

    Raises:
        ConfigError: Neither half, or halves for tokens of different widths.

    Source:
        Zhao et al. (2023), arXiv:2305.16322; ShihaoZhaoZSH/Uni-ControlNet@4da003c3, whose numbers it gives.
    """

    kind: ClassVar[str] = "uni-controlnet"
    local: LocalAdapter
    tokens: ContentTokens

    def __init__(self, local: LocalConfig | None = None, tokens: TokensConfig | None = None) -> None:
        super().__init__()
        widths = {
            *([] if local is None else [local.cross_attention_dim]),
            *([] if tokens is None else [tokens.dim]),
        }
        if len(widths) != 1:
            raise ConfigError(
                "config local and tokens",
                found=f"tokens {' and '.join(map(str, sorted(widths)))} wide" if widths else "neither",
                expected="at least one of them, and one width",
                fix="Use halves that were trained together.",
            )
        self.token_dim = widths.pop()
        # An absent half is a module all the same, so that using it can say what is missing.
        self.local = cast(LocalAdapter, Absent("local", "maps") if local is None else LocalAdapter(local))
        self.tokens = cast(
            ContentTokens, Absent("tokens", "content") if tokens is None else ContentTokens(tokens)
        )

    @property
    def has_local(self) -> bool:
        """Whether it reads maps."""
        return isinstance(self.local, LocalAdapter)

    @property
    def has_tokens(self) -> bool:
        """Whether it reads a content image."""
        return isinstance(self.tokens, ContentTokens)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the maps it reads, in the order of their channels; none where the local half is absent."""
        return self.local.config.names if self.has_local else ()

    @property
    def base(self) -> str:
        """``sd1``, ``sd2``, ``embedded`` or ``other``, told by the width of the tokens."""
        return base_of_tokens(self.token_dim)

    def on(
        self,
        maps: Mapping[str, Any] | Tensor | None = None,
        /,
        *,
        content: Any = None,
        encoder: Any = ENCODER,
        local_scale: Scale = 1.0,
        global_scale: Scale = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        mode: Mode = "balanced",
        block_scales: Sequence[float] | None = None,
        mask: Any = None,
        resize: Literal["stretch", "crop", "pad"] = "stretch",
        detect: Mapping[str, str] | None = None,
        detect_options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Control:
        """Bind to maps, to a content image, or to both: what `controlkit.attach` takes.

        The original's three modes: with maps alone ``local``, the prompt as it is; with content alone
        ``global``, the U-Net with extra tokens; with both ``uni``, where the local half reads the extra
        tokens too. Its ``uni`` without a content image is ``content=torch.zeros(1, 768)``: not the same as
        None, since the tokens of zeros are not zero. Its ``uni`` without a map is a black map of any kind.

        Args:
            maps: Images by name, any of `conditions`, each as `MapModule.on` takes them; absent ones are
                zero. ``canny``, ``mlsd`` and ``hed`` are bright on black, ``sketch`` is dark on white,
                ``openpose`` coloured on black, near is bright in ``midas``, ``seg`` has ADE20K's colours. Or
                all of them as one tensor (batch, local_channels, H, W) in [0, 1]. None or empty: no local
                control.
            content: A picture, or a list with one entry per prompt; or embeddings (n, dim), projected, not
                normalised; or zeros, see above. None: no tokens. In classifier-free guidance the
                unconditional half gets the tokens of zeros. (The original's demonstration swaps red and blue
                of the picture by mistake; here it is taken as it is.)
            encoder: A ``CLIPVisionModelWithProjection``, or a folder or hub id of one, for a content picture.
            local_scale: Of the residuals: a number, a function of the fraction done in [0, 1], or points
                ``(fraction, scale)``. (The original's demonstration has a slider for it, without effect.)
            global_scale: Of the extra tokens, likewise. At 0 there are none.
            start: Fraction of the run at which both begin to act.
            end: Fraction at which both end.
            mode: As `MapModule.on`; of the residuals. Tokens act on both halves of guidance in every mode.
            block_scales: One factor per residual, in the U-Net's order, the middle last.
            mask: A region in [0, 1], 1 where the residuals act. Tokens act everywhere.
            resize: How maps of another shape are fitted.
            detect: Detectors by the name of the map, such as ``{"canny": "canny"}``, to make maps from
                photos.
            detect_options: For each such detector.

        Raises:
            ParameterError: An option out of its range, an unknown condition, or one of a half that is absent.
            HintError: An image, an embedding or the mask that cannot be used.
        """
        from controlkit.adapters.uni_controlnet.reading import bind
        from controlkit.binding import make_strength

        strengths = (
            make_strength(local_scale, start, end, mode, block_scales, mask),
            make_strength(global_scale, start, end, mode, block_scales, mask),
        )
        return bind(self, maps, content, encoder, strengths, resize, detect, detect_options)

    def config_entries(self) -> dict[str, Any]:
        halves = {
            "local": self.local.config if self.has_local else None,
            "tokens": self.tokens.config if self.has_tokens else None,
        }
        entries: dict[str, Any] = {"_class_name": CLASS}
        for name, config in halves.items():
            if config is not None:
                half = as_dict(config, CLASS)
                entries[name] = {
                    key: value for key, value in half.items() if key[0] != "_" and value is not None
                }
        return entries

    def original_state(self) -> dict[str, Tensor]:
        """Its weights under the original names, ``local_adapter.*`` and ``global_adapter.*``.

        Raises:
            Unsupported: Its norms have another number of groups than the original's.
        """
        from controlkit.adapters.uni_controlnet.original import original_state

        return original_state(self)

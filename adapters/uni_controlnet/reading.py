"""From the arguments of `UniControlNet.on` to a control: maps read by their names, content embedded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from controlkit.adapters.uni_controlnet.control import ALL, UniControl
from controlkit.binding import BoundMap, name_of, read_map
from controlkit.errors import ParameterError
from controlkit.strength import Strength
from controlkit.vision import embedding_of

if TYPE_CHECKING:
    from controlkit.adapters.uni_controlnet.model import UniControlNet

Resize = Literal["stretch", "crop", "pad"]


def bind(
    module: UniControlNet,
    maps: Mapping[str, Any] | Tensor | None,
    content: Any,
    encoder: Any,
    strengths: tuple[Strength, Strength],
    resize: Resize,
    detect: Mapping[str, str] | None,
    detect_options: Mapping[str, Mapping[str, Any]] | None,
) -> UniControl:
    """See `UniControlNet.on`; ``strengths``: of the local and of the global half."""
    bound = read_maps(module, maps, resize, detect, detect_options)
    if content is not None and not module.has_tokens:
        raise _without("content", "reads content images")
    if not bound and content is None:
        raise ParameterError(
            "maps and content",
            found="neither",
            expected=f"maps ({', '.join(module.conditions) or 'none here'}), a content image, or both",
            fix='Give, say, {"canny": edges}.',
        )
    what = name_of(module)
    embedding = (
        None
        if content is None
        else embedding_of(content, "pooled", encoder, dim=module.token_dim, what=f"{what}: content")
    )
    return UniControl(module, bound, embedding, *strengths)


def read_maps(
    module: UniControlNet,
    maps: Mapping[str, Any] | Tensor | None,
    resize: Resize,
    detect: Mapping[str, str] | None,
    detect_options: Mapping[str, Mapping[str, Any]] | None,
) -> dict[str, BoundMap]:
    """Maps by name, in the network's order; all of them together under an empty name.

    Raises:
        ParameterError: A name that is not known, or maps for a module without its local half.
        HintError: An image that cannot be used.
    """
    known = module.conditions
    together = isinstance(maps, Tensor)
    if maps is not None and not together and not isinstance(maps, Mapping):
        raise ParameterError(
            "maps",
            found=f"a {type(maps).__name__}",
            expected=f"a dict of images by name: {', '.join(known)}",
            fix='Say what the image is, such as {"canny": edges}.',
        )
    if maps is not None and len(maps) and not module.has_local:
        raise _without("maps", "reads maps")
    given: Mapping[str, Any] = {ALL: maps} if together else maps or {}
    names = {
        "maps": () if together else given,
        "detect": detect or (),
        "detect_options": detect_options or (),
    }
    for argument, names_given in names.items():
        if strangers := [name for name in names_given if name not in known]:
            raise ParameterError(
                argument,
                found=f"{strangers[0]!r}",
                expected=f"names of {', '.join(known)}",
                fix="These are the conditions that this module was trained on.",
            )
    for name in (*(detect or {}), *(detect_options or {})):
        if name not in given:
            raise ParameterError(
                f"detect {name}", found="no image for it", expected=f"maps={{{name!r}: photo}}"
            )
    channels = module.local.config.local_channels if together else 3
    return {
        name: read_map(
            given[name],
            channels=channels,
            detect=(detect or {}).get(name),
            detect_options=(detect_options or {}).get(name),
            resize=resize,
            channel_order=None,
            condition=name or None,
            base=module.base,
        )
        for name in (ALL, *known)
        if name in given
    }


def _without(argument: str, use: str) -> ParameterError:
    return ParameterError(
        argument,
        found=f"{argument} for weights without the half that {use}",
        expected="the whole Uni-ControlNet",
        fix=f"Load the whole uni.ckpt, or leave {argument} out.",
    )

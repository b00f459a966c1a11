"""Ready-made guidance functions in recipes: what makes each, and what its options name.

Options of recipes are plain data. Where the maker wants a network, the option is a source (``embedded:clip``,
``file:classifier.pt``, or an object with ``source`` and ``digest``); where it wants a picture, a reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from controlkit.errors import ParameterError
from controlkit.recipes.images import Files, Picture, as_reference

if TYPE_CHECKING:
    from controlkit.recipes.building import Modules
    from controlkit.recipes.model import GuidanceRecipe

BUILT_IN = ("classifier", "color", "depth", "edges", "image", "region", "segmentation", "text")
"""Names of `controlkit.guidance` that recipes know without any entry point."""

_NETWORKS = {
    "classifier": "network",
    "depth": "network",
    "image": "model",
    "segmentation": "network",
    "text": "model",
}
"""The option of each that is a network."""

_PICTURES = {"color": "mask", "region": "mask"}
"""The option of each that is a picture."""


def maker_of(name: str) -> Callable[..., Any]:
    """What makes the function of a name of `BUILT_IN`."""
    from controlkit import guidance

    return getattr(guidance, name)


def referenced(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which pictures, and paths to them, have become references.

    Raises:
        RecipeError: What stands for a picture is none.
    """
    given = dict(options)
    key = _PICTURES.get(name)
    if key in given and given[key] is not None:
        reference = as_reference(given[key])
        if isinstance(reference, Mapping):
            reference = Picture(**reference)
        given[key] = reference.model_dump(exclude_none=True)  # pyright: ignore[reportAttributeAccessIssue]
    return given


def options_of(part: GuidanceRecipe, modules: Modules, files: Files) -> dict[str, Any]:
    """The options as the maker takes them: networks loaded, pictures opened.

    Raises:
        RecipeError: A network or picture that is not there.
    """
    given: dict[str, Any] = dict(part.options)
    picture, network = _PICTURES.get(part.guidance), _NETWORKS.get(part.guidance)
    if picture in given and given[picture] is not None:
        given[picture] = files.picture(Picture(**given[picture]))
    if network in given and given[network] is not None:
        source = given[network]
        given[network] = _network(network, source, modules)
        if source == "embedded:segmentation" and "palette" not in given:
            from controlkit import embedded

            given["palette"] = embedded.PALETTE
    return given


def sealed_options(
    part: GuidanceRecipe, modules: Modules, seal: Callable[[Picture], Picture | None]
) -> dict[str, Any]:
    """The options complete in themselves: pictures as data, modules with their digests."""
    given: dict[str, Any] = dict(part.options)
    picture, network = _PICTURES.get(part.guidance), _NETWORKS.get(part.guidance)
    if picture in given and given[picture] is not None:
        whole = seal(Picture(**given[picture]))
        assert whole is not None
        given[picture] = whole.model_dump(exclude_none=True)
    if network in given and given[network] is not None:
        digest = getattr(_network(network, given[network], modules), "digest", None)
        if digest:
            source = given[network] if isinstance(given[network], dict) else {"source": given[network]}
            given[network] = {**source, "digest": digest}
    return given


def _network(option: str, source: Any, modules: Modules) -> Any:
    from controlkit.recipes.model import ModuleRecipe

    if source in ("embedded:clip", "embedded:depth", "embedded:segmentation"):
        return modules.embedded(source.partition(":")[2])
    if not isinstance(source, str | dict):
        raise ParameterError(
            f"options.{option}", found=f"{source!r:.60}", expected="a source, such as 'embedded:clip'"
        )
    given: dict[str, Any] = {"source": source} if isinstance(source, str) else source
    return modules.of(ModuleRecipe(**given))

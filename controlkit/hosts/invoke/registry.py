"""Which nodes there are, and how they are registered with InvokeAI."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from controlkit.hosts.invoke.building import NodeKind, node
from controlkit.hosts.invoke.controls import control_nodes
from controlkit.hosts.invoke.detectors import detector_nodes
from controlkit.hosts.invoke.generating import generating_nodes
from controlkit.hosts.invoke.maps import map_nodes


def load(pack: str) -> list[Any]:
    """As `controlkit.hosts.invoke.load`.

    The classes live in a module of their own below that of the pack. InvokeAI forgets it with the pack, when
    that is removed, and keeps it when packs are reloaded; so it tells whether they are registered.
    """
    name = f"{pack}.controlkit_nodes"
    if name not in sys.modules:
        module = ModuleType(name, "Nodes that were made for this pack.")
        sys.modules[name] = module
        try:
            vars(module)["NODES"] = [node(about, name) for about in kinds(name)]
        except BaseException:
            del sys.modules[name]
            raise
    return list(vars(sys.modules[name])["NODES"])


def kinds(module: str) -> list[NodeKind]:
    """Every kind of node.

    Args:
        module: As for `controlkit.hosts.invoke.building.node`.
    """
    controls, _ = control_nodes(module)
    return [*detector_nodes(), *map_nodes(module), *controls, *generating_nodes(module)]

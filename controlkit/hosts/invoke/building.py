"""How a node class is made: InvokeAI's classes are pydantic models, whose fields are the node's inputs.

Classes are made by a call, not written down: the detectors' come from a table, and each class must belong to
the module of the pack, whose name is known when InvokeAI imports the clone and not before. By that name
InvokeAI lists the nodes of a pack, and takes them out when the pack is removed.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlkit.hosts.invoke.host import api

VERSION = "1.0.0"
"""Of every node: raised when its fields change, so that saved workflows are asked to be updated."""

CATEGORY = "controlkit"

Fields = Mapping[str, tuple[Any, Any]]
"""Name of a field: its type, and what InvokeAI's ``InputField`` or ``OutputField`` gives."""


@dataclass(frozen=True)
class NodeKind:
    """One kind of node.

    Args:
        kind: InvokeAI's type of it, unique among all packs: ``controlkit_…``.
        title: What the editor calls it.
        about: What it does, in a sentence or two.
        fields: Its inputs.
        output: Class of what it puts out.
        run: Called with the node, whose attributes are the inputs, and InvokeAI's context.
        tags: Words by which it is found.
        cached: Whether the same inputs may be answered with the last output.
        gallery: Whether it saves pictures, and so has a board and metadata.
    """

    kind: str
    title: str
    about: str
    fields: Fields
    output: Any
    run: Callable[[Any, Any], Any]
    tags: Sequence[str] = field(default_factory=tuple[str, ...])
    cached: bool = True
    gallery: bool = True


def node(about: NodeKind, module: str) -> Any:
    """Make and register the class of a node.

    Args:
        about: What it is.
        module: Name of the module that it belongs to; it must be in ``sys.modules``.
    """
    public = api()
    run = about.run

    def invoke(self: Any, context: Any) -> Any:
        return run(self, context)

    # InvokeAI reads the class of the output from here, and takes no text for it.
    invoke.__annotations__ = {"context": public.InvocationContext, "return": about.output}
    bases = [public.BaseInvocation]
    bases += [public.WithMetadata, public.WithBoard] if about.gallery else []
    made = _model(_class_name(about.kind, "Invocation"), bases, about.fields, about.about, module, invoke)
    register = public.invocation(
        about.kind,
        title=about.title,
        tags=["controlkit", *about.tags],
        category=CATEGORY,
        version=VERSION,
        use_cache=about.cached,
    )
    return register(made)


def output(kind: str, about: str, fields: Fields, module: str) -> Any:
    """Make and register the class of what a node puts out.

    Args:
        kind: InvokeAI's type of it, unique among all packs.
        about: What it is.
        fields: Its entries.
        module: As for `node`.
    """
    public = api()
    made = _model(_class_name(kind), [public.BaseInvocationOutput], fields, about, module)
    return public.invocation_output(kind)(made)


def _class_name(kind: str, ending: str = "") -> str:
    return "".join(word[:1].upper() + word[1:] for word in kind.split("_")) + ending


def _model(
    name: str, bases: Sequence[Any], fields: Fields, about: str, module: str, invoke: Any = None
) -> Any:
    body: dict[str, Any] = {"__module__": module, "__qualname__": name, "__doc__": about}
    body["__annotations__"] = {key: kind for key, (kind, _) in fields.items()}
    body |= {key: given for key, (_, given) in fields.items()}
    if invoke is not None:
        body["invoke"] = invoke
    return types.new_class(name, tuple(bases), exec_body=lambda namespace: namespace.update(body))

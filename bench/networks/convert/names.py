"""Nodes of a graph: how messages and tables name them, and which ones lie on the ways between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import fx


def owner_name(node: fx.Node) -> str:
    """Return the path of the module in whose ``forward`` a node stands, for messages."""
    return owner(node) or "the network itself"


def owner(node: fx.Node) -> str:
    """Return the path of the module in whose ``forward`` a node stands, "" for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] if isinstance(entry, tuple) else str(key) for key, entry in stack.items()]
    return paths[-1] if paths else ""


def function_name(node: fx.Node) -> str:
    """Return the name of what a node calls: ``relu``, ``add``, ``view``; the class's name for a module."""
    return str(getattr(node.target, "__name__", node.target))


def reachable(
    starts: Iterable[fx.Node], following: Callable[[fx.Node], Iterable[fx.Node]]
) -> Iterator[fx.Node]:
    """Yield each node once: ``starts``, what ``following`` returns for them, and so on."""
    pending, seen = list(starts), set()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            yield node
            pending += following(node)

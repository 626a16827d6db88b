"""How messages and tables name the nodes of a graph."""

from __future__ import annotations

from torch import fx


def place(node: fx.Node) -> str:
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

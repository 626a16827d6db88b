"""The network that the rewriting of a traced module makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, fx, nn

from bench.errors import InputError
from bench.networks.builder import Network
from bench.networks.convert.plan import Decision


class TransformedNetwork(Network):
    """A module's layers under their own names, connected by the rewritten graph.

    ``decisions`` says what became of each layer and activation, and why, in order; ``original_keys`` what the
    entries of the original's state dict are called here: None for those that are gone, because ``forward``
    never read them.
    """

    def __init__(
        self, root: nn.Module, graph: fx.Graph, input_size: int, decisions: Sequence[Decision]
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.original_keys: dict[str, str | None] = {}
        self.decisions = tuple(decisions)
        for name, child in root.named_children():
            if hasattr(self, name):
                raise InputError(f"network: a layer cannot be called {name!r} here; give it another name")
            self.add_module(name, child)
        for name, parameter in root.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in root.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name not in root._non_persistent_buffers_set)
        self._steps: Callable[..., Tensor] = type(fx.GraphModule(root, graph)).forward

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, S, S) to logits (B, classes)."""
        return self._steps(self, images)


def remove_unused(root: nn.Module, graph: fx.Graph) -> None:
    """Remove the layers that nobody calls (auxiliary heads, replaced dropouts)."""
    used = {str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")}
    for name, _ in list(root.named_modules()):
        parent, _, own = name.rpartition(".")
        called = any(f"{path}.".startswith(f"{name}.") or name.startswith(f"{path}.") for path in used)
        if name and not called and has_module(root, name):  # not removed with its parent
            delattr(root.get_submodule(parent), own)


def has_module(root: nn.Module, name: str) -> bool:
    """Return whether there is a module at the path ``name``."""
    try:
        root.get_submodule(name)
    except AttributeError:
        return False
    return True

"""Random networks as users write them: the original in full precision, removable branches.

A network is a chain of blocks, drawn by hypothesis: convolutions with norms (layers, functions by position,
functions by keyword) and activations (layers, shared layers, functions, in place, formulas), residual sums,
gates, concatenations through a dictionary, shared convolutions, dropout, pooling, constants.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.layers.branch import Branch
from bench.layers.low_precision import LowPrecisionLayer, strip
from bench.networks import Builder, initialize
from bench.networks.convert.invariant import check_is_original
from bench.networks.convert.rewrite import transform
from bench.randomness import Clock

SIZE, CHANNELS = 8, 4
NORMS = ("layer", "positional", "keyword", "group", "none")
ACTIVATIONS = (
    "layer",
    "shared",
    "function",
    "in place",
    "method",
    "hard-swish",
    "swish",
    "mish",
    "leaky",
    "none",
)

convolutions = st.tuples(
    st.just("conv"),
    st.sampled_from((1, 3)),
    st.sampled_from((1, 2, CHANNELS)),
    st.booleans(),
    st.sampled_from(NORMS),
    st.sampled_from(ACTIVATIONS),
)
leaves = st.one_of(
    convolutions,
    convolutions,
    st.tuples(st.just("gate"), st.sampled_from(("sigmoid", "by hand"))),
    st.tuples(st.just("twice"), st.sampled_from(ACTIVATIONS)),
    st.tuples(st.just("constant"), st.sampled_from(("attribute", "in forward", "buffer"))),
    st.tuples(st.just("dropout")),
    st.tuples(st.just("pool"), st.sampled_from(("max", "average"))),
)
blocks = st.one_of(
    leaves,
    leaves,
    st.tuples(st.just("residual"), st.lists(leaves, min_size=1, max_size=2), st.booleans()),
    st.tuples(st.just("dictionary"), convolutions, convolutions),
)
networks = st.lists(blocks, min_size=1, max_size=4)
QUANTIZERS = (("dorefa", "1/2"), ("bnn", "1/1"), ("syq", "2/2"))
quantizers = st.sampled_from(QUANTIZERS)
merges = st.sampled_from((None, "sum", "difference", "concat", "preactivation"))


class FunctionalNorm(nn.Module):
    """Batch norm by ``F.batch_norm``, its arguments by position or by keyword."""

    def __init__(self, keyword: bool) -> None:
        super().__init__()
        self.keyword = keyword
        self.gain, self.shift = nn.Parameter(torch.ones(CHANNELS)), nn.Parameter(torch.zeros(CHANNELS))
        self.register_buffer("mean", torch.zeros(CHANNELS))
        self.register_buffer("var", torch.ones(CHANNELS))

    def forward(self, x: Any) -> Any:
        if self.keyword:
            return F.batch_norm(
                x, self.mean, self.var, weight=self.gain, bias=self.shift, training=self.training, eps=1e-4
            )
        return F.batch_norm(x, self.mean, self.var, self.gain, self.shift, self.training, 0.2)


def _norm(kind: str) -> nn.Module:
    if kind in ("positional", "keyword"):
        return FunctionalNorm(kind == "keyword")
    if kind == "none":
        return nn.Identity()
    return nn.BatchNorm2d(CHANNELS) if kind == "layer" else nn.GroupNorm(2, CHANNELS)


class Activation(nn.Module):
    """One of ``ACTIVATIONS``; ``shared`` is the layer that several of them call."""

    def __init__(self, kind: str, shared: nn.Module) -> None:
        super().__init__()
        self.kind = kind
        self.layer = shared if kind == "shared" else nn.ReLU6()

    def forward(self, x: Any) -> Any:
        if self.kind in ("layer", "shared"):
            return self.layer(x)
        if self.kind == "function":
            return F.relu(x)
        if self.kind == "in place":
            return F.relu_(x + 0.0)
        if self.kind == "method":
            return x.tanh()
        if self.kind == "hard-swish":
            return x * F.relu6(x + 3) / 6
        if self.kind == "swish":
            return x.sigmoid().mul(x)
        if self.kind == "mish":
            return x * torch.tanh(F.softplus(x))
        return F.relu(x) - 0.1 * F.relu(-x) if self.kind == "leaky" else x


class Block(nn.Module):
    """One drawn block, (B, 4, H, W) -> (B, 4, H', W')."""

    def __init__(self, drawn: tuple[Any, ...], shared: nn.Module) -> None:
        super().__init__()
        self.kind, *self.options = drawn
        options = self.options
        if self.kind == "conv":
            size, groups, bias = options[:3]
            self.conv = nn.Conv2d(CHANNELS, CHANNELS, size, padding=size // 2, groups=groups, bias=bias)
            self.norm, self.act = _norm(options[3]), Activation(options[4], shared)
        elif self.kind == "gate":
            self.down, self.up = nn.Conv2d(CHANNELS, 2, 1), nn.Conv2d(2, CHANNELS, 1)
        elif self.kind == "twice":
            self.conv, self.act = nn.Conv2d(CHANNELS, CHANNELS, 1), Activation(options[0], shared)
        elif self.kind == "constant":
            if options[0] == "buffer":
                self.register_buffer("values", torch.linspace(0.5, 1.5, CHANNELS).view(-1, 1, 1))
            else:
                self.values = torch.linspace(0.5, 1.5, CHANNELS).view(-1, 1, 1)
        elif self.kind == "dropout":
            self.dropout = nn.Dropout(0.3)
        elif self.kind == "residual":
            self.inner = nn.Sequential(*[Block(each, shared) for each in options[0] if each[0] != "pool"])
        elif self.kind == "dictionary":
            self.paths = nn.ModuleDict({"a": Block(options[0], shared), "b": Block(options[1], shared)})
            self.join = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def forward(self, x: Any) -> Any:
        if self.kind == "conv":
            return self.act(self.norm(self.conv(x)))
        if self.kind == "gate":
            y = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
            return x * (torch.sigmoid(y) if self.options[0] == "sigmoid" else F.relu6(y + 3) / 6)
        if self.kind == "twice":
            return self.conv(self.act(self.conv(x)))
        if self.kind == "constant":
            made = self.options[0] == "in forward"
            return x * (torch.tensor([1.0, 0.5, 2.0, 1.5]).view(-1, 1, 1) if made else self.values)
        if self.kind == "dropout":
            return self.dropout(x)
        if self.kind == "pool":
            return F.max_pool2d(x, 3, 1, 1) if self.options[0] == "max" else F.avg_pool2d(x, 3, 1, 1)
        if self.kind == "residual":
            y = self.inner(x)
            if self.options[1]:
                y = y + 0.0
                y += x
                return y
            return x + y
        outputs = {name: path(x) for name, path in self.paths.items()}
        return self.join(torch.cat([outputs["b"], outputs["a"]], 1))


class RandomNetwork(nn.Module):
    """Stem, drawn blocks, a convolution, mean over positions, linear layer: (B, 3, 8, 8) -> (B, 10)."""

    def __init__(self, drawn: list[tuple[Any, ...]]) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.ReLU(inplace=True)
        self.blocks = nn.ModuleList([Block(each, self.relu) for each in drawn])
        self.conv, self.linear = nn.Conv2d(CHANNELS, CHANNELS, 3), nn.Linear(CHANNELS, 10)

    def forward(self, x: Any) -> Any:
        x = self.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


def hold(drawn: list[tuple[Any, ...]], quantizer: tuple[str, str], merge: str | None) -> str:
    """Assert what must hold for one network; return "kept", or why the network was refused."""
    fields = {"dataset": "digits", "network": "vgg_small", "quantizer": quantizer[0], "bits": quantizer[1]}
    config = TrialConfig.model_validate({**fields, "epochs": 1})

    def make() -> nn.Module:
        torch.manual_seed(1)
        return RandomNetwork(drawn)

    check_is_original(make, config, 10, SIZE, "the random network")
    clock = Clock(3)
    builder = Builder(config, clock, Branch(merge) if merge else None)
    try:
        network = builder.finish(transform(make(), builder, 10, input_size=SIZE))
    except InputError as error:
        if quantizer[0] == "bnn" and "is never negative" in str(error):
            return "refused: a quantizer of signs would read values that are never negative"
        if merge != "concat" or "extra channels reach no layer" not in str(error):
            raise
        return "refused: no layer reads the extra channels of concat"
    initialize(network, 5, "he_normal")
    images = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    clock.set(1, 0.5)
    network.train()(images).square().mean().backward()
    lost = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert lost == []
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with torch.no_grad():
        network.eval()(images)
        clock.set_factor(0.0)
        deployed = network(images)
        stripped = strip(network).eval()
        assert torch.equal(deployed, stripped(images))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(m.branch is not None for m in stripped.modules() if isinstance(m, LowPrecisionLayer))
    return "kept"

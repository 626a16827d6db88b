"""``bench speed --inference``: networks on integers beside float32 and int8, on the CPU, on one thread.

All ways of one layer or network are measured in turn, round after round, in seconds of the processor, which
other programs change little. A row's speedup is the median over the rounds of PyTorch's float32 seconds over
its own. The input of ways on integers is real-valued: packing it to bits is in their seconds. The input of
float32 and int8 layers has its levels already.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from bench.errors import InputError
from bench.experiments.config import make_config
from bench.export.foreign_formats import write_onnx
from bench.export.plain import plain_network
from bench.integer.build import Library, library
from bench.integer.convert import integer_network, layer_runs
from bench.integer.kernel import Bits, Product, Window
from bench.integer.levels import integers_of, weight_terms
from bench.networks import build
from bench.quantizers.deployed import Levels
from bench.randomness import Clock
from bench.speed.timing import spread

# The 3x3 convolutions of ResNet-18 at 224 pixels: (channels, outputs, input size, stride, how often).
LAYERS = (
    (64, 64, 56, 1, 4),
    (64, 128, 56, 2, 1),
    (128, 128, 28, 1, 3),
    (128, 256, 28, 2, 1),
    (256, 256, 14, 1, 3),
    (256, 512, 14, 2, 1),
    (512, 512, 7, 1, 3),
)
NETWORKS = ("svhn_convnet", "resnet18")
BATCHES = (1, 8)
BITS = ("1/1", "2/2")
ALL_LAYERS = "all 3x3 layers"
UNIT = "float32, PyTorch"
_SHORTEST = 1e-3  # seconds of a measurement; what is faster is repeated
_LEVELS = {"1": ([-1.0, 1.0], [0.0, 1.0]), "2": ([-1.0, -1 / 3, 1 / 3, 1.0], [0.0, 1 / 3, 2 / 3, 1.0])}
Ways = dict[tuple[str, str], Callable[[], object]]  # by (way, bits)


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the rows: every layer of ResNet-18, all of them together, and whole networks.

    A row has the ``kind`` "inference", its ``network``, ``layer`` (None: the whole network), ``batch_size``,
    ``way`` and ``bits``. ``seconds`` is the median of a batch, ``spread`` the distance of the quartiles over
    it. ``speedup`` is over PyTorch's float32, ``speedup_low`` and ``speedup_high`` are its extremes. Rows on
    integers name their ``instructions``.
    """
    kernels = library()
    with torch.no_grad():
        for batch in BATCHES:
            yield from _layer_rows(batch, rounds, kernels)
            for network in NETWORKS:
                with tempfile.TemporaryDirectory(prefix="bench-speed-") as folder:
                    ways = network_ways(network, batch, Path(folder))
                    taken = interleaved(ways, rounds)
                about = {"network": network, "layer": None, "batch_size": batch}
                yield from _rows(about, taken, kernels.instructions)


def _layer_rows(batch: int, rounds: int, kernels: Library) -> Iterator[dict[str, Any]]:
    together: dict[tuple[str, str], list[float]] = {}
    about = {"network": "resnet18", "batch_size": batch}
    for channels, outputs, size, stride, times in LAYERS:
        taken = interleaved(layer_ways(channels, outputs, size, stride, batch, kernels), rounds)
        name = f"{channels} to {outputs}, {size} px, stride {stride}"
        yield from _rows({**about, "layer": name, "times": times}, taken, kernels.instructions)
        for way, seconds in taken.items():
            before = together.get(way, [0.0] * rounds)
            together[way] = [a + times * b for a, b in zip(before, seconds, strict=True)]
    yield from _rows({**about, "layer": ALL_LAYERS}, together, kernels.instructions)


def _rows(
    about: dict[str, Any], taken: dict[tuple[str, str], list[float]], instructions: str
) -> Iterator[dict[str, Any]]:
    unit = next(seconds for (way, _), seconds in taken.items() if way == UNIT)
    for (way, bits), seconds in taken.items():
        ratios = [a / b for a, b in zip(unit, seconds, strict=True)]
        row = {"kind": "inference", **about, "way": way, "bits": bits, "dtype": way.partition(",")[0]}
        if way == "integers":
            row["instructions"] = instructions
        yield {
            **row,
            "seconds": statistics.median(seconds),
            "spread": spread(seconds),
            "images_per_second": about["batch_size"] / statistics.median(seconds),
            "speedup": statistics.median(ratios),
            "speedup_low": min(ratios),
            "speedup_high": max(ratios),
        }


def layer_ways(channels: int, outputs: int, size: int, stride: int, batch: int, kernels: Library) -> Ways:
    """Return what computes one 3x3 convolution with padding 1, of random weights and activations."""
    generator = torch.Generator().manual_seed(0)
    codes = {
        bits: torch.randint(
            0, 2 ** int(bits), (outputs, channels, 3, 3), generator=generator, dtype=torch.uint8
        )
        for bits in ("1", "2")
    }
    y = torch.rand(batch, size, size, channels, generator=generator) * 2.0 - 0.5
    x = (y >= 0.5).float().permute(0, 3, 1, 2)  # channels last
    w = codes["1"].float().mul(2.0).sub(1.0).contiguous(memory_format=torch.channels_last)
    ways: Ways = {(UNIT, "1/1"): lambda: F.conv2d(x, w, None, stride, 1)}
    ways["int8, PyTorch", "8/8"] = _pytorch_int8(x, w, stride)
    if (run := _onnxruntime_int8(x, w, stride)) is not None:
        ways["int8, onnxruntime", "8/8"] = run
    for bits in BITS:
        w_levels, x_levels = _LEVELS[bits[0]][0], torch.tensor(_LEVELS[bits[2]][1])
        terms = weight_terms(Levels(codes[bits[0]], torch.tensor(w_levels).reshape(-1, 1, 1, 1, 1)))
        numbers = integers_of(x_levels[:, None])
        assert numbers is not None and not isinstance(terms, str)
        halfway = (x_levels[1:] + x_levels[:-1])[:, None] / 2.0
        pack = Bits(numbers.numbers, halfway, None, 1, channels)
        window = Window((3, 3), (stride, stride), (1, 1))
        product = Product(terms, window, 1, pack.lowest, pack.factors, float(numbers.step))
        ways["integers", bits] = _counted(pack, product, y, kernels)
    wanted = ways[UNIT, "1/1"]()
    found = ways["integers", "1/1"]().permute(0, 3, 1, 2)  # type: ignore[attr-defined]
    if not torch.equal(wanted, found):  # type: ignore[arg-type]
        raise AssertionError("the sums on integers are not those of float32")
    return ways


def _counted(pack: Bits, product: Product, y: Tensor, kernels: Library) -> Callable[[], Tensor]:
    """Return the convolution on integers of real-valued images ``y`` (B, H, W, C)."""
    rows, size = y.flatten(0, 2), (y.shape[1], y.shape[2])

    def run() -> Tensor:
        found, sums = pack(rows, product.needs_sums, kernels)
        return product(found, sums, size, kernels)

    return run


def _pytorch_int8(x: Tensor, w: Tensor, stride: int) -> Callable[[], object]:
    with warnings.catch_warnings():  # PyTorch announces that torchao will take over
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(x, 1.0, 0, torch.quint8)
        kernel = torch.quantize_per_tensor(w, 1.0, 0, torch.qint8)
    packed = torch.ops.quantized.conv2d_prepack(kernel, None, [stride] * 2, [1, 1], [1, 1], 1)
    return lambda: torch.ops.quantized.conv2d(quantized, packed, 32.0, 128)


def _onnxruntime_int8(x: Tensor, w: Tensor, stride: int) -> Callable[[], object] | None:
    """Return onnxruntime's int8 convolution; None where it is not installed."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
    except ImportError:
        return None
    helper, kinds = onnx.helper, onnx.TensorProto
    window: dict[str, Any] = {"strides": [stride, stride], "pads": [1, 1, 1, 1]}
    constants = {
        "w": w.contiguous().numpy().astype(np.int8),
        "s": np.float32(1.0),
        "t": np.float32(32.0),
        "a": np.uint8(0),
        "z": np.int8(0),
    }
    graph = helper.make_graph(
        [helper.make_node("QLinearConv", ["x", "s", "a", "w", "s", "z", "t", "a"], ["y"], **window)],
        "layer",
        [helper.make_tensor_value_info("x", kinds.UINT8, tuple(x.shape))],
        [helper.make_tensor_value_info("y", kinds.UINT8, None)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    run, codes = _session(model.SerializeToString()), x.contiguous().numpy().astype(np.uint8)
    return lambda: run(None, {"x": codes})


def _session(model: bytes) -> Callable[[None, dict[str, np.ndarray]], list[np.ndarray]]:
    """Return onnxruntime's run of a model, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run


def network_ways(name: str, batch: int, folder: Path) -> Ways:
    """Return what computes one network on random images: full precision, its int8, and low precision."""
    full, images = _network(name, "full_precision", "32/32", batch)
    ways: Ways = {(UNIT, "32/32"): lambda: full(images)}
    int8 = _int8_network(full, images, folder)
    if int8 is not None:
        ways["int8, onnxruntime", "8/8"] = lambda: int8(images)
    for bits in BITS:
        plain, _ = _network(name, "dorefa", bits, batch)
        made = integer_network(plain)
        if not any(run.arithmetic == "integers" for run in layer_runs(made)):
            raise InputError(f"bench speed: no layer of {name} at {bits} bits runs on integers")
        ways["float32 of low precision, PyTorch", bits] = partial(plain, images)
        ways["integers", bits] = partial(made, images)
    return ways


def _network(name: str, quantizer: str, bits: str, batch: int) -> tuple[fx.GraphModule, Tensor]:
    """Return the plain network, with the weights that a training begins with, and random images."""
    config = make_config(
        {
            "dataset": "digits",
            "network": name,
            "quantizer": quantizer,
            "bits": bits,
            "width": 1.0,
            "epochs": 1,
            "batch_size": 32,
        }
    )
    network = build(config, num_classes=10, clock=Clock(0))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = network.input_size
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, size, size, generator=generator)
    return plain_network(network), images.contiguous(memory_format=torch.channels_last)


def _int8_network(plain: fx.GraphModule, images: Tensor, folder: Path) -> Callable[[Tensor], Tensor] | None:
    """Return the network quantized to 8 bits by onnxruntime's own tool; None where it is not installed.

    Weights have a scale for each channel; the ranges of activations are those of ``images``.
    """
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError:
        return None

    class Once(CalibrationDataReader):
        """The images, once."""

        def __init__(self) -> None:
            self.left = [{"images": images.contiguous().numpy()}]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    real, ready, made = (folder / f"{name}.onnx" for name in ("real", "ready", "int8"))
    try:
        write_onnx(real, plain)
    except InputError:  # onnx or onnxscript is not installed
        return None
    kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    logging.disable(logging.WARNING)  # a line for each batch norm, which has no channel to scale
    try:
        quant_pre_process(str(real), str(ready), skip_symbolic_shape=True)
        quantize_static(str(ready), str(made), Once(), per_channel=True, **kinds)
    finally:
        logging.disable(logging.NOTSET)
    run = _session(made.read_bytes())
    return lambda images: torch.from_numpy(run(None, {"images": images.contiguous().numpy()})[0])


def interleaved(ways: Ways, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Return the processor's seconds of each way, one value a round, after a round that does not count."""
    repeats = {}
    for name, run in ways.items():
        run()
        repeats[name] = max(1, int(_SHORTEST / max(_seconds(run, 1), 1e-6)))
    taken = [{name: _seconds(run, repeats[name]) for name, run in ways.items()} for _ in range(rounds)]
    return {name: [one[name] for one in taken] for name in ways}


def _seconds(run: Callable[[], object], repeats: int) -> float:
    begin = time.process_time()
    for _ in range(repeats):
        run()
    return (time.process_time() - begin) / repeats


def text(row: dict[str, Any]) -> str:
    """Return a row in a line."""
    what = f"{row['network']}, {row['layer'] or 'whole'}, batch {row['batch_size']}"
    way = f"{row['way']} {row['bits']}"
    return (
        f"{what:46s} {way:40s}{1e3 * row['seconds']:9.3f} ms  ±{100 * row['spread']:3.0f} %  "
        f"{row['speedup']:6.2f} x float32 ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})"
    )

"""Measure low-bit inference on a CPU: the 3x3 convolutions of ResNet-18 at 1/1 bits, one image, one thread.

    python -m docs.tools.low_bit_inference

All ways are measured in turn in each round, so that a round's ratios share the machine's state. ``bnn-lab``
is not a dependency of the suite: it asks for older versions of PyTorch and NumPy. Where it can be imported it
is measured. ``popcount.c`` beside this file is compiled with ``cc`` where the processor counts bits in
vectors (AVX-512 VPOPCNTDQ).
"""

from __future__ import annotations

import ctypes
import functools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

# (input channels, output channels, input size, stride, how often ResNet-18 has it)
LAYERS = [
    (64, 64, 56, 1, 4),
    (64, 128, 56, 2, 1),
    (128, 128, 28, 1, 3),
    (128, 256, 28, 2, 1),
    (256, 256, 14, 1, 3),
    (256, 512, 14, 2, 1),
    (512, 512, 7, 1, 3),
]
ROUNDS = 15
Ways = dict[str, Callable[[], object]]


def session(
    node: onnx.NodeProto, x: np.ndarray, output: int, **constants: np.ndarray
) -> Callable[[], object]:
    """Return the run of an ONNX graph of one node that reads x and constants."""
    kinds = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("uint8"): TensorProto.UINT8}
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", kinds[x.dtype], x.shape)],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    run = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run
    return lambda: run(None, {"x": x})


def ways_of(channels: int, outputs: int, size: int, stride: int) -> Ways:
    """Return the ways to compute one convolution of activations and weights of +1 and -1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (1, channels, size, size), generator=generator).float() * 2 - 1
    w = torch.randint(0, 2, (outputs, channels, 3, 3), generator=generator).float() * 2 - 1
    last = torch.channels_last
    xl, wl = x.contiguous(memory_format=last), w.contiguous(memory_format=last)
    window = {"strides": [stride, stride], "pads": [1, 1, 1, 1]}
    codes, kernel = ((x + 1) / 2).numpy().astype(np.uint8), w.numpy().astype(np.int8)
    found: Ways = {
        "PyTorch float32": lambda: F.conv2d(xl, wl, None, stride, 1),
        "onnxruntime float32": session(
            helper.make_node("Conv", ["x", "w"], ["y"], **window), x.numpy(), TensorProto.FLOAT, w=w.numpy()
        ),
        "onnxruntime int8": session(
            helper.make_node("QLinearConv", ["x", "s", "a", "w", "s", "z", "t", "a"], ["y"], **window),
            codes,
            TensorProto.UINT8,
            w=kernel,
            s=np.float32(1.0),
            t=np.float32(32.0),
            a=np.uint8(0),
            z=np.int8(0),
        ),
    }
    found |= pytorch_int8(xl, wl, stride)
    found |= packed(x, w, stride)
    found |= counted(xl, w, stride)
    return found


def pytorch_int8(x: torch.Tensor, w: torch.Tensor, stride: int) -> Ways:
    """Return PyTorch's own int8 convolution."""
    qx = torch.quantize_per_tensor(x, 1.0, 128, torch.quint8)
    qw = torch.quantize_per_tensor(w, 1.0, 0, torch.qint8)
    weights = torch.ops.quantized.conv2d_prepack(qw, None, [stride] * 2, [1, 1], [1, 1], 1)
    return {"PyTorch int8": lambda: torch.ops.quantized.conv2d(qx, weights, 32.0, 128)}


def packed(x: torch.Tensor, w: torch.Tensor, stride: int) -> Ways:
    """Return bnn-lab's product of packed signs: alone, and with the packing of the activations before it."""
    try:
        from bnn.kernels import packed as lab
    except ImportError:
        return {}
    lab.set_num_threads(1)
    weights, count = lab.pack_binary_pm1(w.flatten(1).numpy())

    def patches() -> np.ndarray:
        bits = F.pad(x, (1, 1, 1, 1)).numpy() <= 0
        view = np.lib.stride_tricks.sliding_window_view(bits, (3, 3), axis=(2, 3))[0, :, ::stride, ::stride]
        return lab.pack_bits_u64(view.transpose(1, 2, 0, 3, 4).reshape(-1, count))

    ready = patches()
    product = lab.binary_gemm_native_prepacked(ready, weights, count)
    padded = F.conv2d(F.pad(x, (1, 1, 1, 1), value=-1.0), w, None, stride)  # the kernel has no zeros
    assert product is not None and np.array_equal(product.T, padded[0].flatten(1).numpy())
    return {
        "bnn-lab, product alone": lambda: lab.binary_gemm_native_prepacked(ready, weights, count),
        "bnn-lab, packing included": lambda: lab.binary_gemm_native_prepacked(patches(), weights, count),
    }


@functools.cache
def kernel() -> ctypes.CDLL | None:
    """Return ``popcount.c`` compiled for this processor; None where the processor lacks the instructions."""
    cpu = Path("/proc/cpuinfo")
    if not cpu.exists() or "avx512_vpopcntdq" not in cpu.read_text():
        return None
    file = Path(tempfile.mkdtemp()) / "popcount.so"
    source = Path(__file__).with_name("popcount.c")
    subprocess.run(["cc", "-O3", "-march=native", "-shared", "-fPIC", source, "-o", file], check=True)
    return ctypes.CDLL(str(file))


def counted(x: torch.Tensor, w: torch.Tensor, stride: int) -> Ways:
    """Return ``popcount.c``, the packing of the activations included, checked against PyTorch's float32."""
    library = kernel()
    if library is None:
        return {}
    outputs, channels = w.shape[:2]
    words, size = channels // 64, x.shape[2]
    result = (size - 1) // stride + 1
    rows = x.permute(0, 2, 3, 1).contiguous().numpy()
    digits = (w.numpy() < 0).reshape(outputs, words, 64, 3, 3).transpose(3, 4, 1, 0, 2)
    weights = np.packbits(digits.copy(), axis=-1, bitorder="little").view(np.uint64).copy()
    bits = np.empty(size * size * words, np.uint64)
    y = np.empty((result, result, outputs), np.float32)
    at_x, at_w, at_bits, at_y = (ctypes.c_void_p(array.ctypes.data) for array in (rows, weights, bits, y))

    def run() -> np.ndarray:
        library.pack(at_x, size * size, channels, at_bits)
        library.convolve(at_bits, at_w, at_y, size, words, outputs, stride, result)
        return (rows, weights, bits, y)[3]

    assert np.array_equal(run(), F.conv2d(x, w, None, stride, 1)[0].permute(1, 2, 0).numpy())
    return {"popcount.c, packing included": run}


def seconds(run: Callable[[], object]) -> float:
    """Return the shortest of three runs."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> None:
    """Print a table: the time of all layers, and the ratio of PyTorch's float32 to it, median and range."""
    torch.set_num_threads(1)
    layers = [(ways_of(*shape), times) for *shape, times in LAYERS]
    with torch.no_grad():
        rounds = [
            {name: sum(seconds(ways[name]) * times for ways, times in layers) for name in layers[0][0]}
            for _ in range(ROUNDS + 1)
        ][1:]
    print("| way | ms | times as fast as PyTorch float32 |\n|---|---:|---:|")
    for name in rounds[0]:
        ratios = sorted(one["PyTorch float32"] / one[name] for one in rounds)
        middle = 1000.0 * statistics.median(one[name] for one in rounds)
        text = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {name} | {middle:.1f} | {text} |")


if __name__ == "__main__":
    main()

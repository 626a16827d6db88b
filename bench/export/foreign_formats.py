"""Files that other programs run: ONNX in standard operators, and QONNX.

The writers take a plain network (``bench.export.plain``) and read images (B, 3, S, S) float32 called
"images"; the logits (B, classes) are called "logits". The batch size is free.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from bench.errors import InputError
from bench.export.modules import Activation
from bench.export.plain import inference_layers
from bench.export.pt2 import quiet, translating
from bench.export.seal import opened, sealed
from bench.quantizers.deployed import Levels
from bench.records.files import write_atomic
from bench.text import clean

OPSET = 18
QONNX = "qonnx.custom_op.general"
Runner = Callable[[Tensor], Tensor]
# Rewritings of onnxscript that change no number.
_EXACT_RULES = (
    "materialize_reshape_shape",
    "remove_optional_bias_from_conv",
    "successive_clip",
    "successive_clip_relu",
    "successive_relu",
    "successive_relu_clip",
)


def write_onnx(path: Path, plain: fx.GraphModule) -> None:
    """Write ``plain`` in standard operators; raises ``InputError`` without onnx or onnxscript."""
    _needs("onnx", "onnxscript")
    _export_onnx(path, plain, plain.input_size, "onnx")  # type: ignore[arg-type]


def write_qonnx(path: Path, plain: fx.GraphModule) -> list[str]:
    """Write ``plain`` with QONNX's nodes Quant and BipolarQuant before weights and behind activations.

    Returns the layers whose weights have no such form (two scales a layer, unscaled levels): their weights
    are float32 numbers without a node. Raises ``InputError`` as ``write_onnx`` does.
    """
    _needs("onnx", "onnxscript")
    marked = copy.deepcopy(plain)
    for name, module in list(marked.named_modules()):
        if (
            isinstance(module, Activation)
            and module.map.quantizes
            and module.map.form not in ("table", "residual")
        ):
            marked.set_submodule(name, _QonnxActivation(module))
    without = []
    for name, layer in inference_layers(marked):
        if (levels := layer.levels) is None:
            continue
        node = _QonnxWeight.of(levels)
        if node is None:
            without.append(name)
        else:
            parametrize.register_parametrization(layer, "weight", node, unsafe=True)
    _export_onnx(path, marked, plain.input_size, "qonnx")  # type: ignore[arg-type]
    return without


def run_onnx(path: Path) -> Runner:
    """Return the network in an ONNX file as a function of images; onnxruntime computes, on one thread.

    Raises ``InputError`` for a file that is damaged, edited, of a newer version, or no network.
    """
    _needs("onnx", "onnxruntime")
    import onnxruntime

    data = opened(path, "onnx")

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # of onnxruntime: one class an error
        raise InputError(f"{path}: onnxruntime cannot read it ({clean(error, 200)})") from None

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.cpu().contiguous().numpy()})[0])

    return run


def run_qonnx(path: Path) -> Runner:
    """Return a QONNX file's network as a function of images, run by qonnx; raises as ``run_onnx``."""
    _needs("onnx", "qonnx")
    import onnx
    from google.protobuf.message import DecodeError
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    try:
        stored = onnx.load_model_from_string(opened(path, "qonnx"))
    except DecodeError as error:
        raise InputError(f"{path}: onnx cannot read it ({clean(error, 200)})") from None

    @functools.cache
    def of_shape(*shape: int) -> ModelWrapper:
        """Return the model for images of this shape: the executor wants shapes without variables."""
        model = ModelWrapper(copy.deepcopy(stored))
        model.set_tensor_shape("images", list(shape))
        return model.transform(InferShapes())

    def run(images: Tensor) -> Tensor:
        given = {"images": images.cpu().contiguous().numpy()}
        return torch.from_numpy(execute_onnx(of_shape(*images.shape), given)["logits"])

    return run


class _Mean(nn.Module):
    """``AdaptiveAvgPool2d(1)`` as one node: (B, C, H, W) -> (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class _QonnxActivation(nn.Module):
    """An activation map as a node of QONNX; what comes before the rounding stays in standard operators."""

    def __init__(self, like: Activation) -> None:
        super().__init__()
        self.like = like

    def forward(self, x: Tensor) -> Tensor:
        like, map = self.like, self.like.map
        if like.magnitude_first:
            x = torch.clamp(torch.abs(x), max=1.0)
        n, one = float((1 << map.bits) - 1), torch.ones(())
        mode = "HALF_UP" if map.half_up else "ROUND"
        if map.form in ("sign", "rsign"):
            return _bipolar(x if map.form == "sign" else like.before_sign(x), torch.ones(1))
        if map.form == "fixed":
            return _quant(x, one / (1 << (map.bits - 1)), map.bits, signed=1, narrow=0, mode=mode)
        if map.form == "round":
            return _quant(torch.clamp(x, 0.0, 1.0), one / n, map.bits, signed=0, narrow=0, mode=mode)
        scale = like.scale if map.form == "steps" else like.scale / n
        return _quant(x, scale, map.bits, signed=0, narrow=0, mode=mode)


class _QonnxWeight(nn.Module):
    """Quantized weights as a node of QONNX that reads them; every zero point is 0."""

    scale: Tensor

    def __init__(self, scale: Tensor, bits: int, *, signed: bool, narrow: bool) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.bits, self.signed, self.narrow = bits, signed, narrow

    @classmethod
    def of(cls, levels: Levels) -> _QonnxWeight | None:
        """Return the node for ``levels``; None where they are not integers times one scale.

        Two levels about 0 are one bit. 2^k levels about 0, as DoReFa-Net's, are odd integers times half a
        step, which take k + 1 bits.
        """
        values = levels.values
        count, step = len(values), (values[-1] - values[0]) / (len(values) - 1)
        if bool((step <= 0).any()):
            return None
        first = values[0] / step
        doubled = int((2.0 * first).round().flatten()[0])
        steps = (torch.arange(count) + doubled / 2).reshape(-1, *[1] * (values.dim() - 1))
        if not bool(((values - steps * step).abs() <= 1e-6 * values.abs().amax(0)).all()):
            return None
        if doubled % 2 == 0:
            lowest, scale = doubled // 2, step
            highest = lowest + count - 1
        else:
            lowest, highest, scale = doubled, doubled + 2 * (count - 1), step / 2.0
        if (lowest, highest) == (-1, 1) and count == 2:
            return cls(values[-1].clone(), 1, signed=True, narrow=False)
        if lowest >= 0:
            return cls(scale, highest.bit_length(), signed=False, narrow=False)
        bits = 1 + max(1, highest.bit_length(), (-lowest - 1).bit_length())
        return cls(scale, bits, signed=True, narrow=lowest > -(1 << (bits - 1)))

    def forward(self, weight: Tensor) -> Tensor:
        if self.bits == 1 and self.signed:
            return _bipolar(weight, self.scale)
        return _quant(
            weight, self.scale, self.bits, signed=int(self.signed), narrow=int(self.narrow), mode="ROUND"
        )


def _bipolar(x: Tensor, scale: Tensor) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{QONNX}::BipolarQuant", (x, scale), dtype=torch.float32, shape=x.shape, version=1
    )


def _quant(x: Tensor, scale: Tensor, bits: int, *, signed: int, narrow: int, mode: str) -> Tensor:
    return torch.onnx.ops.symbolic(
        f"{QONNX}::Quant",
        (x, scale, torch.zeros(()), torch.tensor(float(bits))),
        {"signed": signed, "narrow": narrow, "rounding_mode": mode},
        dtype=torch.float32,
        shape=x.shape,
        version=1,
    )


def _export_onnx(path: Path, module: nn.Module, size: int, form: str) -> None:
    """Write ``module``; batch norm stays a node of its own, so that weights keep their levels.

    The exporter's own optimizer would multiply it into the weights in float32, for onnxruntime to do the
    same once more. What it notes of source files is left out.
    """
    module = copy.deepcopy(module)
    for name, pooling in list(module.named_modules()):
        if isinstance(pooling, nn.AdaptiveAvgPool2d) and pooling.output_size in (1, (1, 1)):
            module.set_submodule(name, _Mean())
    with torch.no_grad(), quiet(), translating(form):
        program = torch.onnx.export(
            module,
            (torch.zeros(2, 3, size, size),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}},
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common

    optimizer.fold_constants(program.model)
    exact = [getattr(common, f"{name}_rule") for name in _EXACT_RULES]
    rewriter.rewrite(program.model, exact)
    optimizer.remove_unused_nodes(program.model)
    model = program.model_proto
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
    write_atomic(path, sealed(form, model.SerializeToString()), "--out")


def _needs(*packages: str) -> None:
    """Raise ``InputError`` unless ``packages`` can be imported."""
    for package in packages:
        try:
            import_module(package)
        except ImportError:
            raise InputError(
                f"{package} is not installed; this format needs it: pip install 'progressive-bench[export]'"
            ) from None

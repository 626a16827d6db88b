"""A network as a program of ``torch.export`` (.pt2): written without pickles, read without executing any.

``torch.export.load`` unpickles parts of an archive, loads compiled libraries from it, and evaluates texts in
it. The files of this module have nothing of that kind, and ``run_pt2`` hands PyTorch no file that has.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from bench.errors import InputError
from bench.export.plain import inference_layers
from bench.export.seal import opened, sealed
from bench.records.files import write_atomic
from bench.text import clean

_FILES = re.compile(
    r"archive/(models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt"
    r"|archive_format|archive_version|\.data/version|byteorder|\.data/serialization_id)"
)
# What sizes are written with: PyTorch gives these texts to SymPy, which evaluates them.
_QUOTED = re.compile(r"'[A-Za-z]\w*'")
_WORD = re.compile(r"[A-Za-z_]\w*")
_WORDS = {"Symbol", "Integer", "Add", "Mul", "Pow", "FloorDiv", "Mod", "positive", "integer", "True"}


def write_pt2(path: Path, plain: fx.GraphModule) -> None:
    """Write ``plain`` to ``path`` as ``torch.export`` saves it, with a seal.

    The program reads images (B, 3, S, S) float32 of any batch size and returns logits (B, classes). Codes
    of the weights, sample images and the paths of source files are left out.
    """
    bare = copy.deepcopy(plain)
    for _, layer in inference_layers(bare):
        layer.codes = layer.values = None
    images = torch.zeros(2, 3, plain.input_size, plain.input_size)  # type: ignore[call-overload]
    with torch.no_grad(), quiet(), translating("pt2"):
        program = torch.export.export(
            bare, (images,), dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}}
        )
        for node in program.graph.nodes:
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
                node.meta.pop(key, None)
        program.example_inputs = None
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    write_atomic(path, sealed("pt2", buffer.getvalue()), "--out")


def run_pt2(path: Path) -> nn.Module:
    """Return the network in a pt2 file as a module that maps images to logits, in evaluation mode.

    Its ``input_size`` is the size of the images in pixels.
    Raises ``InputError`` for a file that is damaged, edited, of a newer version, or holds anything that
    reading it would execute.
    """
    data = opened(path, "pt2")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        if (found := _executable(parts)) is not None:
            raise InputError(f"{path}: {found}: to read it could execute code, so it is not read")
        examined = io.BytesIO()  # exactly what was examined, whatever else the bytes of the file could mean
        with zipfile.ZipFile(examined, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)
        examined.seek(0)
        with quiet():
            program = torch.export.load(examined)
            module = program.module()
        images = next(n for n in program.graph.nodes if n.name == program.graph_signature.user_inputs[0])
        module.input_size = int(images.meta["val"].shape[-1])  # type: ignore[assignment]
        for name in ("train", "eval"):  # torch lets both raise; the program is that of evaluation in any mode
            vars(module).pop(name, None)
        return module.eval()
    except InputError:
        raise
    except Exception as error:  # whatever torch makes of an archive that holds no program
        raise InputError(f"{path}: torch.export cannot read it ({clean(error, 200)})") from None


def _executable(parts: dict[str, bytes]) -> str | None:
    """Return what in an archive PyTorch would execute, None where there is nothing of that kind."""
    for name, content in parts.items():
        if not _FILES.fullmatch(name):
            return f"it has a part {clean(name, 60)!r}, which `bench export` never writes"
        if name.endswith("/model.pt") and content:
            return "it has pickled sample images"
    for name in (name for name in parts if name.endswith(".json")):
        for key, value in _entries(json.loads(parts[name])):
            if key == "use_pickle" and value is not False:
                return "it has pickled tensors"
            if key == "path_name" and not re.fullmatch(r"(weight|tensor)_\d+", str(value)):
                return f"it has a constant {clean(value, 60)!r} that is no tensor"
            if key == "guards_code" and value:
                return "it has code of guards"
            if key == "expr_str" and not set(_WORD.findall(_QUOTED.sub("", str(value)))) <= _WORDS:
                return f"it has the text {clean(value, 60)!r} in the place of a size"
    return None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of a JSON document with its value, at any depth."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key, inner
        yield from _entries(inner)
    for inner in value if isinstance(value, list) else ():
        yield from _entries(inner)


@contextlib.contextmanager
def translating(form: str) -> Iterator[None]:
    """Turn what PyTorch's exporters raise into one message, of an operation that they do not know say."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # a class of its own at every step of the exporter
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(
            f"--format {form}: PyTorch's exporter cannot write this network ({clean(cause, 200)}); "
            "safetensors and packed hold any"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters' remarks about their own insides off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

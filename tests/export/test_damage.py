"""A file that is cut, edited, of a newer version or malicious: one message, and nothing of it is used."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import bench
from bench.errors import InputError
from bench.export import foreign_formats as foreign
from bench.export.files import checksum, read_file, write_file
from bench.export.plain import plain_network
from bench.export.pt2 import run_pt2, write_pt2
from bench.export.seal import opened, sealed
from tests.export.networks_for_export import trained
from tests.revisions import raise_revision

READERS: dict[str, Callable[[Path], object]] = {
    "safetensors": read_file,
    "packed": read_file,
    "pt2": run_pt2,
    "onnx": foreign.run_onnx,
    "qonnx": foreign.run_qonnx,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the bytes of a small network's file in each format."""
    pytest.importorskip("onnxscript", reason="needs progressive-bench[export]")
    pytest.importorskip("qonnx", reason="needs progressive-bench[export]")
    folder = tmp_path_factory.mktemp("whole")
    network, _, config = trained(width=0.0625, bits="1/2")
    for form in ("safetensors", "packed"):
        write_file(folder / form, plain_network(network), config, 10, packed=form == "packed")
    plain = plain_network(network)
    write_pt2(folder / "pt2", plain)
    foreign.write_onnx(folder / "onnx", plain)
    foreign.write_qonnx(folder / "qonnx", plain)
    return {form: (folder / form).read_bytes() for form in READERS}


def refused(file: Path, form: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        READERS[form](file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


MANY = 4000 if os.environ.get("BENCH_EXPORT_CASES") == "all" else 800  # `make soak` tries 4,000


@pytest.fixture(params=[pytest.param(40, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)])
def places(request, form, whole):
    """Return places in a file: evenly spread, and all at its beginning and in its seal."""
    length = len(whole[form])
    spread = range(0, length, max(1, length // request.param))
    return sorted({*spread, *range(20), *range(length - 160, length)})


@pytest.mark.parametrize("form", READERS)
def test_cut_at_any_length(form, whole, places, tmp_path):
    file = tmp_path / f"x.{form}"
    for length in places:
        file.write_bytes(whole[form][:length])
        refused(file, form, "truncated")


@pytest.mark.parametrize("form", READERS)
def test_a_bit_changed_in_any_byte(form, whole, places, tmp_path):
    file, data = tmp_path / f"x.{form}", bytearray(whole[form])
    for place in places:
        data[place] ^= 1 << place % 8
        file.write_bytes(data)
        refused(file, form, "damaged|truncated|newer|no network|none that was ever|format version")
        data[place] ^= 1 << place % 8


@pytest.mark.parametrize("form", READERS)
def test_bytes_that_were_added(form, whole, tmp_path):
    for data in (whole[form] + b"\0", whole[form] * 2, b"\0" + whole[form]):
        (tmp_path / "x").write_bytes(data)
        refused(tmp_path / "x", form, "damaged|truncated")


@pytest.mark.parametrize("form", READERS)
def test_a_newer_version(form, whole, tmp_path):
    pattern = rb'("version":")1"' if form in ("safetensors", "packed") else rb"(version )1 sha256"
    assert len(re.findall(pattern, whole[form])) == 1
    newer = re.sub(pattern, lambda found: found.group().replace(b"1", b"2"), whole[form])
    (tmp_path / "x").write_bytes(newer)
    refused(tmp_path / "x", form, "format version '2' was written by a newer version; this one reads 1")


@pytest.mark.parametrize("form", READERS)
def test_other_files(form, whole, tmp_path):
    file = tmp_path / "x"
    refused(file, form, "no such file")
    file.write_bytes(pickle.dumps(print))
    refused(file, form, "truncated")
    file.write_bytes(whole["onnx" if form != "onnx" else "qonnx"])
    refused(file, form, f"truncated or damaged|is a file of the format q?onnx, not {form}")
    file.unlink()
    file.mkdir()
    refused(file, form, "cannot be read")


def test_other_safetensors(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "packed", "no network that `bench export` wrote")


def test_tensors_of_another_network_with_a_right_checksum(whole, tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(whole["packed"])
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    config = json.loads(metadata["config"])
    for change in ({"width": 0.25}, {"bits": "1/8"}, {"network": {"kind": "resnet20"}}):
        other = {**metadata, "config": json.dumps({**config, **change})}
        save_file(tensors, file, {**other, "sha256": checksum(other, tensors)})
        refused(file, "packed", "does not fit the network|not one of this version")


def test_another_revision_computes_other_numbers(whole, tmp_path, monkeypatch):
    file = tmp_path / "x.safetensors"
    file.write_bytes(whole["packed"])
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    assert json.loads(metadata["revisions"]) == {"network": 1, "quantizer": 1}
    for text, message in (
        ('{"quantizer": 2}', "revision 2 of the quantizer 'dorefa', which has revision 1 here"),
        ('{"network": 7}', "revision 7 of the network 'svhn_convnet', which has revision 1 here"),
        ("[1]", "not one of this version"),
        ("3", "not one of this version"),
    ):
        other = {**metadata, "revisions": text}
        save_file(tensors, file, {**other, "sha256": checksum(other, tensors)})
        refused(file, "packed", message)
    earlier = {key: value for key, value in metadata.items() if key not in ("revisions", "sha256")}
    save_file(tensors, file, {**earlier, "sha256": checksum(earlier, tensors)})
    read_file(file)  # a file without revisions is of the first ones
    raise_revision(monkeypatch, "dorefa")
    refused(file, "packed", "revision 1 of the quantizer 'dorefa', which has revision 2 here")


class Payload:
    """Pickled: a program that creates a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.witness,)


def parts_of(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(parts: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return made.getvalue()


def with_payload(parts: dict[str, bytes], where: str, witness: Path) -> dict[str, bytes]:
    """Return the parts of an archive, changed so that ``torch.export.load`` meets code at one place."""
    stored = io.BytesIO()
    torch.save({"x": Payload(witness)}, stored)
    code = f"__import__('pathlib').Path({str(witness)!r}).touch()"
    constants = "archive/data/constants/model_constants_config.json"
    weights = json.loads(parts["archive/data/weights/model_weights_config.json"])
    first = next(iter(weights["config"].values()))
    match where:
        case "sample images":
            return {**parts, "archive/data/sample_inputs/model.pt": stored.getvalue()}
        case "pickled weight":
            first["use_pickle"] = True
            changed = {
                "archive/data/weights/model_weights_config.json": json.dumps(weights).encode(),
                f"archive/data/weights/{first['path_name']}": stored.getvalue(),
            }
        case "constant object":
            entry = {**first, "path_name": "opaque_obj_0", "use_pickle": True}
            changed = {
                constants: json.dumps({"config": {"x": entry}}).encode(),
                "archive/data/constants/opaque_obj_0": pickle.dumps(Payload(witness)),
            }
        case "size":
            model = parts["archive/models/model.json"].decode()
            assert "Symbol('s" in model
            text = re.sub(r"Symbol\('s\d+', positive=True, integer=True\)", lambda _: code, model, count=1)
            changed = {"archive/models/model.json": text.encode()}
        case "guards":
            model_json = json.loads(parts["archive/models/model.json"])
            changed = {
                "archive/models/model.json": json.dumps({**model_json, "guards_code": [code]}).encode()
            }
        case _:
            changed = {"archive/data/aotinductor/model/x.so": b"\x7fELF"}
    return {**parts, **changed}


@pytest.mark.parametrize(
    "where", ["sample images", "pickled weight", "constant object", "size", "guards", "compiled library"]
)
def test_code_in_a_pt2_archive_with_a_right_seal_is_not_run(where, whole, tmp_path):
    witness, file = tmp_path / "witness", tmp_path / "x.pt2"
    data = archive_of(with_payload(parts_of(whole["pt2"]), where, witness))
    file.write_bytes(sealed("pt2", data))
    refused(file, "pt2", "to read it could execute code, so it is not read")
    assert not witness.exists()
    if where in ("sample images", "pickled weight", "constant object", "size"):  # PyTorch runs the payload
        with contextlib.suppress(Exception):  # what the payload leaves behind is no program
            torch.export.load(io.BytesIO(data)).module()
        assert witness.exists(), "the payload of this test is none"


def test_a_pt2_archive_holds_no_pickle_and_bench_load_reads_it(whole, tmp_path):
    assert not any(content for name, content in parts_of(whole["pt2"]).items() if name.endswith(".pt"))
    (tmp_path / "x.pt2").write_bytes(whole["pt2"])
    network = bench.load(tmp_path / "x.pt2")
    assert network.input_size == 40 and network(torch.zeros(1, 3, 40, 40)).shape == (1, 10)
    assert not network.training and network.eval() is network  # as any module
    with pytest.raises(InputError, match="a pt2 file has no levels"):
        bench.load(tmp_path / "x.pt2", integers=True)
    with pytest.raises(InputError, match="onnxruntime runs an ONNX file"):
        bench.load(tmp_path / "x.onnx")


@pytest.mark.parametrize("form", ["onnx", "qonnx", "pt2"])
def test_the_seal_is_the_checksum_of_all_other_bytes(form, whole, tmp_path):
    (tmp_path / "x").write_bytes(whole[form])
    data = opened(tmp_path / "x", form)
    words = f"progressive-bench network {form} version 1 sha256 ".encode()
    place = data.rindex(words)
    before = data[:place]
    if form != "pt2":  # the text is the value of an entry of the metadata, whose key stands before it
        before = data[: data.rindex(b"progressive-bench", 0, place) - 5]
    assert hashlib.sha256(before + words).hexdigest().encode() == data[place + len(words) :]

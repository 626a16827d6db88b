"""Files from strangers: nothing in them is executed, takes memory, leaves its folder or acts on a reader."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import datasets
from bench.cli.main import main
from bench.datasets import cifar, svhn
from bench.datasets.sources import PublishedFile
from bench.errors import InputError
from bench.records.store import Store
from bench.training import checkpoint
from tests.reporting.fake_records import Results

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bench"
ID = "0" * 16


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def sprung(tmp_path):
    """What a sprung trap leaves behind; fails where it is there at the end."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists(), "something in a file was executed"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# --- pickles ---


def test_the_trap_springs_where_a_pickle_is_loaded(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "proof"))).close()
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.pt.previous", "weights.pt"])
@pytest.mark.parametrize("form", ["torch", "legacy", "pickle", "nested"])
def test_a_pickle_in_a_checkpoint_is_not_executed(tmp_path, sprung, name, form):
    trap = Trap(sprung)
    state = {"schema": 1, "network": {"weight": trap}} if form == "nested" else trap
    if form == "pickle":
        (tmp_path / name).write_bytes(pickle.dumps(state))
    else:
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=form != "legacy")
    assert checkpoint.load(tmp_path / name.removesuffix(".previous"), "cpu") is None


def test_the_reader_of_checkpoints_alone_executes_nothing(tmp_path, sprung, monkeypatch):
    """Two walls: each holds without the other."""
    torch.save({"schema": 1, "network": Trap(sprung)}, tmp_path / "checkpoint.pt")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_inspect", lambda path: None)
        assert checkpoint.load(tmp_path / "checkpoint.pt", "cpu") is None
    with pytest.raises(ValueError, match=r"it asks for '_?io open'"):
        checkpoint._inspect(tmp_path / "checkpoint.pt")


def test_pickles_in_npz_and_in_published_archives_are_not_executed(tmp_path, sprung, monkeypatch):
    labels = np.arange(4) % 2
    images = np.zeros((4, 8, 8), np.uint8)
    trap = np.array([Trap(sprung)] * 4, dtype=object)
    for key in ("x_train", "y_train", "x_test", "y_test", "z"):
        parts = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels, key: trap}
        np.savez(tmp_path / "mine.npz", **parts)
        if key == "z":  # other arrays are not read at all
            assert datasets.load({"kind": "npz", "name": "mine"}, tmp_path).num_classes == 2
            continue
        with pytest.raises(InputError, match="Python objects"):
            datasets.load({"kind": "npz", "name": "mine"}, tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    data = {"data": np.zeros((4, 3072), np.uint8), "labels": Trap(sprung)}
    known = []
    for file in cifar.CIFAR10.files({}):
        (tmp_path / file.path).write_bytes(pickle.dumps(data))
        known.append(PublishedFile(file.path, hashlib.md5(pickle.dumps(data)).hexdigest()))
    with pytest.raises(InputError, match="corrupt"):
        datasets.load({"kind": "cifar10"}, tmp_path)
    monkeypatch.setattr(cifar.CIFAR10, "train", tuple(known[:-1]))
    monkeypatch.setattr(cifar.CIFAR10, "test", known[-1])
    with pytest.raises(InputError, match=r"it asks for _?io\.open"):
        datasets.load({"kind": "cifar10"}, tmp_path)


def test_no_other_reader_of_pickles_is_in_the_package():
    """``pickle.load``, ``np.load``, ``pd.read_pickle``, ``joblib``, ``eval``: only those tested here."""
    risky = re.compile(
        r"\bpickle\.(loads?|Unpickler)\b|\bnp\.load\b|read_pickle|joblib|\bmarshal\b|\bshelve\b|\bdill\b"
        r"|weights_only=False|allow_pickle=True|yaml\.load|(?<![.\w])(eval|exec)\(|__import__|os\.system|shell=True"
        r"|torch\.load\("
    )
    found = {
        (path.relative_to(PACKAGE).as_posix(), match[0])
        for path in PACKAGE.rglob("*.py")
        for match in risky.finditer(path.read_text())
    }
    allowed = {("datasets/cifar.py", "pickle.Unpickler"), ("training/checkpoint.py", "torch.load(")}
    assert found <= allowed, found - allowed


def test_experiment_files_cannot_ask_for_code(tmp_path, capsys, monkeypatch):
    (tmp_path / "evil.py").write_text("open('sprung', 'w')\n\ndef factory(*_, **__): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    text = '[defaults]\ndataset = "digits"\nnetwork = "NETWORK"\n[[arms]]\nname = "a"\n'
    for network in ("python:evil.factory", "evil", "../evil", "python:os.system"):
        (tmp_path / "some.toml").write_text(text.replace("NETWORK", network))
        for command in ("show", "status", "run"):
            assert main([command, "some.toml", "--results", "r", "--data", "d"]) == 2
        assert "network" in capsys.readouterr().err
    assert not (tmp_path / "sprung").exists() and "evil" not in sys.modules


# --- memory ---


def npy(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def bomb(path: Path, size: int) -> None:
    """Write an npz of honest headers whose images unpack to ``size`` bytes from a thousandth of it."""
    count = size // (1024 * 1024 * 3)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("train", "test"):
            with archive.open(f"x_{part}.npy", "w", force_zip64=True) as stream:
                stream.write(npy(f"({count}, 1024, 1024, 3)"))
                for _ in range(count):
                    stream.write(bytes(1024 * 1024 * 3))
            archive.writestr(f"y_{part}.npy", npy(f"({count},)") + bytes(i % 2 for i in range(count)))


def liar(path: Path) -> None:
    """Write an npz whose directory says that its images are 24 GB, with nothing behind it."""
    with zipfile.ZipFile(path, "w") as archive:
        for part in ("train", "test"):
            archive.writestr(f"x_{part}.npy", npy("(8000, 1024, 1024, 3)"))
            archive.writestr(f"y_{part}.npy", npy("(8000,)") + bytes(8000))
        for info in archive.filelist:
            if info.filename.startswith("x_"):
                info.file_size = info.file_size + 8000 * 1024 * 1024 * 3


MEASURED = """
import resource, sys, time
from pathlib import Path
import numpy, torch
from bench import datasets
from bench.errors import InputError
from bench.training import checkpoint

def peak():
    # VmHWM, not ru_maxrss: the latter begins with what the process that forked this one had
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) // 1024

def used():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) * 1024

what, path = sys.argv[1], Path(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (used() + (512 << 20),) * 2)
before = peak()
try:
    if what == "npz":
        datasets.load({"kind": "npz", "name": path.stem}, path.parent)
    else:
        assert checkpoint.load(path, "cpu") is None
        raise InputError("passed over")
except InputError as error:
    print(f"refused: {error}")
print(f"{peak() - before} MB")
"""


def measured(what: str, path: Path) -> tuple[str, int]:
    """Read ``path`` in a process with 512 MB more at most; return its text and the MB."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, what, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    *said, last = result.stdout.splitlines()
    return "\n".join(said), int(last.removesuffix(" MB"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured with /proc")
@pytest.mark.parametrize("kind", ["bomb", "liar", "shape"])
def test_npz_bombs_and_absurd_shapes_take_no_memory(tmp_path, kind):
    path = tmp_path / "mine.npz"
    if kind == "bomb":
        bomb(path, 200 << 20)  # less than the machine has: only the ratio gives it away
    elif kind == "liar":
        liar(path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for part in ("train", "test"):
                archive.writestr(f"x_{part}.npy", npy("(2000000000, 1000, 1000, 3)") + bytes(64))
                archive.writestr(f"y_{part}.npy", npy("(2000000000,)") + bytes(64))
    said, megabytes = measured("npz", path)
    assert said.startswith("refused: ") and "mine.npz" in said
    assert megabytes < 64


class Greedy:
    """Unpickled by a reader that allows ``bytearray`` (torch's ``weights_only`` does), it takes 2 GB."""

    def __reduce__(self):
        return (bytearray, (2 << 30,))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="measured with /proc")
@pytest.mark.parametrize("kind", ["packed", "bytearray", "stride"])
def test_checkpoint_bombs_take_no_memory(tmp_path, kind):
    path = tmp_path / "checkpoint.pt"
    if kind == "packed":  # the same archive, its members deflated: 256 MB from 0.3 MB
        torch.save({"schema": 1, "network": torch.zeros(3)}, path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                if not name.endswith("/data/0"):
                    archive.writestr(name, content)
                    continue
                with archive.open(name, "w", force_zip64=True) as stream:
                    for _ in range(16):
                        stream.write(bytes(16 << 20))
    elif kind == "bytearray":
        torch.save({"schema": 1, "network": Greedy()}, path)
    else:
        torch.save({"schema": 2, "network": torch.zeros(1).expand(1 << 40)}, path)
    said, megabytes = measured("checkpoint", path)
    assert said == "refused: passed over" and megabytes < 64


def test_oversized_texts_are_not_read(tmp_path, capsys):
    """Sparse files of 8 GB as an experiment, a recipe, a table: their size is asked before they are read."""
    text = '[defaults]\ndataset = "digits"\nnetwork = "svhn_convnet"\n[[arms]]\nname = "a"\n'
    (tmp_path / "recipes").mkdir()
    (tmp_path / "published").mkdir()
    cases = {
        "huge.toml": ["show", "huge.toml"],
        "recipes/own.toml": ["show", "some.toml"],
        "published/mine.csv": ["report", "some.toml"],
        "published/names.toml": ["report", "some.toml"],
    }
    os.chdir(tmp_path)
    try:
        for name, (command, file) in cases.items():
            recipe = '[defaults]\nrecipe = "own"\n' if name.startswith("recipes") else "[defaults]\n"
            targets = 'targets = ["mine"]\n' if name.endswith("mine.csv") else ""
            (tmp_path / "some.toml").write_text(targets + text.replace("[defaults]\n", recipe))
            with open(name, "wb") as stream:
                stream.truncate(8 << 30)
            assert main([command, file, "--results", "results"]) == 2
            error = capsys.readouterr().err
            assert Path(name).name in error and "larger than" in error
            os.remove(name)
    finally:
        os.chdir(ROOT)


# --- names ---

NAMES = [
    "../outside",
    "../../outside",
    "/tmp/bench-outside",
    "a/../../outside",
    "..",
    ".",
    "",
    "a\x00b",
    "x" * 300,
    "é" * 150,
    "trials",
    "report",
    "CON",
    "nul.txt",
    "com1",
    ".hidden",
    ".locks",
    "-rf",
    "a\nb",
    "\u202ex",
    "~/x",
    "C:\\x",
    "\ud800",
]


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", NAMES)
def test_names_do_not_leave_the_results_folder(tmp_path, name, capsys, monkeypatch):
    """As a stem, an id, an arm, a recipe, a table, an npz: one message, and nothing outside the results."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    text = '[defaults]\ndataset = DATA\nnetwork = "svhn_convnet"\nrecipe = RECIPE\n'
    text += '[[arms]]\nname = "a"\nPUBLISHED\n'

    def file(data: str = "digits", recipe: str = "digits", published: str = "") -> str:
        values = {"DATA": data, "RECIPE": recipe}
        out = text
        for key, value in values.items():
            out = out.replace(key, json.dumps(value, ensure_ascii="\ud800" not in value))
        return out.replace(
            "PUBLISHED", f"published = {{ table = {json.dumps(published)} }}" if published else ""
        )

    def refused(argv: list[str]) -> None:
        assert main(argv) == 2, argv
        error = capsys.readouterr().err
        assert error.startswith("bench: ") and "Traceback" not in error and "\x1b" not in error

    encodable = name.isascii() or "\ud800" not in name
    good = home / "some.toml"
    good.write_text(file())
    before = everything(tmp_path)
    for command in ("show", "status", "run", "report"):  # a file of that stem
        path = home / f"{name}.toml" if "/" not in name and encodable else Path(f"{name}.toml")
        made = False
        try:
            if "/" not in name:
                path.write_text(file())
                made = True
        except (OSError, ValueError):
            pass
        if not (made and name in ("-rf",)):
            refused([command, str(path), "--results", "results"])
        if made:
            path.unlink()
    with pytest.raises(InputError):
        Store(home / "results").folder(name)
    if name not in ("CON", "nul.txt", "com1", "-rf", "~/x", "C:\\x") and "\u202e" not in name:
        with pytest.raises(InputError):
            Store(home / "results").experiment_folder(name).joinpath("index.jsonl")
    refused(["show", "some.toml", "--only", name])
    refused(["run", "some.toml", "--results", "results", "--only", name])
    refused(["verify", name, "--results", "results"])
    if encodable and name:
        for fields in ({"data": f"npz:{name}"}, {"recipe": name}, {"published": name}):
            good.write_text(file(**fields), encoding="utf-8")
            refused(
                [
                    "report" if "published" in fields else "run",
                    "some.toml",
                    "--results",
                    "results",
                    "--data",
                    "data",
                ]
            )
        good.write_text(file())
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
def test_ids_in_an_index_do_not_leave_the_results_folder(tmp_path, name, capsys):
    results = Results(tmp_path / "results")
    results.experiment("two", '[[arms]]\nname = "a"\n')
    results.trial("two", "a", [40.0, 50.0])
    root = results.write()
    secret = tmp_path / "outside"
    secret.mkdir()
    (secret / "trial.json").write_text('{"schema": 1, "id": "x", "config": {}}')
    index = root / "two" / "index.jsonl"
    for key in ("id", "baseline_id"):
        line = {"arm": "a", "baseline": "a", "grid": {"seed": 1}, "id": ID, key: name}
        index.write_text(json.dumps(line) + "\n")
        before = everything(tmp_path)
        for argv in (["status"], ["report", "--format", "md,csv,tex"]):
            status = main([*argv, "--results", str(root)])
            error = capsys.readouterr().err
            assert (
                status == 2 and "index.jsonl" in error
                if key == "id" and argv[0] == "report"
                else status in (0, 2)
            )
            made = everything(tmp_path) - before
            assert all(path.startswith("results/report") for path in made)


def test_a_link_in_a_results_folder_is_not_written_through(tmp_path):
    """What is written replaces a link instead of following it."""
    from bench.records.files import write_atomic

    outside = tmp_path / "outside.json"
    outside.write_text("mine")
    store = Store(tmp_path / "results")
    store.folder(ID).mkdir(parents=True)
    for name in ("trial.json", "summary.json", "checkpoint.pt"):
        (store.folder(ID) / name).symlink_to(outside)
    store.write_trial(ID, {"config": {}})
    store.write_summary(ID, {"status": "failed"})
    write_atomic(store.checkpoint(ID), b"x")
    assert outside.read_text() == "mine"


# --- text that acts ---

HOSTILE = [
    "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "\\input{/etc/passwd}\\write18{touch sprung} $x$ & % # _ ^ ~",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-1+1",
    "@SUM(A1)",
    "\t=1+1",
    "'=1+1",
    '" =1+1',
    "\uff1d1+1",
    "| a | b | [x](javascript:alert(1)) ![x](http://x/y.png) `c` http://example.org",
    "a\u202eb\u2066c\u200bd\ufeff",
    "javascript:alert(1)",
    "\r\n# heading",
]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.own = ""  # all texts but the bundled libraries and the suite's own script
        self._bundle = False

    @classmethod
    def of(cls, path: Path) -> _Page:
        page = cls()
        page.feed(path.read_text())
        return page

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))
        self._bundle = tag == "style" or (tag == "script" and ("id", "data") not in attrs)

    def handle_endtag(self, tag):
        self._bundle = False

    def handle_data(self, data):
        self.own += "" if self._bundle else data


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory):
    """A report on records of which every text is hostile, and what the commands printed."""
    tmp_path = tmp_path_factory.mktemp("hostile")
    results = Results(tmp_path)
    # TOML takes no raw control characters, but their escapes
    title = json.dumps(" ".join(HOSTILE)).replace("\x7f", "")
    results.experiment(
        "two", f"title = {title}\n" + "".join(f"[[arms]]\nname = {json.dumps(n)}\n" for n in HOSTILE)
    )
    for number, name in enumerate(HOSTILE):
        for seed in (0, 1):
            results.trial(
                "two",
                name,
                [40.0, 50.0 + number + seed],
                seed=seed,
                baseline=HOSTILE[0] if number else None,
                summary={"warnings": [name], "flags": [name], "reason": name},
                provenance={"commit": name, "versions": {name: name}, "data": name},
                grid={"label": name, name: name},
                salt=name,
            )
        results.trial(
            "two", name, [1.0], seed=2, epochs=2, status="failed", summary={"reason": name}, salt=name
        )
    root = results.write()
    out, err = io.StringIO(), io.StringIO()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        assert main(["report", "--results", str(root), "--format", "md,tex,csv,html"]) == 0
        assert main(["status", "--results", str(root)]) == 0
    finally:
        sys.stdout, sys.stderr = streams
    return root / "report" / "two", out.getvalue() + err.getvalue()


def test_nothing_acts_on_a_terminal(hostile_report):
    folder, told = hostile_report
    texts = [
        told,
        *(path.read_text() for path in folder.iterdir() if path.suffix in (".md", ".tex", ".csv")),
        _Page.of(folder / "index.html").own,
    ]
    for text in texts:
        odd = {c for c in text if c not in "\n\r" and (ord(c) < 32 or 127 <= ord(c) < 160)}
        assert not odd and not set("\u202e\u2066\u200b\ufeff") & set(text)
    assert "owned" in told and "\\x1b" in told
    assert not any(
        line.startswith("# heading") for line in told.splitlines()
    )  # no name makes a line of its own


def test_nothing_acts_on_a_spreadsheet(hostile_report):
    folder, _ = hostile_report
    tables = sorted(folder.glob("*.csv"))
    assert len(tables) >= 3
    seen = 0
    for path in tables:
        with path.open(newline="") as stream:
            for cell in (cell for row in csv.reader(stream) for cell in row):
                start = cell.lstrip('\t\r\n "')[:1]
                number = re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?", cell)
                assert number or start not in ("=", "+", "-", "@", "\uff1d"), cell
                seen += "1+1" in cell
    assert seen >= 5  # they are there, behind an apostrophe


def test_nothing_acts_on_a_browser(hostile_report):
    folder, _ = hostile_report
    page = _Page.of(folder / "index.html")
    known = "html head meta title style body h1 h2 p div table thead tbody tr th td figure figcaption img"
    known += " dl dt dd details summary pre b nav a button script"
    assert {tag for tag, _ in page.tags} <= set(known.split())
    # the data, the two libraries and the suite's own script, whatever the records say
    scripts = [dict(attributes) for tag, attributes in page.tags if tag == "script"]
    own = [{"type": "application/json", "id": "data"}, {"type": "text/plain", "id": "datatables"}]
    assert scripts == [*own, {}, {"type": "module"}]
    for tag, attributes in page.tags:
        for name, value in attributes:
            assert not name.startswith("on") and name not in ("srcset", "action", "formaction")
            assert name != "href" or value == "../index.html"
            if name == "src":
                assert tag == "img" and str(value).startswith("data:image/png;base64,")
    assert "default-src 'none'" in (folder / "index.html").read_text()


def test_plotly_shows_hostile_names_as_they_read(hostile_report):
    folder, _ = hostile_report
    data = json.loads(re.search(r'id="data">(.*?)</script>', (folder / "index.html").read_text())[1])
    texts: list[str] = []

    def collect(value, key=""):
        if isinstance(value, str) and key != "hovertemplate":
            texts.append(value)
        for name, item in value.items() if isinstance(value, dict) else ():
            collect(item, name)
        for item in value if isinstance(value, list) else ():
            collect(item, key)

    collect(data["plots"])
    assert any("&lt;script&gt;" in text for text in texts) and not any("<" in text for text in texts)


def test_nothing_acts_on_latex_or_markdown(hostile_report):
    folder, _ = hostile_report
    for path in folder.glob("*.tex"):
        text = path.read_text()
        assert "\\input" not in text.replace("\\textbackslash{}input", "") and "\\write18" not in text
        assert not re.search(r"(?<!\\)[$](?!\\(pm|times|rightarrow|geq|leq)[$]|-[$])x", text)
        assert "passwd" in text
    for path in folder.glob("*.md"):
        text = path.read_text()
        assert "<script" not in text and "](" not in re.sub(r"\\.", "", text) and "http://" not in text
        assert "alert" in text
        rows = [line for line in text.splitlines() if line.startswith("|")]
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
        assert len(widths) == 1, path.name  # no name adds a column


def test_show_and_run_say_hostile_names_harmlessly(tmp_path, capsys):
    lines = "".join(
        f'[[arms]]\nname = {json.dumps(name)}\nquantizer = "dorefa"\nbits = "1/1"\n' for name in HOSTILE
    )
    head = (
        f'title = {json.dumps(" ".join(HOSTILE))}\n[defaults]\ndataset = "digits"\nnetwork = "svhn_convnet"\n'
    )
    (tmp_path / "some.toml").write_text(head + lines)
    for command in (["show"], ["status"], ["show", "--only", HOSTILE[0]], ["show", "--set", HOSTILE[0]]):
        main(
            [*command[:1], str(tmp_path / "some.toml"), *command[1:], "--results", str(tmp_path / "results")]
        )
        out, err = capsys.readouterr()
        assert not {
            c for c in out + err if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160 or c == "\u202e")
        }


def test_svhn_tables_are_read_after_their_checksum(tmp_path, monkeypatch):
    """A MATLAB file may hold anything: it is not opened before its MD5 is the published one."""
    import scipy.io

    monkeypatch.setattr(scipy.io, "loadmat", lambda *_, **__: pytest.fail("read before its checksum"))
    for file in svhn.FILES.values():
        (tmp_path / file.path).write_bytes(b"MATLAB 5.0 MAT-file")
    known = {key: PublishedFile(file.path, file.md5) for key, file in svhn.FILES.items()}
    monkeypatch.setattr(svhn, "FILES", known)
    with pytest.raises(InputError, match="corrupt: MD5"):
        datasets.load({"kind": "svhn"}, tmp_path)

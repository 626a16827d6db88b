"""Structured fuzzing of everything that a command reads: files, options, data sets, records, checkpoints.

Each case changes a valid input (``mutations``), drives the real entry point (``bench.cli.main.main``, within
this process; training alone is replaced) and demands: success or exit status 2 with one message that names
the file and is fit for a terminal; no traceback; an end (within ten minutes, a hang otherwise); no file changed
outside the results folder, and none at all by the commands that only read.

``python -m tests.robustness.fuzzing --cases 10000`` prints the cases of each target and ends with 1 where one
failed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import logging
import math
import os
import pickle
import re
import shutil
import signal
import tempfile
import threading
import time
import tomllib
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, Phase, currently_in_test_context, given, settings
from hypothesis import note as hypothesis_note
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from bench.cli import main as cli
from bench.errors import InputError
from bench.training.job import Job
from tests.robustness.mutations import (
    RAW_JSON,
    RAW_TOML,
    TEXTS,
    Draw,
    Raw,
    mutate_bytes,
    mutate_text,
    mutate_tree,
    to_json,
    to_toml,
    values,
)

ENDS: Counter[str] = Counter()  # how the cases ended: a fuzzer that is always refused, or never, tests little
TRAIN = "tests.robustness.fuzzing:train"
EXPERIMENT = """
title = "Fuzzed"
targets = ["mine"]

[defaults]
dataset = "digits"
network = "svhn_convnet"
recipe = "own"
width = 0.125

[grid]
seed = [0, 1]

[[arms]]
name = "plain"
quantizer = "dorefa"
bits = ["1/1", "1/2"]
published = { table = "mine", method = "DoReFa-Net" }

[[arms]]
name = "branch"
baseline = "plain"
quantizer = { kind = "dorefa" }
bits = ["1/1", "1/2"]
strategy = { kind = "progressive", merge = "sum", factor = { kind = "cosine", until = 0.5 } }
grid = { "strategy.factor.until" = [0.25, 0.5] }

[[arms]]
name = "pupil"
baseline = "plain"
allow_differences = ["epochs"]
quantizer = "dorefa"
bits = "1/1"
epochs = 3
strategy = { kind = "apprentice", scheme = "C", teacher = { width = 0.25 }, start = { epochs = 2 } }

[profiles.quick]
epochs = 2
grid = { seed = [0], bits = ["1/1"] }
only = ["plain", "branch"]
"""
RECIPE = """
title = "A recipe beside the file"
source = "ours"
epochs = 4
batch_size = 64
optimizer = "sgd"
learning_rate = { kind = "step", initial = 0.1, at = [0.5, 0.75], gamma = 0.1 }
momentum = 0.9
weight_decay = 1e-4
augmentation = "crop_flip"
precision = "fp32"
holdout = 50
"""
PUBLISHED = """dataset,network,width,method,w_bits,a_bits,g_bits,metric,accuracy_pct,kind,reading_error_pct,source,note
Digits,svhn_convnet,0.125,DoReFa-Net,1,1,32,top1,81.60,original,0.1,"a paper, page 3",read off a figure
Digits,svhn_convnet,0.125,DoReFa-Net,1,2,,top1,83.70,quoted,,"another, 2019",
Digits,svhn_convnet,0.125,EXP-Net (DoReFa),t,mixed,,top5,99,,,third,
"""
NAMES = """
[[datasets]]
published = ["Digits"]
kind = "digits"
train_images = 1195
images = 4000

[[networks]]
published = ["svhn_convnet"]
kind = "svhn_convnet"
width = 0.125
note = "a remark"

[[methods]]
published = ["DoReFa-Net"]
quantizer = ["dorefa"]
strategy = ["plain"]
options = { channelwise = false }

[tables.mine]
kind = "original"
kinds = { "DoReFa-Net" = "reproduction" }
"""
FIELDS = (
    *(
        "title",
        "targets",
        "defaults",
        "grid",
        "arms",
        "profiles",
        "name",
        "baseline",
        "published",
        "table",
        "method",
    ),
    *(
        "allow_differences",
        "only",
        "dataset",
        "network",
        "width",
        "quantizer",
        "bits",
        "strategy",
        "seed",
        "recipe",
    ),
    *(
        "epochs",
        "batch_size",
        "optimizer",
        "learning_rate",
        "momentum",
        "train_size",
        "holdout",
        "precision",
        "kind",
    ),
    *(
        "factor",
        "until",
        "until_epochs",
        "merge",
        "layers",
        "teacher",
        "start",
        "scheme",
        "initial",
        "at",
        "values",
    ),
    *(
        "cosine",
        "constant",
        "step",
        "staircase",
        "progressive",
        "apprentice",
        "anneal",
        "full_precision",
        "ttq",
        "syq",
    ),
    *(
        "resnet20",
        "npz",
        "name",
        "extra",
        "keep",
        "what",
        "statistics",
        "options",
        "source",
        "kinds",
        "every_epochs",
    ),
)
RECORD_KEYS = (
    *(
        "schema",
        "id",
        "config",
        "execution",
        "provenance",
        "needs",
        "teacher",
        "epoch",
        "step",
        "train_loss",
        "test_acc",
    ),
    *(
        "test_correct",
        "test_seen",
        "factor",
        "lr",
        "status",
        "reason",
        "final_test_acc",
        "flags",
        "warnings",
        "arm",
    ),
    *(
        "baseline",
        "baseline_id",
        "grid",
        "role",
        "profile",
        "seed",
        "done",
        "diverged",
        "failed",
        "commit",
        "versions",
    ),
    *("needed_by", "data", "dirty", "kind", "other_hardware", "wall_seconds", "best_epoch", "device"),
)


# --- training that trains nothing ---------------------------------------------------------------------------


def train(job):
    """Record up to three epochs whose accuracies are a function of the id."""
    config, trial_id, needs, store = job.config, job.trial_id, job.needs, job.store
    provenance = {"commit": "c0ffee", "dirty": False, "versions": {"torch": "2"}, "data": "d1"}
    execution = {"device": "Test CPU", "kind": "cpu", "mode": "eager"}
    store.write_trial(
        trial_id,
        {"config": config.dump(), "execution": execution, "needs": dict(needs), "provenance": provenance},
    )
    known = store.epochs(trial_id)
    count = min(config.epochs, 3)
    for epoch in range(len(known) + 1, count + 1):
        correct = 300 + int(trial_id, 16) % 200 + 10 * epoch
        line = {
            "epoch": epoch,
            "step": 18 * epoch,
            "train_loss": 1.0 / epoch,
            "train_acc": 50.0,
            "test_acc": 100.0 * correct / 602,
            "test_acc_expanded": 60.0 if epoch == 1 else None,
            "test_correct": correct,
            "test_seen": 602,
            "factor": 0.5 if epoch == 1 else 0.0,
            "lr": 0.1,
            "seconds": 1.0,
            "images_per_second": 100.0,
        }
        known.append(line)
        store.append_epoch(trial_id, line)
    summary = {
        "status": "done",
        "final_test_acc": known[-1].get("test_acc"),
        "wall_seconds": 3.0,
        "model_bits": 1000,
        "flags": [],
        "warnings": [],
    }
    store.write_summary(trial_id, summary)
    return "done"


class InThisProcess:
    """Runs a session's trials one after another in this process: the place of ``Pool`` and its processes."""

    def __init__(self, session, devices: Sequence[str], jobs: int) -> None:
        self.session = session

    def run(self) -> None:
        from bench.launch.execute import execute

        while (task := self.session.next_task()) is not None:
            self.session.started(task.id)
            self.session.finished(execute(task))


# --- what every case demands --------------------------------------------------------------------------------


def note(text: str) -> None:
    """Keep ``text`` for the report of a failing case."""
    if currently_in_test_context():
        hypothesis_note(text)


class Hang(BaseException):
    """A command did not come to an end."""


@contextlib.contextmanager
def alarm(seconds: float = 600.0) -> Iterator[None]:
    """Raise ``Hang`` where the body takes longer than ``seconds``; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise Hang(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def snapshot(*folders: Path) -> dict[str, str]:
    """Return the SHA-256 of every file beneath ``folders``; folders themselves count."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    return found


def active(text: str) -> list[str]:
    """Return the characters of ``text`` that a terminal would act on."""
    return sorted({c for c in text if c not in "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co")})


def check_message(text: str, names: Sequence[str]) -> None:
    """Demand one message: it names one of ``names``, is harmless, and is no traceback."""
    assert text.strip(), "no message"
    assert "Traceback" not in text and '.py", line' not in text, "a traceback"
    assert not active(text), f"characters a terminal acts on: {active(text)}"
    assert len(text) < 60_000 and text.count("\n") < 60, f"a message of {len(text):,} characters"
    if names:
        assert any(name in text for name in names), f"the message names none of {names}"


def call(
    argv: Sequence[str],
    *,
    names: Sequence[str] = (),
    allowed: Sequence[int] = (0, 2),
    untouched: Sequence[Path] = (),
) -> tuple[int, str, str]:
    """Run ``bench`` with ``argv``, demand what every case demands, and return (exit status, output, errors).

    ``names``: at least one stands in the message of exit status 2; ``untouched``: folders in which nothing
    may change.
    """
    before = snapshot(*untouched)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    began = time.process_time()
    with warnings.catch_warnings(record=True) as warned, alarm():
        warnings.simplefilter("always")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(list(argv), train=TRAIN)
    seconds = time.process_time() - began
    said, errors = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
    note(f"bench {argv!r}: status {status}, {seconds:.2f} s\n{said[-3000:]}\n{errors[-3000:]}")
    ENDS[f"exit {status}"] += 1
    assert status in allowed, f"exit status {status}"
    if status == 2:
        check_message(errors, names)
        assert errors.startswith("bench: ") or "bench: " in errors
    assert "Traceback" not in errors + said
    assert not active(said), f"characters a terminal acts on: {active(said)}"
    loud = [
        w
        for w in warned
        if issubclass(w.category, RuntimeWarning | UserWarning | FutureWarning | SyntaxWarning)
    ]
    assert not loud, f"warnings: {[str(w.message) for w in loud]}"
    assert snapshot(*untouched) == before, "files were changed"
    return status, said, errors


def refused(action: Callable[[], Any], names: Sequence[str]) -> Any:
    """Run ``action``: it succeeds, or raises ``InputError`` with a message that names one of ``names``."""
    try:
        with alarm():
            result = action()
            ENDS["accepted"] += 1
            return result
    except InputError as error:
        ENDS["refused"] += 1
        text = "\n".join(filter(None, str(error).split("\n")))
        check_message(re.sub(r"[^\S\n]", " ", text), names)
        return None


# --- targets ------------------------------------------------------------------------------------------------


class Target:
    """Something that is fuzzed: ``case`` makes and tries one case. ``share`` is its part of all cases."""

    share = 1.0

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        self.results = root / "results"
        self.file = root / "fuzzed.toml"
        self.data.mkdir(parents=True)
        self.reset()
        status, _, errors = call(["show", str(self.file), "--data", str(self.data)])
        assert status == 0, (
            errors
        )  # the valid files are valid: else nothing behind the parser would be reached
        self.prepare()

    def prepare(self) -> None:
        """Make what all cases share."""

    def reset(self) -> None:
        """Put the valid files back."""
        (self.root / "recipes").mkdir(exist_ok=True)
        (self.root / "published").mkdir(exist_ok=True)
        self.file.write_text(EXPERIMENT)
        (self.root / "recipes" / "own.toml").write_text(RECIPE)
        (self.root / "published" / "mine.csv").write_text(PUBLISHED)
        (self.root / "published" / "names.toml").write_text(NAMES)

    def case(self, draw: Draw) -> None:
        raise NotImplementedError

    # -- helpers

    def where(self, *, data: bool = True) -> list[str]:
        return ["--results", str(self.results), *(["--data", str(self.data)] if data else [])]

    def bench(self, *argv: str, reads: bool = True, **more: Any) -> tuple[int, str, str]:
        """Call ``bench`` in the workspace; commands that only ``read`` must leave the results alone, too."""
        kept = (
            [self.root]
            if reads
            else [self.root / name for name in ("data", "recipes", "published", "fuzzed.toml")]
        )
        return call(argv, untouched=kept, **more)

    def run(self, *more: str, **options: Any) -> tuple[int, str, str]:
        argv = ("run", str(self.file), *self.where(), "--no-ray", "--device", "cpu", *more)
        return self.bench(*argv, reads=False, **options)


class ExperimentFiles(Target):
    """The experiment file: its tables, its text, its bytes."""

    share = 3.0
    commands = (
        *(["show"], ["show"], ["show", "--diff", "branch"], ["show", "--profile", "quick"]),
        *(
            ["status"],
            ["show", "--only", "branch", "--seeds", "3"],
            ["run"],
            ["run", "--profile", "quick"],
            ["report"],
        ),
    )

    def prepare(self) -> None:
        self.document = tomllib.loads(EXPERIMENT)

    def content(self, draw: Draw) -> bytes:
        kind = draw(st.sampled_from(("tree", "tree", "tree", "tree", "text", "bytes")))
        if kind == "tree":
            return to_toml(
                mutate_tree(draw, self.document, FIELDS, RAW_TOML, draw(st.sampled_from((1, 1, 3))))
            ).encode("utf-8", "surrogatepass")
        return mutate_text(draw, EXPERIMENT) if kind == "text" else mutate_bytes(draw, EXPERIMENT.encode())

    def case(self, draw: Draw) -> None:
        content = self.content(draw)
        note(repr(content[:3000]))
        self.file.write_bytes(content)
        command, *options = draw(st.sampled_from(self.commands))
        names = ["fuzzed.toml", "--diff", "--profile", "--only", "--seeds"]
        shutil.rmtree(self.results, ignore_errors=True)
        if command == "run":
            # one trial of each arm, however many the file asks for
            self.run(*options, "--seeds", "1", names=[*names, "npz", "data set"], allowed=(0, 1, 2))
        elif command == "report":
            argv = ("report", str(self.file), *self.where(data=False), "--format", "csv,md,tex")
            self.bench(*argv, *options, reads=False, names=names)
        else:
            self.bench(command, str(self.file), *self.where(), *options, names=names)


class Recipes(Target):
    """A recipe beside the experiment file."""

    share = 1.2

    def prepare(self) -> None:
        self.document = tomllib.loads(RECIPE)

    def case(self, draw: Draw) -> None:
        kind = draw(st.sampled_from(("tree", "tree", "tree", "text", "bytes")))
        if kind == "tree":
            content = to_toml(
                mutate_tree(draw, self.document, FIELDS, RAW_TOML, draw(st.sampled_from((1, 1, 3))))
            ).encode("utf-8", "surrogatepass")
        else:
            content = mutate_text(draw, RECIPE) if kind == "text" else mutate_bytes(draw, RECIPE.encode())
        (self.root / "recipes" / "own.toml").write_bytes(content)
        note(repr(content[:3000]))
        self.bench("show", str(self.file), *self.where(), names=["own.toml", "recipe", "fuzzed.toml"])


class Options(Target):
    """The command line: ``--set`` and the other options, with values that do not belong."""

    share = 2.0
    paths = (
        *(
            "epochs",
            "width",
            "bits",
            "strategy",
            "strategy.factor.until",
            "strategy.factor",
            "grid.width",
            "grid.bits",
        ),
        *(
            "quantizer",
            "quantizer.kind",
            "strategy.kind",
            "strategy.teacher.width",
            "learning_rate.initial",
            "seed",
        ),
        *(
            "dataset",
            "network",
            "grid",
            "grid.strategy.factor.until",
            "recipe",
            "dataset.name",
            "arms",
            "title",
            "a.b",
        ),
        *("", ".", "epochs.", ".epochs", "x" * 400, "é", "a\x00", "kind", "strategy.start", "bits.0"),
    )

    good = (
        *(
            "epochs=3",
            "width=0.25",
            "width = 1",
            "strategy.factor.until=0.3",
            "grid.width=[0.1, 0.2]",
            "batch_size=32",
        ),
        *(
            "grid.seed=[3]",
            "learning_rate=0.01",
            "optimizer=adam",
            "grid.bits=['1/1']",
            "strategy.factor.kind=linear",
        ),
        *(
            "quantizer.kind=dorefa",
            "precision=bf16",
            "holdout=0",
            "recipe=digits",
            "dataset=digits",
            "augmentation=none",
        ),
    )

    def prepare(self) -> None:
        self.novel = values(FIELDS, RAW_TOML)

    def text(self, draw: Draw) -> str:
        value = draw(self.novel)
        if draw(st.booleans()):
            value = value if isinstance(value, str) and not isinstance(value, Raw) else to_toml(value)
        else:
            value = to_toml(value) if not isinstance(value, dict) else to_toml([value])
        return str(value)[:20_000]

    def case(self, draw: Draw) -> None:
        argv: list[str] = []
        for _ in range(draw(st.integers(1, 3))):
            option = draw(
                st.sampled_from(
                    ("good",) * 8 + ("--set",) * 8 + ("--only", "--profile", "--seeds", "--diff", "-w", "")
                )
            )
            if option == "good":
                argv += ["--set", draw(st.sampled_from(self.good))]
            elif option == "--set":
                equals = draw(st.sampled_from(("=", "=", "=", "=", "= ", "", "==")))
                argv += [option, draw(st.sampled_from(self.paths)) + equals + self.text(draw)]
            elif option == "--seeds":
                argv += [
                    option,
                    draw(st.sampled_from(("0", "-1", "2", "1e3", "x", "", "99999999999", "٣", "nan"))),
                ]
            else:
                argv += [option, self.text(draw)] if option else [self.text(draw)]
        argv = [word.replace("\x00", "\\0") if draw(st.booleans()) else word for word in argv]
        if any(word in ("-h", "--help") for word in argv):
            return
        self.bench("show", str(self.file), *self.where(), *argv)


class Commands(Target):
    """The other commands' words: files and folders that are none, formats, trials, data sets."""

    share = 1.0

    def prepare(self) -> None:
        assert self.run("--profile", "quick")[0] == 0

    def case(self, draw: Draw) -> None:
        word = draw(
            st.one_of(
                st.sampled_from(TEXTS), st.text(max_size=300), st.sampled_from(("-", "--", "-1", "=", "."))
            )
        )
        if draw(st.booleans()):
            word = (
                draw(
                    st.sampled_from(("0000", "f" * 16, "../" * 40, "a/" * 200, "é" * 150, "~nobody", "npz:x"))
                )
                + word
            )
        if word in ("-h", "--help"):
            return
        file = str(self.file)
        form = draw(st.integers(0, 15))
        argv = [
            ["show", word],
            ["status", "--results", word],
            ["status", file, "--results", word],
            ["show", file, "--data", word],
            ["verify", word, *self.where()],
            ["report", "--results", word, "--out", str(self.results / "report"), "--format", "md"],
            ["report", *self.where(data=False), "--format", word],
            [
                "report",
                word,
                *self.where(data=False),
                "--format",
                "md",
                "--out",
                str(self.results / "report"),
            ],
            ["report", *self.where(data=False), "--profile", word],
            ["list", word],
            ["data", word],
            ["data", "verify", word, "--data", str(self.data)],
            ["data", "list", "--data", word],
            ["run", word, *self.where(), "--no-ray"],
            ["run", file, *self.where(), "--no-ray", "--device", word],
            [word, file, *self.where()],
        ][form]
        if Path(word.split("\x00")[0] or ".").is_absolute() and "--results" in argv:
            return
        writes = argv[0] in ("report", "run")
        self.bench(*argv, reads=not writes, allowed=(0, 1, 2) if argv[0] == "verify" else (0, 2))


class PublishedTables(Target):
    """A table of published numbers, and the names that explain it, beside the experiment file."""

    share = 1.6

    def prepare(self) -> None:
        assert self.run("--profile", "quick")[0] == 0
        self.rows = [line.split(",") for line in PUBLISHED.replace('"', "").splitlines()]
        self.names = tomllib.loads(NAMES)
        self.novel = values(
            self.rows[0], ("1e400", "0x10", "٣", '"', '""', '"a\nb"', "1,5", "1-8", "99-1", "inf", "-0")
        )

    def table(self, draw: Draw) -> bytes:
        if draw(st.integers(0, 3)) == 0:
            return (
                mutate_text(draw, PUBLISHED)
                if draw(st.booleans())
                else mutate_bytes(draw, PUBLISHED.encode())
            )
        rows = [list(row) for row in self.rows]
        for _ in range(draw(st.integers(1, 4))):
            row = draw(st.sampled_from(rows))
            column = draw(st.integers(0, max(len(row) - 1, 0)))
            operation = draw(
                st.sampled_from(("cell", "cell", "cell", "cell", "drop", "add", "quote", "column"))
            )
            if operation == "column":
                for each in rows:
                    each[column : column + 1] = [] if draw(st.booleans()) else each[column : column + 1] * 2
            elif row:
                new = str(draw(self.novel))
                row[column : column + 1] = {"drop": [], "add": [row[column], new], "quote": [f'"{new}"']}.get(
                    operation, [new]
                )
        return "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")

    def case(self, draw: Draw) -> None:
        self.reset()
        if draw(st.integers(0, 3)):
            path, content = self.root / "published" / "mine.csv", self.table(draw)
        else:
            path = self.root / "published" / "names.toml"
            tree = mutate_tree(draw, self.names, (*FIELDS, "published", "methods", "tables"), RAW_TOML)
            content = to_toml(tree).encode("utf-8", "surrogatepass")
            if draw(st.integers(0, 4)) == 0:
                content = mutate_text(draw, NAMES)
        path.write_bytes(content)
        note(repr(content[:3000]))
        kinds = draw(st.sampled_from(("csv", "md", "tex", "csv,md,tex")))
        argv = ("report", str(self.file), *self.where(data=False), "--profile", "quick", "--format", kinds)
        self.bench(*argv, reads=False, names=[path.name])


class Npz(Target):
    """A data set of the user's own."""

    share = 1.4

    def prepare(self) -> None:
        import numpy as np

        rng = np.random.default_rng(0)
        self.parts = {
            "x_train": rng.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8),
            "y_train": np.arange(12) % 4,
            "x_test": rng.integers(0, 256, (5, 6, 5, 3), dtype=np.uint8),
            "y_test": np.arange(5) % 4,
        }
        self.path = self.data / "mine.npz"
        text = EXPERIMENT.replace('"digits"', '"npz:mine"').replace("batch_size = 64", "batch_size = 4")
        self.file.write_text(text)
        recipe = RECIPE.replace("batch_size = 64", "batch_size = 4").replace("holdout = 50", "holdout = 0")
        (self.root / "recipes" / "own.toml").write_text(recipe)

    def content(self, draw: Draw) -> bytes:
        import numpy as np

        parts: dict[str, Any] = dict(self.parts)
        if structured := draw(st.booleans()):
            for _ in range(draw(st.integers(1, 2))):
                key = draw(st.sampled_from(sorted(parts)))
                array = parts[key]
                operation = draw(st.integers(0, 9))
                if operation == 0:
                    del parts[key]
                elif operation == 1:
                    kind = draw(
                        st.sampled_from(("f4", "f8", "i1", ">i2", "u8", "c16", "O", "U3", "M8[s]", "?", "V7"))
                    )
                    with contextlib.suppress(ValueError, TypeError):
                        parts[key] = array.astype(kind)
                elif operation == 2:
                    shape = draw(
                        st.sampled_from(((0,), (-1,), (1, -1), (-1, 1, 1, 1), (2, -1), (-1, 3, 1, 1, 1, 1)))
                    )
                    with contextlib.suppress(ValueError):
                        parts[key] = array.reshape(shape)
                elif operation == 3 and array.ndim:
                    parts[key] = array[: draw(st.integers(0, 3))]
                elif operation == 4:
                    number = draw(st.sampled_from((-1, 10, 10**9, 2**62, -(2**62))))
                    with contextlib.suppress(OverflowError, ValueError, TypeError):
                        parts[key] = np.full(array.shape, number, dtype=np.int64)
                elif operation == 5:
                    name = draw(st.sampled_from((*TEXTS[:20], "x_train.npy", "../../outside", "y_test ")))
                    if "\x00" not in name:
                        parts[name + "_"] = parts.pop(key)
                elif operation == 6:
                    parts[key] = np.array([{"a": 1}, Trap(self.root / "sprung")], dtype=object)
                elif operation == 7:
                    parts[key] = np.asfortranarray(array)
                elif operation == 8:
                    parts[key] = np.zeros(3, dtype=[("a", "i4"), ("b", "O")])
                else:
                    parts[key] = np.array(5)
        buffer = io.BytesIO()
        (np.savez if draw(st.booleans()) else np.savez_compressed)(buffer, **parts)
        content = buffer.getvalue()
        return content if structured and draw(st.booleans()) else mutate_bytes(draw, content)

    def case(self, draw: Draw) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.path.write_bytes(self.content(draw))
        form = draw(st.integers(0, 3))
        if form == 0:
            self.bench(
                "show", str(self.file), *self.where(), "--profile", "quick", names=["mine.npz", "fuzzed.toml"]
            )
        elif form == 1:
            self.bench("data", "list", "--data", str(self.data))
        else:
            self.bench("data", "verify", "npz:mine", "--data", str(self.data), names=["mine.npz"])
        assert not (self.root / "sprung").exists(), "a pickle was executed"


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


class Archives(Target):
    """Small files of CIFAR and SVHN, damaged, or changed together with the table of their checksums."""

    share = 1.2

    def prepare(self) -> None:
        import numpy as np
        import scipy.io

        from bench.datasets import cifar, svhn

        self.cifar, self.svhn = cifar, svhn
        rng = np.random.default_rng(0)
        self.good: dict[str, bytes] = {}
        self.contents: dict[str, dict[str, Any]] = {}
        for file in cifar.CIFAR10.files({}):
            content = {"data": rng.integers(0, 256, (4, 3072), dtype=np.uint8), "labels": [0, 3, 9, 1]}
            self.contents[file.path] = content
            self.good[file.path] = pickle.dumps(content, 2)
        for file in svhn.FILES.values():
            buffer = io.BytesIO()
            images = rng.integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
            content = {"X": images, "y": np.array([[1], [10], [2], [3]], dtype=np.uint8)}
            self.contents[file.path] = content
            scipy.io.savemat(buffer, content, do_compression=True)
            self.good[file.path] = buffer.getvalue()
        (self.data / "cifar-10-batches-py").mkdir()

    def changed(self, draw: Draw, path: str) -> bytes:
        import numpy as np
        import scipy.io

        if draw(st.booleans()):
            return mutate_bytes(draw, self.good[path])
        content = dict(self.contents[path])
        key = draw(st.sampled_from(sorted(content)))
        novel = (
            *(
                None,
                [],
                {},
                "x",
                3,
                [1, "a"],
                [1, 2, 3],
                [0, 3, 9, 10],
                [0, -1, 2, 3],
                np.zeros((4, 3071), np.uint8),
            ),
            *(
                np.zeros((4, 3072)),
                np.zeros((5, 3072), np.uint8),
                np.zeros((32, 32, 3, 5), np.uint8),
                np.zeros((0, 3072)),
            ),
            *(
                np.zeros((0, 3072), np.uint8),
                np.zeros((32, 32, 1, 4), np.uint8),
                np.zeros((32, 32, 3)),
                np.array("x"),
            ),
            *(
                np.full((4, 1), 11, np.uint8),
                np.full((4, 1), np.nan),
                np.array([["a"], ["b"]]),
                [10**30, 1, 2, 3],
            ),
        )
        operation = draw(st.integers(0, 5))
        if operation == 0:
            content["other"] = content.pop(key)
        elif (operation == 1 and path.endswith("_batch")) or (operation == 1 and "data_batch" in path):
            trap: Any = Trap(self.root / "sprung")
            return pickle.dumps(
                trap if draw(st.booleans()) else {**content, key: trap}, draw(st.integers(0, 5))
            )
        else:
            content[key] = draw(st.sampled_from(novel))
        if not path.endswith(".mat"):
            return pickle.dumps(content if operation != 2 else list(content.items()), draw(st.integers(0, 5)))
        buffer = io.BytesIO()
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            scipy.io.savemat(buffer, {k: v for k, v in content.items() if v is not None})
        return buffer.getvalue()

    def case(self, draw: Draw) -> None:
        from bench import datasets
        from bench.datasets.sources import PublishedFile

        kind = draw(st.sampled_from(("cifar10", "svhn")))
        source = self.cifar.CIFAR10 if kind == "cifar10" else self.svhn.FILES
        files = list(source.files({})) if kind == "cifar10" else list(source.values())
        bad = draw(st.sampled_from(files)).path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = self.changed(draw, bad)
        note(f"{bad}: {content[:300]!r}")
        tables = {}
        trusting = draw(st.booleans())
        for file in files:
            good = content if file.path == bad else self.good[file.path]
            (self.data / file.path).write_bytes(good)
            told = good if trusting else self.good[file.path]
            size = len(good) if draw(st.booleans()) or trusting else None
            tables[file.path] = PublishedFile(file.path, hashlib.md5(told).hexdigest(), size)
        if kind == "cifar10":
            *train, test = tables.values()
            patch = mock.patch.multiple(source, train=tuple(train), test=test)
        else:
            patch = mock.patch.dict(source, {key: tables[file.path] for key, file in source.items()})
        with patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.bench("data", "verify", kind, "--data", str(self.data), names=[Path(bad).name])
            dataset = {"kind": kind} | ({"extra": bad.startswith("extra")} if kind == "svhn" else {})
            refused(lambda: datasets.load(dataset, self.data), [Path(bad).name])
        assert not (self.root / "sprung").exists(), "a pickle was executed"


class Photographs(Target):
    """A folder of photographs, and shards whose manifests and indices may agree with the damage."""

    def prepare(self) -> None:
        from PIL import Image

        from bench.datasets.imagefolder import IMAGEFOLDER
        from bench.datasets.photographs import shards
        from bench.datasets.photographs.prepare import Settings, prepare

        self.good: dict[str, dict[str, bytes]] = {}
        for part in ("train", "val"):
            for name in ("a", "b"):
                folder = self.data / "own" / part / name
                folder.mkdir(parents=True)
                for i in range(2):
                    Image.new("RGB", (9 + i, 12), (40 * i, 90, 200)).save(folder / f"{i}.jpg")
        folder = self.data / "own.shards"
        for form in shards.FORMS:
            how = Settings(form, 10 if form == "raw" else None)
            prepare(
                "own",
                lambda: IMAGEFOLDER.listing({"name": "own"}, self.data),
                folder,
                how,
                lambda _: True,
                lambda _: None,
            )
            self.good[form] = {path.name: path.read_bytes() for path in folder.iterdir()}
            shutil.rmtree(folder)
        images = sorted((self.data / "own").rglob("*.jpg"))
        self.images = {path: path.read_bytes() for path in images}
        self.folder = folder

    def case(self, draw: Draw) -> None:
        from bench import datasets

        shutil.rmtree(self.folder, ignore_errors=True)
        for path, content in self.images.items():
            path.write_bytes(content)
        if draw(st.integers(0, 3)) == 0:
            victim = draw(st.sampled_from(sorted(self.images)))
            content = mutate_bytes(draw, self.images[victim])
            note(f"{victim}: {content[:300]!r}")
            victim.write_bytes(content)
            self.attempt(datasets, [victim.name, "own"])
            return
        files = dict(self.good[draw(st.sampled_from(sorted(self.good)))])
        bad = draw(st.sampled_from(sorted(files)))
        if bad == "manifest.json" and draw(st.booleans()):
            document = mutate_tree(draw, json.loads(files[bad]), ("files", "counts", "train.index"), RAW_JSON)
            files[bad] = to_json(document).encode()
        else:
            files[bad] = mutate_bytes(draw, files[bad])
        if bad != "manifest.json" and draw(st.booleans()):
            document = json.loads(files["manifest.json"])
            document["files"][bad] = [len(files[bad]), "sha256:" + hashlib.sha256(files[bad]).hexdigest()]
            files["manifest.json"] = to_json(document).encode()
        note(f"{bad}: {files[bad][:300]!r}")
        self.folder.mkdir()
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        self.attempt(datasets, [*files, "own.shards", "a/", "b/"])

    def attempt(self, datasets: Any, names: Sequence[str]) -> None:
        def read_all() -> None:
            found = datasets.load({"kind": "imagefolder", "name": "own"}, self.data)
            for part in (found.train, found.test):
                for number in range(len(part.index)):
                    part.read(number)

        self.bench("data", "list", "--data", str(self.data))
        self.bench("data", "verify", "imagefolder:own", "--data", str(self.data), names=names)
        refused(read_all, names)


class RecordFiles(Target):
    """Trials' records, index and experiment file as the results folder of a stranger may hold them."""

    share = 2.5
    wanted = ("--seeds", "2", "--set", "epochs=2", "--set", "grid.bits=['1/1']", "--only", "branch")

    def prepare(self) -> None:
        text = EXPERIMENT.replace('targets = ["mine"]\n', "")  # a table that does not travel with the records
        self.file.write_text(re.sub("published = .*", "", text))
        assert self.run(*self.wanted)[0] == 0
        assert self.run("--only", "pupil", "--seeds", "1", "--set", "grid.bits=['1/1']")[0] == 0
        trial = next(iter((self.results / "trials").iterdir()))
        (trial / "resumes.jsonl").write_text('{"step": 3, "time": "now", "other_hardware": []}\n')
        self.good = self.root.parent / f"{self.root.name}-good"
        shutil.copytree(self.results, self.good)
        status, said, _ = self.bench("report", *self.where(data=False), "--format", "csv", reads=False)
        assert status == 0 and "done" in said
        shutil.rmtree(self.results / "report")
        whole = [path.relative_to(self.good) for path in sorted(self.good.rglob("*")) if path.is_file()]
        self.paths = [path for path in whole if path.name != "log.txt" and ".locks" not in path.parts]
        self.paths += [path for path in self.paths if path.name == "index.jsonl"] * 8

    def changed(self, draw: Draw, path: Path, text: str) -> bytes:
        if path.suffix == ".toml" or draw(st.integers(0, 3)) == 0:
            if path.suffix == ".toml" and draw(st.booleans()):
                tree = mutate_tree(draw, tomllib.loads(text), FIELDS, RAW_TOML)
                return to_toml(tree).encode("utf-8", "surrogatepass")
            return mutate_text(draw, text) if draw(st.booleans()) else mutate_bytes(draw, text.encode())
        if path.suffix == ".json":
            return to_json(mutate_tree(draw, json.loads(text), RECORD_KEYS, RAW_JSON)).encode()
        lines = [json.loads(line) for line in text.splitlines()]
        changed = mutate_tree(draw, lines, RECORD_KEYS, RAW_JSON)
        lines = changed if isinstance(changed, list) else [changed]
        return "".join(to_json(line) + "\n" for line in lines).encode()

    def case(self, draw: Draw) -> None:
        shutil.rmtree(self.results, ignore_errors=True)
        shutil.copytree(self.good, self.results)
        for _ in range(draw(st.integers(1, 2))):
            path = draw(st.sampled_from(self.paths))
            content = self.changed(draw, path, (self.good / path).read_text())
            (self.results / path).write_bytes(content)
            note(f"{path}: {content[:3000]!r}")
        names = [
            "index.jsonl",
            "fuzzed.toml",
            "trials/",
            "trial.json",
            "summary.json",
            "epochs.jsonl",
            "resumes.jsonl",
        ]
        command = draw(
            st.sampled_from(
                ("status", "status", "status FILE", "report", "report", "report FILE", "run", "verify")
            )
        )
        where = self.where(data=False)
        if command == "status":
            self.bench("status", *where, names=names)
        elif command == "status FILE":
            self.bench("status", str(self.file), *self.where(), *self.wanted, names=names)
        elif command.startswith("report"):
            kinds = draw(st.sampled_from(("csv", "md", "tex", "csv,md,tex")))
            file = [str(self.file)] if command.endswith("FILE") else []
            self.bench("report", *file, *where, "--format", kinds, reads=False, names=names)
        elif command == "run":
            self.run(*self.wanted, names=names, allowed=(0, 1, 2))
        else:
            id = (
                path.parent.name
                if "trials" in path.parts
                else next(iter((self.good / "trials").iterdir())).name
            )
            self.bench("verify", id, *self.where(), names=names, allowed=(0, 1, 2))


class Checkpoints(Target):
    """Checkpoints and weights: nothing in them is executed; a file is used, or refused by its name."""

    share = 0.8

    def prepare(self) -> None:
        import torch

        from bench.experiments.config import TrialConfig
        from bench.records.store import Store
        from bench.training import trial

        torch.set_num_threads(1)
        self.torch, self.trial = torch, trial
        logging.getLogger("bench.checkpoint").setLevel(logging.ERROR)
        fields = {
            "dataset": "digits",
            "network": "svhn_convnet",
            "width": 0.02,
            "quantizer": "dorefa",
            "bits": "1/1",
            "epochs": 2,
            "batch_size": 16,
            "train_size": 48,
            "strategy": {
                "kind": "progressive",
                "merge": "concat",
                "factor": {"kind": "cosine", "until": 0.5},
            },
        }
        config = TrialConfig.model_validate(fields)
        self.id = "c" * 16
        self.store = Store(self.results)
        asked: list[int] = []
        job = Job(config, self.id, {}, self.store, self.data)
        stopping = replace(job, stop=lambda: asked.append(0) is None and len(asked) > 3)
        assert trial.run_trial(stopping) == "stopped"
        self.path = self.store.checkpoint(self.id)
        self.good = self.path.read_bytes()
        self.state = torch.load(self.path, weights_only=True)
        from bench import datasets
        from bench.training.distributed import SOLO

        arrays = datasets.load(config.dataset, self.data)
        recorded = self.store.read_trial(self.id)
        self.live = trial._prepare(job, {}, arrays, recorded, SOLO)[0]

    def changed(self, draw: Draw) -> bytes:
        torch = self.torch
        if draw(st.integers(0, 3)) == 0:
            return mutate_bytes(draw, self.good)
        words = [*self.state, "step", "state", "param_groups", "schema", "params", "lr"]
        tensors = (
            torch.zeros(()),
            torch.zeros(3, 2),
            torch.full((4,), math.nan),
            torch.zeros(2, dtype=torch.int32),
        )
        state = dict(self.state)
        if draw(st.booleans()):
            # numbered keys of the optimizer's state are left alone: names alone are misspelt
            tree = mutate_tree(draw, {k: v for k, v in state.items() if k != "optimizer"}, words, ("x",))
            state = tree | {"optimizer": self.state["optimizer"]} if isinstance(tree, dict) else tree
        else:
            key = draw(st.sampled_from(("network", "signs", "optimizer", "")))
            inner = dict(state[key]) if key else state
            name = draw(st.sampled_from(list(inner)))
            inner[name] = draw(st.one_of(st.sampled_from(tensors), values(words, ("x",))))
            if key:
                state[key] = inner
        if draw(st.integers(0, 9)) == 0:
            state = (
                {"network": Trap(self.root / "sprung")} if draw(st.booleans()) else Trap(self.root / "sprung")
            )
        buffer = io.BytesIO()
        state = json_keys(state)
        torch.save(state, buffer)
        return buffer.getvalue()

    def case(self, draw: Draw) -> None:
        from bench.training import checkpoint

        self.path.write_bytes(self.changed(draw))

        def resume() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = checkpoint.load(self.path, "cpu")
                if state is not None:
                    self.trial.resume(self.live, state, self.path)
                    assert 0 <= self.live.step <= self.live.total_steps

        refused(resume, ["checkpoint.pt"])
        assert not (self.root / "sprung").exists(), "a pickle was executed"


def json_keys(value: Any) -> Any:
    """Return ``value`` with raw fragments as plain text: what a pickle can hold without this module."""
    if isinstance(value, dict):
        return {(str(k) if isinstance(k, Raw) else k): json_keys(v) for k, v in value.items()}
    if isinstance(value, list):
        return [json_keys(item) for item in value]
    return str(value) if isinstance(value, Raw) else value


class LockFiles(Target):
    """Lock files, as another host or a dead process may have left them."""

    share = 0.3

    def prepare(self) -> None:
        assert self.run("--profile", "quick", "--only", "plain")[0] == 0
        self.id = next(iter((self.results / "trials").iterdir())).name
        self.path = self.results / ".locks" / self.id

    def case(self, draw: Draw) -> None:
        import socket

        from bench.records.locks import Owner

        owner = {**Owner.here().__dict__, "pid": 2**22 + 7, "host": socket.gethostname()}
        tree = mutate_tree(draw, owner, ("host", "pid", "boot", "started", "token"), RAW_JSON)
        content = to_json(tree).encode()
        self.path.write_bytes(mutate_bytes(draw, content) if draw(st.integers(0, 3)) == 0 else content)
        note(repr(content[:2000]))
        self.bench("status", *self.where(data=False))
        self.bench("status", str(self.file), *self.where(), "--profile", "quick")
        self.path.unlink(missing_ok=True)


TARGETS: dict[str, type[Target]] = {
    "experiment files": ExperimentFiles,
    "recipes": Recipes,
    "--set and options": Options,
    "commands": Commands,
    "published tables": PublishedTables,
    "npz": Npz,
    "CIFAR and SVHN": Archives,
    "photographs": Photographs,
    "records": RecordFiles,
    "checkpoints": Checkpoints,
    "locks": LockFiles,
}


@contextlib.contextmanager
def workplace(root: Path) -> Iterator[None]:
    """Keep the user's cache and environment out; trials run in this process, and nothing is synced."""
    home = root / "home"
    home.mkdir()
    environment = {"XDG_CACHE_HOME": str(home), "HOME": str(home), "BENCH_DATA": str(root / "nowhere")}
    where = os.getcwd()
    os.chdir(home)
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch("bench.launch.placement.Pool", InThisProcess),
        mock.patch("bench.launch.verify.Pool", InThisProcess),
        mock.patch("os.fsync", return_value=None),
    ):
        try:
            yield
        finally:
            os.chdir(where)


def fuzz(name: str, cases: int, *, seed: int | None = None) -> int:
    """Try ``cases`` cases of a target; return how many were tried. Raises what the first failure raised."""
    tried = 0
    with tempfile.TemporaryDirectory(prefix="bench-fuzz-") as folder, workplace(Path(folder)):
        target = TARGETS[name](Path(folder) / "work")

        def attempt(data: Any) -> None:
            nonlocal tried
            tried += 1
            target.case(data.draw)

        attempt.__qualname__ = attempt.__name__ = "attempt_" + re.sub(r"\W", "_", name)
        options = settings(
            max_examples=cases,
            deadline=None,
            database=None,
            derandomize=seed is None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
            print_blob=False,
            report_multiple_bugs=False,
        )
        test = options(given(st.data())(attempt))
        (test if seed is None else hypothesis_seed(seed)(test))()
    return tried


def shares(cases: int) -> dict[str, int]:
    """Return how many of ``cases`` each target gets."""
    total = sum(target.share for target in TARGETS.values())
    return {name: max(1, math.ceil(cases * target.share / total)) for name, target in TARGETS.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness.fuzzing", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, help="other cases than the fixed ones")
    parser.add_argument("--only", choices=list(TARGETS), action="append")
    args = parser.parse_args(argv)
    counts: Counter[str] = Counter()
    failures = 0
    began = time.monotonic()
    for name, cases in shares(args.cases).items():
        if args.only and name not in args.only:
            continue
        start = time.monotonic()
        try:
            counts[name] = fuzz(name, cases, seed=args.seed)
            verdict = "ok"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failures += 1
            verdict = f"FAILED: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            import traceback

            traceback.print_exc()
        ends = ", ".join(f"{end}: {count}" for end, count in sorted(ENDS.items()))
        ENDS.clear()
        print(
            f"{name:20} {counts[name]:6} cases  {time.monotonic() - start:6.0f} s  {verdict}  ({ends})",
            flush=True,
        )
    print(f"{sum(counts.values())} cases, {failures} targets failed, {time.monotonic() - began:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())

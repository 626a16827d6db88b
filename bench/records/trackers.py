"""Records sent to an experiment tracker through the tracker's own writer: TensorBoard, W&B, MLflow, Aim.

What is sent is what ``epochs.jsonl`` and ``summary.json`` say, so a run that is followed and a run that is
sent afterwards look the same. ``sent.json`` in the tracker's folder remembers how many epochs of each trial
were sent: sending again adds what is new.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.experiments.labels import values_text
from bench.experiments.overrides import flatten
from bench.records.files import StoreError, write_atomic
from bench.records.store import Store

INTERVAL = 10.0  # seconds between two looks at the records while a run is followed
_NO_METRIC = {"epoch", "schema"}


@dataclass(frozen=True)
class Update:
    """A trial as a tracker gets it: the ``rows`` of new epochs; ``summary`` comes with the last row."""

    id: str
    name: str
    experiment: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None


def send(store: Store, names: Sequence[str], tracker: str, out: Path) -> tuple[int, int]:
    """Send what is new of some experiments' trials; return the numbers of trials and of epochs.

    ``tracker`` is a key of ``TRACKERS``, ``out`` the folder that it writes to. Raises ``InputError`` where
    its package is not installed.
    """
    writer = _writer(tracker)
    remembered = out / "sent.json"
    known: dict[str, Any] = _read_sent(remembered)
    trials = epochs = 0
    for name in names:
        for line in store.index(name):
            sent = _unsent(store, name, line, known)
            if sent is None:
                continue
            writer(sent, out)
            trials, epochs = trials + 1, epochs + len(sent.rows)
            done = sent.rows[-1]["epoch"] if sent.rows else known.get(f"{name}/{sent.id}", [0])[0]
            known[f"{name}/{sent.id}"] = [done, sent.summary is not None]
            write_atomic(remembered, json.dumps(known, indent=1).encode(), "--out")
    return trials, epochs


@contextlib.contextmanager
def following(store: Store, name: str, tracker: str | None, out: Path) -> Iterator[None]:
    """Send what is recorded of an experiment during the block, and the rest at its end (None: nothing).

    A fault of the tracker never ends the training: the first one is raised when the block has ended.
    """
    if tracker is None:
        yield
        return
    _writer(tracker)  # a package that is missing is told before anything is trained
    ended = threading.Event()
    faults: list[Exception] = []

    def send_once() -> None:
        try:
            send(store, [name], tracker, out)
        except Exception as error:
            faults.append(error)

    def send_until_ended() -> None:
        while not ended.wait(INTERVAL) and not faults:
            send_once()

    thread = threading.Thread(target=send_until_ended, name="tracker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if not faults:
            send_once()
    if faults:
        raise InputError(f"--log {tracker}: {faults[0]}; `bench log` sends the records later") from faults[0]


def _read_sent(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}; remove the folder to send everything anew") from None
    return content if isinstance(content, dict) else {}


def _unsent(
    store: Store, experiment: str, line: Mapping[str, Any], known: Mapping[str, Any]
) -> Update | None:
    """Return what is to be sent of the trial of an index line; None where nothing is new."""
    id = line.get("id")
    if not isinstance(id, str):
        return None
    try:
        trial, rows, summary = store.read_trial(id), store.epochs(id), store.summary(id)
    except StoreError:
        return None  # `bench report` names damaged records
    epochs, finished = known.get(f"{experiment}/{id}", [0, False])
    rows = [row for row in rows if row["epoch"] > epochs]
    if trial is None or (not rows and (finished or summary is None)):
        return None
    grid = values_text(line.get("grid") or {})
    arm = line.get("arm") or line.get("tunes") or line.get("role") or "needed"
    config = {
        key: value for key, value in flatten(dict(trial.get("config") or {})).items() if value is not None
    }
    return Update(id, f"{arm} {grid}".strip(), experiment, config, rows, summary)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an epoch or a summary by name."""
    return {
        key: float(value)
        for key, value in values.items()
        if key not in _NO_METRIC and isinstance(value, int | float) and not isinstance(value, bool)
    }


# -- the trackers: each imports its package when something is sent ----------------------------------------


def _tensorboard(sent: Update, out: Path) -> None:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(out / sent.experiment / sent.id), write_to_disk=True) as writer:
        if sent.rows and sent.rows[0]["epoch"] == 1:
            settings = json.dumps(sent.config, indent=1, default=str)
            writer.add_text("trial", f"{sent.name}\n\n```json\n{settings}\n```", 0)
        for row in sent.rows:
            for name, value in _numbers(row).items():
                writer.add_scalar(name, value, row["epoch"])
        if sent.summary is not None:
            last = sent.rows[-1]["epoch"] if sent.rows else 0
            for name, value in _numbers(sent.summary).items():
                writer.add_scalar(f"summary/{name}", value, last)


def _wandb(sent: Update, out: Path) -> None:
    import wandb

    out.mkdir(parents=True, exist_ok=True)
    names = {"project": sent.experiment, "name": sent.name, "id": sent.id}
    run = wandb.init(**names, config=dict(sent.config), dir=str(out), resume="allow", reinit=True)
    for row in sent.rows:
        run.log(_numbers(row), step=row["epoch"])
    if sent.summary is not None:
        run.summary.update({f"summary/{name}": value for name, value in _numbers(sent.summary).items()})
    run.finish()


def _mlflow(sent: Update, out: Path) -> None:
    import mlflow
    from mlflow.tracking import MlflowClient

    if not mlflow.is_tracking_uri_set():
        out.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{(out / 'mlflow.db').resolve()}")
    client = MlflowClient()
    known = client.get_experiment_by_name(sent.experiment)
    experiment = known.experiment_id if known else client.create_experiment(sent.experiment)
    found = client.search_runs([experiment], f"tags.trial = '{sent.id}'")
    tags = {"trial": sent.id}
    run = found[0] if found else client.create_run(experiment, run_name=sent.name, tags=tags)
    if not found:
        for key, value in sent.config.items():
            client.log_param(run.info.run_id, key, str(value)[:500])
    for row in sent.rows:
        for key, value in _numbers(row).items():
            client.log_metric(run.info.run_id, key, value, step=row["epoch"])
    if sent.summary is not None:
        for key, value in _numbers(sent.summary).items():
            client.log_metric(run.info.run_id, f"summary/{key}", value)
        status = "FINISHED" if sent.summary.get("status") == "done" else "FAILED"
        client.set_terminated(run.info.run_id, status)


def _aim(sent: Update, out: Path) -> None:
    import aim

    out.mkdir(parents=True, exist_ok=True)
    repo = aim.Repo.from_path(str(out), init=True)
    found = [run.run.hash for run in repo.query_runs(f"run.trial == '{sent.id}'").iter_runs()]
    run = aim.Run(run_hash=found[0] if found else None, repo=repo, experiment=sent.experiment)
    run.name = sent.name
    run["trial"] = sent.id
    run["config"] = {key: str(value) for key, value in sent.config.items()}
    for row in sent.rows:
        for key, value in _numbers(row).items():
            run.track(value, name=key, step=row["epoch"])
    if sent.summary is not None:
        run["summary"] = _numbers(sent.summary)
    run.close()


_Writer = Callable[[Update, Path], None]
TRACKERS: dict[str, tuple[str, _Writer]] = {  # name -> (the module that it needs, the function that sends)
    "tensorboard": ("tensorboardX", _tensorboard),
    "wandb": ("wandb", _wandb),
    "mlflow": ("mlflow", _mlflow),
    "aim": ("aim", _aim),
}


def _writer(tracker: str) -> _Writer:
    """Return the function that sends to a tracker; raises ``InputError`` where its package is missing."""
    module, writer = TRACKERS[tracker]
    if find_spec(module) is None:
        raise InputError(f"{tracker}: its package is not installed: pip install {module}")
    return writer

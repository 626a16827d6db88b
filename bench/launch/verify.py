"""Trains a recorded trial again and compares the records.

Records are equal except for clocks, or the difference is shown beside the deviation between seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import InputError
from bench.experiments import catalog, permission
from bench.experiments.config import TrialConfig
from bench.experiments.identity import identity, identity_document, raised_revisions
from bench.experiments.trials import Trial
from bench.launch.data_parallel import TRAIN_TOGETHER, device_groups
from bench.launch.execute import TRAIN, Task
from bench.launch.plan import plan, priorities
from bench.launch.pool import Pool
from bench.launch.progress import Progress
from bench.launch.session import Session, Stop
from bench.machine.devices import find_devices
from bench.machine.temporary import temporary_folder
from bench.records.store import Store
from bench.text import command, inert, percent, say

CLOCKS = {"seconds", "images_per_second", "wall_seconds", "peak_memory_bytes", "provenance"}


@dataclass(frozen=True)
class Difference:
    """One value that differs between two records."""

    where: str
    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.where}: {self.key} was {self.then!r}, is {self.now!r}"


def _compare(where: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    keys = [key for key in dict.fromkeys([*then, *now]) if key not in CLOCKS]
    return [Difference(where, k, then.get(k), now.get(k)) for k in keys if then.get(k) != now.get(k)]


def differences(then: Store, now: Store, id: str) -> list[Difference]:
    """Return the differences between two records of ``id``, but for clocks, memory and provenance."""
    found = _compare("trial.json", *(_completed(store.read_trial(id) or {}) for store in (then, now)))
    before, after = then.epochs(id), now.epochs(id)
    for a, b in zip(before, after, strict=False):
        found += _compare(f"epochs.jsonl, epoch {a['epoch']}", a, b)
    if len(before) != len(after):
        found.append(Difference("epochs.jsonl", "number of epochs", len(before), len(after)))
    return found + _compare("summary.json", then.summary(id) or {}, now.summary(id) or {})


def _completed(record: dict[str, Any]) -> dict[str, Any]:
    """Return ``record`` with the fields of its configuration that are newer than it, at their defaults."""
    try:
        return {**record, "config": TrialConfig.model_validate(record["config"]).dump()}
    except (KeyError, ValueError):
        return record


def seed_deviation(store: Store, config: TrialConfig) -> tuple[float | None, int]:
    """Return (standard deviation of the final accuracy between a configuration's seeds, their number)."""
    wanted = {**config.dump(), "seed": None}
    found = []
    for id in store.ids():
        try:
            record, summary = store.read_trial(id), store.summary(id)
        except InputError:
            continue
        config_then = _completed(record or {}).get("config")
        if summary is None or summary["status"] != "done" or not isinstance(config_then, dict):
            continue
        if {**config_then, "seed": None} == wanted and summary.get("final_test_acc") is not None:
            found.append(summary["final_test_acc"])
    return (statistics.stdev(found) if len(found) > 1 else None), len(found)


def _recorded_trial(store: Store, id: str) -> tuple[Trial, dict[str, Any]]:
    record = store.read_trial(id)
    if record is None:
        raise InputError(f"{store.folder(id)}: no trial.json: there is nothing to run again")
    try:
        config = TrialConfig.model_validate(record.get("config"))
        identity_document(config)  # also checks the configuration of a teacher
    except ValueError as error:
        reason = str(error).splitlines()
        raise InputError(
            f"{store.folder(id) / 'trial.json'}: not a configuration of this version ({reason[0]})"
        ) from None
    return Trial(id, config, dict(_table(record, "needs"))), record


def verify(
    text: str, results: Path, data_dir: Path, device: str | None = None, *, function: str = TRAIN
) -> int:
    """Train a recorded trial again in a temporary folder and print how the records compare.

    Args:
        text: The trial's id, the beginning of the id, or its folder.
        results: The results folder.
        data_dir: The data folder.
        device: "cpu" or "cuda:N"; None: the kind of device that is recorded.
        function: The training function, as "module:name".

    Returns:
        0 for identical records, 1 for different ones, 3 when stopped.

    Raises:
        InputError: The trial is not finished, its data is absent, or the same configuration has another id
            today: the data, the revision of an entry or the version changed.
    """
    store = Store(results)
    id = store.find(text)
    state = store.inspect(id)
    if state.status not in ("done", "diverged"):
        why = f" ({state.reason})" if state.reason else ""
        raise InputError(
            f"{store.folder(id)}: the trial is {state.status}{why}; only finished ones can be verified"
        )
    trial, record = _recorded_trial(store, id)
    permission.sealed(trial.config.network, f"{store.folder(id) / 'trial.json'}: network")
    _check_identity(store.folder(id), id, trial.config, record, data_dir)
    recorded_kind = _table(record, "execution").get("kind")
    devices = find_devices(device or ("cpu" if recorded_kind == "cpu" else None))
    workers = _table(record, "execution").get("workers", 1)
    if workers in range(2, 1025):
        devices, function = device_groups(devices, workers), TRAIN_TOGETHER if function == TRAIN else function
    devices = devices[:1]
    with temporary_folder("verify") as folder:
        again = Store(folder)
        stop = _run_again(store, again, trial, data_dir, devices, function)
        if stop.is_set():
            say(f"stopped ({stop.reason}); nothing was compared")
            return 3
        summary = again.summary(id)
        if summary is None or summary["status"] == "failed":
            log = again.log(id).read_text(errors="replace")[-4000:] if again.log(id).exists() else ""
            reason = (summary or {}).get("reason") or "no summary was written"
            _say_lines(f"{log}\nit could not be run again: {reason}")
            return 1
        for change in changes(record, again.read_trial(id) or {}):
            _say_lines(f"since then: {change}")
        return _say_differences(store, again, id, trial.config, differences(store, again, id))


def _check_identity(
    folder: Path, id: str, config: TrialConfig, record: Mapping[str, Any], data_dir: Path
) -> None:
    """Raise ``InputError`` where the data is absent or the configuration has another id today."""
    checksum = catalog.checksum(config.dataset, data_dir)
    if checksum is None:
        raise InputError(
            f"{data_dir}: the data set '{config.dataset['kind']}' is not here; see "
            f"`{command('data', 'list', '--data', data_dir)}`"
        )
    now, then = identity(config, checksum), _table(record, "provenance").get("data")
    if now == id:
        return
    if then is not None and then != checksum:
        kind = config.dataset["kind"]
        reason = f"the data set '{kind}' has changed: checksum {then} then, {checksum} now"
    else:
        other = "the data set, or a quantizer, network, strategy or data set's revision has changed since"
        reason = raised_revisions(config, id, checksum) or other
    raise InputError(f"{folder}: the same configuration is trial {now} today: {reason}")


def _table(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def _say_lines(text: str) -> None:
    """Print ``text``; control characters quoted from a record are made harmless for the terminal."""
    for line in text.splitlines():
        say(inert(line))


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a phrase for each change of code, versions, Python or platform between two records."""
    before, after = _table(then, "provenance"), _table(now, "provenance")
    if not before:
        return []
    known = ("commit", "bench", "python", "platform")
    pairs = [(key, before.get(key), after.get(key)) for key in known]
    versions = [_table(source, "versions") for source in (before, after)]
    packages = sorted({*versions[0], *versions[1]})
    pairs += [(name, *(of.get(name, "absent") for of in versions)) for name in packages]
    dirty = [when for when, source in (("then", before), ("now", after)) if source.get("dirty")]
    found = [f"{name} {was} is now {is_now}" for name, was, is_now in pairs if was != is_now]
    return found + [f"the code had uncommitted changes {when}" for when in dirty]


def _run_again(
    store: Store, again: Store, trial: Trial, data_dir: Path, devices: list[str], function: str
) -> Stop:
    """Train a trial in the store ``again``, with teacher and start from ``store`` where they are there."""
    trials: list[Trial] = []
    for needed in filter(None, dict.fromkeys(trial.needs.values())):  # a trial may be teacher and start
        if (store.folder(needed) / "weights.pt").exists() and store.status(needed) == "done":
            again.folder(needed).parent.mkdir(parents=True, exist_ok=True)
            again.folder(needed).symlink_to(store.folder(needed).resolve())
        trials.append(_recorded_trial(store, needed)[0])
    planned = plan([*trials, trial], again)
    stop, order = Stop(), priorities(planned)
    session = Session({}, {}, {}, again, Progress({}, {}, {}), stop)
    for p in planned:
        if p.action == "keep":
            session.known[p.id] = p.state.status
        else:
            task = Task(p.id, p.config.dump(), p.needs, str(again.root), str(data_dir), function=function)
            session.add(task, p.id, p.config.epochs, 1.0, order[p.id])
    with stop.watching():
        Pool(session, devices, 1).run()
    session.progress.close()
    session.close()
    refused = [outcome.reason for outcome in session.outcomes.values() if outcome.status == "refused"]
    if refused:
        raise InputError(refused[0])
    return stop


def _say_differences(
    store: Store, again: Store, id: str, config: TrialConfig, found: list[Difference]
) -> int:
    """Say how the records differ; return the exit status."""
    numbers = [d for d in found if not (d.where == "trial.json" and d.key == "execution")]
    if not found:
        say(f"identical: trial {id}, {len(again.epochs(id))} epochs, all records but clocks")
        return 0
    then_and_now = (_table(of.read_trial(id) or {}, "execution") for of in (store, again))
    for difference in _compare("other execution", *then_and_now):
        _say_lines(str(difference))
    if not numbers:
        say(f"identical numbers under another execution: trial {id}")
        return 0
    _say_lines(f"different: trial {id}, {len(numbers)} values; the first: {numbers[0]}")
    then, now = ((of.summary(id) or {}).get("final_test_acc") for of in (store, again))
    if then is not None and now is not None:
        text = f"final test accuracy {percent(then)} then, {percent(now)} now: {now - then:+.2f} points"
        deviation, count = seed_deviation(store, config)
        if deviation:
            text += f", {abs(now - then) / deviation:.2f} standard deviations between the {count} seeds "
            text += "in the results"
        elif count > 1:
            text += f" ({count} seeds in the results, no deviation between them)"
        else:
            text += " (no other seed in the results to compare it with)"
        _say_lines(text)
    return 1

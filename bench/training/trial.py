"""One trial from its configuration to its record: the one code path, whoever placed it."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from bench import datasets
from bench.errors import InputError
from bench.experiments.catalog import checksum
from bench.experiments.config import TrialConfig
from bench.experiments.start import ROLE, needed_trial
from bench.layers.low_precision import strip
from bench.networks import costs
from bench.randomness import Clock
from bench.records.store import Store
from bench.text import clean, duration, first_few
from bench.training import checkpoint, execution, setup
from bench.training.distributed import SOLO, Team
from bench.training.divergence import not_finite
from bench.training.job import Job
from bench.training.loop import Run, train
from bench.training.provenance import provenance
from bench.training.resume import resume
from bench.training.start import Start, beginning
from bench.training.start import read as read_start

# what loading another network's weights raises
_UNFIT = (RuntimeError, ValueError, TypeError, AttributeError)
CLOCKS = {"seconds", "images_per_second"}  # of an epoch's line: left out when records are compared
OWNER = "trial"  # the key of the id in checkpoints and final weights
log = logging.getLogger("bench.trial")


def run_trial(job: Job, team: Team = SOLO) -> str:
    """Train one trial, from its beginning or its last checkpoint, and write its record into its store.

    The caller holds the trial's lock. Each worker of a ``team`` calls this function with a device of its own;
    ``store``, ``stop`` and ``on_epoch`` of the first worker alone are used.

    Returns "done", "diverged" or "stopped" (to be resumed); whatever else goes wrong is raised.
    """
    config, store, trial_id = job.config, job.store, job.trial_id
    needs = {**job.needs, **needed_trial(config.start)}
    recorded = team.from_first(lambda: store.read_trial(trial_id))
    begun_with = _recorded_data(recorded, store.folder(trial_id) / "trial.json")
    arrays = team.agree(lambda: datasets.load(config.dataset, job.data_dir, begun_with))
    state = team.from_first(lambda: checkpoint.load(store.checkpoint(trial_id), team.reader(job.device)))
    run, how, changed = _prepare(job, needs, arrays, recorded, team)
    source = provenance(checksum(config.dataset, job.data_dir))
    team.check_same(
        data=source["data"],
        number_of_training_images=run.data.train_count,
        number_of_test_images=run.data.test_count,
        configuration=repr(sorted(config.dump().items())),
        version_of_torch=torch.__version__,
    )
    if team.first and (recorded is None or (state is None and changed)):
        about = {"config": config.dump(), "execution": how, "provenance": source}
        store.write_trial(trial_id, about | ({"needs": needs} if needs else {}))
    known = team.from_first(lambda: store.epochs(trial_id))
    taken_up = _resume_from(run, state, len(known), store, trial_id)
    if team.first and (taken_up or known):
        store.append_resume(trial_id, _resume_line(run, how, changed, source))
    _announce(_notes(run, how, job.device), config, job.on_epoch if team.first else None)
    recorder = _Recorder(job, known)
    execution.reset_peak_memory(job.device)

    def save(run: Run) -> None:
        """Write a checkpoint of all workers' state, and before it the diagnostics that it relies on."""
        state = run.state()
        if team.first:
            run.diagnostics.save(store.diagnostics(trial_id))
            checkpoint.save(store.checkpoint(trial_id), {**state, OWNER: trial_id})

    outcome = train(run, stop=job.stop, save=save, record=recorder if team.first else lambda line: None)
    if outcome != "stopped" and team.first:
        _finish(job, run, recorder, outcome)
    return outcome


def _resume_from(run: Run, state: dict[str, Any] | None, epochs: int, store: Store, trial_id: str) -> bool:
    """Put ``run`` where the checkpoint ``state`` stands; return whether one fits the recorded ``epochs``."""
    if state is None:
        return False
    _check_owner(state, trial_id, store.checkpoint(trial_id))
    if isinstance(state.get("step"), int) and state["step"] >= (epochs + 1) * run.steps_per_epoch:
        log.warning("lines of epochs before the checkpoint are gone; the trial begins anew")
        return False
    resume(run, state, store.checkpoint(trial_id))
    run.diagnostics.load(store.diagnostics(trial_id), run.step // run.steps_per_epoch)
    return True


def _check_owner(state: dict[str, Any], trial_id: str, path: Path) -> None:
    """Take the owner's id out of a file's ``state``; raises ``InputError`` where it is another trial's.

    Earlier versions wrote none.
    """
    owner = state.pop(OWNER, trial_id)
    if owner != trial_id:
        raise InputError(
            f"{path}: it belongs to the trial {clean(owner, 40)}. Put the trial's own file back, "
            "or begin anew with --fresh."
        )


def _announce(
    notes: Iterable[str], config: TrialConfig, on_epoch: Callable[[dict[str, Any]], None] | None
) -> None:
    """Log how a trial is trained and what it begins with, and hand on the notes, which all workers make."""
    for note in list(notes):
        log.warning("%s", note)
        if on_epoch is not None:
            on_epoch({"note": note})
    log.info("%s", beginning(config))


def _resume_line(
    run: Run, how: Mapping[str, Any], changed: list[str], source: Mapping[str, Any]
) -> dict[str, Any]:
    """Log and return the line of ``resumes.jsonl`` for a trial that goes on where ``run`` stands."""
    log.info("resumed at step %d of %d", run.step, run.total_steps)
    return {
        "step": run.step,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "other_hardware": changed,
        "pack": how["pack"],  # not a part of other hardware: no number depends on it
        "provenance": source,
    }


def _recorded_data(recorded: Mapping[str, Any] | None, path: Path) -> str | None:
    """Return the checksum of the data of a begun trial; raises ``InputError`` for a record without one."""
    if recorded is None:
        return None
    provenance = recorded.get("provenance")
    data = provenance.get("data") if isinstance(provenance, dict) else None
    for key, good in (
        ("provenance.data", isinstance(data, str)),
        ("execution", isinstance(recorded.get("execution"), dict)),
    ):
        if not good:
            raise InputError(f"{path}: {key}: missing or damaged. Begin the trial anew with --fresh.")
    return data


def _prepare(
    job: Job,
    needs: Mapping[str, str],
    arrays: datasets.Loaded,
    recorded: Mapping[str, Any] | None,
    team: Team,
) -> tuple[Run, dict[str, Any], list[str]]:
    """Return the run at its first step, its execution, and what differs from the record."""
    config, store, device = job.config, job.store, job.device
    how = execution.decide(config, 0, device)
    execution.apply(how)  # before the first tensor operation: threads do not depend on the steps
    clock = Clock(config.seed, device)
    data = setup.make_batches(config, arrays, clock, team)
    here = execution.decide(config, config.epochs * data.steps_per_epoch, device, team.size, job.pack)
    how, changed = execution.resume_execution(
        recorded.get("execution") if recorded else None,
        here,
        job.accept_other_hardware,
        str(store.folder(job.trial_id)),
    )
    execution.apply(how)  # with what its mode needs
    reader = team.reader(device)
    weights = team.from_first(
        lambda: {role: final_weights(store, needed, role, reader) for role, needed in needs.items()}
    )
    start = None
    if ROLE in needs:
        start = Start(weights.pop(ROLE), str(_weights_path(store, needs[ROLE])))
    elif config.start is not None:
        given = config.start
        start = team.from_first(lambda: read_start(given, job.data_dir))

    def make(mode: str) -> Run:
        return setup.make_run(config, data, clock, weights=weights, start=start, mode=mode, team=team)

    try:
        run = make(how["mode"])
    except torch.OutOfMemoryError:
        raise
    except _UNFIT as error:
        if not weights:
            raise
        files = ", ".join(str(_weights_path(store, needed)) for needed in needs.values())
        raise InputError(
            f"{files}: weights of another network ({clean(error, 300)}); train it anew with --fresh"
        ) from None
    if how["mode"] != "eager" and recorded is None:
        try:
            run.rehearse()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of CUDA, or of the compiler
            how = execution.fell_back(how, f"the step cannot be {how['mode']} ({clean(error, 200)})")
            run = make(how["mode"])
    return run, how, changed


def _notes(run: Run, how: Mapping[str, Any], device: str) -> Iterator[str]:
    """Yield what a person should know of how a trial is trained, before it is."""
    if "fallback" in how:
        yield f"{how['fallback']}: trained in eager mode, which takes longer"
    if execution.slow_precision(run.config, how, device):
        seconds = run.seconds_per_step()
        left = duration(seconds * (run.total_steps - run.step))
        yield (
            f"this CPU has no instructions for bf16 and emulates it: {seconds:.2g} s a step, about "
            f'{left} for the rest of the trial. precision = "fp32" takes about a tenth of that.'
        )


def _weights_path(store: Store, trial_id: str) -> Path:
    return store.folder(trial_id) / "weights.pt"


def final_weights(store: Store, trial_id: str, role: str, device: str) -> dict[str, Any]:
    """Return the final weights of a finished trial; raises ``InputError`` where they are not there."""
    path = _weights_path(store, trial_id)
    state = checkpoint.load(path, device)
    if state is None:
        what = "are damaged" if path.exists() else "are not here (records travel without weights)"
        raise InputError(f"{path}: the weights of the {role} {trial_id} {what}; train it again with --fresh")
    _check_owner(state, trial_id, path)
    weights = state.get("network")
    if not isinstance(weights, dict) or not all(torch.is_tensor(value) for value in weights.values()):
        raise InputError(f"{path}: network: no weights; train it again with --fresh")
    if lost := not_finite(weights.items()):
        raise InputError(
            f"{path}: weights of the {role} that are not finite: {first_few(lost)}; "
            "train it again with --fresh"
        )
    return weights


class _Recorder:
    """Appends epoch lines; what a resumed trial trains again is compared with the line that is there."""

    def __init__(self, job: Job, known: list[dict[str, Any]]) -> None:
        self.store, self.trial_id, self.lines, self.on_epoch = job.store, job.trial_id, known, job.on_epoch

    def __call__(self, line: dict[str, Any]) -> None:
        position = line["epoch"] - 1
        if position < len(self.lines):
            if comparable(self.lines[position]) != comparable(line):
                log.warning("epoch %d came out otherwise than before the interruption", line["epoch"])
                self.store.append_resume(
                    self.trial_id, {"epoch": line["epoch"], "differs_from": self.lines[position]}
                )
                self.lines[position:] = [line]
                self.store.write_epochs(self.trial_id, self.lines)
        else:
            self.lines.append(line)
            self.store.append_epoch(self.trial_id, line)
        if self.on_epoch is not None:
            self.on_epoch(line)


def comparable(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return an epoch's line without its clocks: what two equal runs have in common."""
    return {key: value for key, value in line.items() if key not in CLOCKS}


def _finish(job: Job, run: Run, recorder: _Recorder, outcome: str) -> None:
    """Write the final weights and, last, the summary; remove the checkpoints."""
    store, trial_id = job.store, job.trial_id
    run.clock.set_factor(0.0)
    run.diagnostics.save(store.diagnostics(trial_id))
    if outcome == "done":
        weights = {"network": strip(run.network).state_dict(), OWNER: trial_id}
        checkpoint.save(_weights_path(store, trial_id), weights)
    summary = summarize(recorder.lines, job.config, run, outcome)
    store.write_summary(trial_id, summary)
    checkpoint.discard(store.checkpoint(trial_id))
    if outcome == "done":
        (store.folder(trial_id) / "weights.pt.previous").unlink(missing_ok=True)


def summarize(lines: list[dict[str, Any]], config: TrialConfig, run: Run, status: str) -> dict[str, Any]:
    """Return ``summary.json`` from the epochs' lines.

    Final, selected and best accuracy are of the deployed network at epochs whose factor was 0 and that were
    evaluated. A branch that is kept to the end (``keep = true``) has none of them: its
    ``final_test_acc_expanded`` is an upper bound. With ``evaluate_test = false`` all of the test images'
    columns are null, and ``final_val_acc`` is what the trial is judged by.

    Args:
        lines: The lines of ``epochs.jsonl``.
        config: The trial's.
        run: The run, as it ended.
        status: "done" or "diverged".
    """
    deployed = [line for line in lines if line["factor"] == 0.0 and line["test_acc"] is not None]
    last = lines[-1] if lines[-1]["factor"] == 0.0 and status == "done" else None
    final = last if last and last["test_acc"] is not None else None
    best = max(deployed, key=lambda line: line["test_acc"], default=None)
    chosen = [line for line in deployed if line["val_acc"] is not None]
    selected = max(chosen, key=lambda line: line["val_acc"], default=None)
    cost = costs(run.network)
    flags = ["at_chance"] if status == "done" and run.accuracy.at_chance() else []
    return {
        "status": status,
        "reason": run.problem,
        "final_test_acc": final and final["test_acc"],
        "final_test_acc_top5": final and final["test_acc_top5"],
        "final_val_acc": last and last["val_acc"],
        "final_test_acc_expanded": lines[-1]["test_acc_expanded"] if status == "done" else None,
        "selected_test_acc": selected and selected["test_acc"],
        "selected_epoch": selected and selected["epoch"],
        "best_test_acc": best and best["test_acc"],
        "best_epoch": best and best["epoch"],
        "wall_seconds": run.wall_seconds,
        "peak_memory_bytes": run.peak_memory(),
        "model_bits": cost.model_bits,
        "bit_operations": cost.bit_operations,
        "train_flops": run.train_flops(run.step),
        "flags": flags,
        "warnings": [
            f"after the first epoch all activations of {name} were one level" for name in run.one_level
        ],
    }

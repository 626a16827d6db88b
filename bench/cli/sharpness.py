"""``bench sharpness``. torch is imported."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from bench.cli import FAILED, OK
from bench.cli.screen import Screen
from bench.errors import InputError
from bench.experiments.labels import label
from bench.machine.folders import resolve_data_dir
from bench.records.files import json_document, write_atomic
from bench.records.store import Store
from bench.text import clean, say
from bench.training import sharpness
from bench.training.minima import Settings, measure_experiment


def sharpness_command(args: argparse.Namespace) -> int:
    """Measure the minima of one trial or two and the barrier between two; return the exit status."""
    if bool(args.trials) == bool(args.experiment):
        raise InputError("sharpness: trials, or --experiment NAME")
    if args.experiment:
        return _of_experiment(args)
    if args.only:
        raise InputError("--only: needs --experiment")
    if len(args.trials) > 2:
        raise InputError("sharpness: one trial or two; a barrier lies between two")
    torch.set_num_threads(1)
    store, data_dir = Store(args.results), resolve_data_dir(args.data)
    ids = [store.find(trial) for trial in args.trials]
    subjects = [sharpness.subject(store, id, data_dir, args.images) for id in ids]
    found: dict[str, Any] = {
        "schema": 1,
        "noise_on": "stored" if args.stored else "quantized",
        "draws": args.draws,
        "images": sum(len(labels) for _, labels in subjects[0].images),
        "trials": [sharpness.measure(s, args.size, args.draws, stored=args.stored) for s in subjects],
    }
    screen = Screen.of(sys.stdout)
    network, loss = label("networks", subjects[0].config.network), subjects[0].config.loss.replace("_", " ")
    say(f"{network}, {loss}; {found['images']} training images without augmentation\n")
    say(screen.table(*_table(found, args.size), right=range(2, 3 + len(args.size))))
    say(f"\nRise of the loss under noise on the {found['noise_on']} weights, mean of {args.draws} draws.")
    say("The noise of a filter has the stated share of the norm of its weights.")
    if len(subjects) == 2:
        losses = sharpness.path_losses(subjects[0], subjects[1], args.points)
        found["path"] = losses
        found["barrier"] = sharpness.barrier(losses)
        say(f"\nBarrier on the line between both: {found['barrier']:.4g}")
        say("Losses on the line: " + " ".join(f"{loss:.4g}" for loss in losses))
    if args.json is not None:
        write_atomic(args.json, json_document(found), "--json")
    return OK


def _of_experiment(args: argparse.Namespace) -> int:
    """Measure an experiment's final trials into its folder; return the exit status."""
    if args.json is not None:
        raise InputError("--json: the numbers of an experiment go to its sharpness.jsonl")
    torch.set_num_threads(1)
    store, name = Store(args.results), Path(args.experiment).stem
    settings = Settings(tuple(args.size), args.draws, args.images, args.points, args.stored)
    problems = measure_experiment(
        store, name, settings, resolve_data_dir(args.data), only=args.only, tell=say
    )
    say(f"{clean(store.experiment_folder(name) / 'sharpness.jsonl')}")
    for problem in problems:
        say(f"bench: not measured: {problem}", sys.stderr)
    return FAILED if problems else OK


def _table(found: dict[str, Any], sizes: list[float]) -> tuple[list[str], list[list[str]]]:
    header = ["trial", "weights", "loss", *(f"rise at {size:g}" for size in sizes)]
    rows = []
    for trial in found["trials"]:
        for when in ("trained", "untrained"):
            numbers = trial[when]
            if numbers is None:
                rows.append([trial["id"], "untrained", "given", *[""] * len(sizes)])
                continue
            rises = [f"{rise['mean']:.4g} ± {rise['error']:.2g}" for rise in numbers["rises"]]
            rows.append([trial["id"], when, f"{numbers['loss']:.4g}", *rises])
    return header, rows

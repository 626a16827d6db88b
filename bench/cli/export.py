"""``bench export``. torch is imported."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cli import FAILED, OK
from bench.errors import InputError
from bench.machine.folders import resolve_data_dir
from bench.records.files import write_atomic
from bench.records.store import Store
from bench.text import plural, say
from bench.training import deploy
from bench.training.deploy import Checked, Deployment


def export_command(args: argparse.Namespace) -> int:
    """Write a finished trial's network to a file, check it on the evaluation's images; return the status.

    With ``--check`` nothing is written, and the file that is there is checked.
    """
    store = Store(args.results)
    id = store.find(args.trial)
    path: Path = args.out or store.folder(id) / f"network{deploy.SUFFIXES[args.format]}"
    if args.check and (args.force or args.latent):
        raise InputError("--check writes no file: leave out --force and --latent")
    if path.exists() and not args.force and not args.check:
        raise InputError(f"{path}: exists; give another name with --out, or --force to replace it")
    if args.images is not None and args.images.exists() and not args.force:
        raise InputError(f"--images {args.images}: exists; give another name, or --force to replace it")
    if args.integers and args.format not in ("safetensors", "packed"):
        raise InputError(
            f"--integers: a {args.format} file does not run on integers; safetensors and packed do"
        )
    if args.accept_ties and args.format in deploy.BIT_FOR_BIT and not args.integers:
        raise InputError(f"--accept-ties: a {args.format} file is compared bit for bit; it has no ties")
    torch.set_num_threads(1)
    deployment = deploy.prepare(store, id, resolve_data_dir(args.data))
    if args.images is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **deploy.evaluated_arrays(deployment))
        write_atomic(args.images, buffer.getvalue(), "--images")
        say(f"{args.images}: the {_kind(deployment)} as the network reads them, labels and logits")
    if args.check:
        if deployment.images is None:
            raise InputError("--check: the data set is not here (--data)")
        about = deploy.found_at(args.format, path)
    else:
        about = deploy.write(deployment, args.format, path, latent=args.latent)
    say(f"{path}: {about['file_bytes']} bytes")
    if about.get("plain_weights"):
        names = ", ".join(about["plain_weights"])
        say(f"weights without a node of QONNX, since none has their levels: {names}")
    if deployment.images is None:
        store.append_export(id, about)
        say("not checked: the data set is not here (--data)")
        return OK
    checked = deploy.check(deployment, args.format, path)
    status, verdict = _recorded(args, store, id, about, checked)
    say(verdict)
    if args.integers:
        status = max(status, _check_on_integers(args, store, id, deployment, path, about))
    return status


def _recorded(
    args: argparse.Namespace, store: Store, id: str, about: dict[str, Any], checked: Checked
) -> tuple[int, str]:
    """Record what a check found of the file that ``about`` describes; return the exit status and words."""
    passed, but_for_ties = (checked.passed(about["format"], accept_ties=ties) for ties in (False, True))
    store.append_export(id, {**about, **vars(checked), "passed": passed})
    status = OK if passed or (args.accept_ties and but_for_ties) else FAILED
    return status, _verdict(checked, passed, but_for_ties)


def _check_on_integers(
    args: argparse.Namespace, store: Store, id: str, deployment: Deployment, path: Path, about: dict[str, Any]
) -> int:
    """Check the file once more with its low-precision layers on integers; return the exit status."""
    layers = deploy.layers_on_integers(path)
    checked = deploy.check(deployment, "integers", path)
    about = {**about, "format": deploy.ON_INTEGERS.format(args.format), **layers}
    status, verdict = _recorded(args, store, id, about, checked)
    how = f" ({layers['instructions']})" if layers["instructions"] else ""
    say(f"on integers{how}: {layers['integer_layers']} of {plural(layers['layers'], 'layer')}")
    for reason in dict.fromkeys(layers["in_float32"].values()):
        names = [name for name, why in layers["in_float32"].items() if why == reason]
        say(f"in float32: {', '.join(names)}: {reason}")
    say(f"{verdict}; {checked.latency_ms:.2f} ms an image")
    return status


def _kind(evaluated: Deployment | Checked) -> str:
    return "held-out images" if evaluated.held_out else "test images"


def _verdict(checked: Checked, passed: bool, but_for_ties: bool) -> str:
    """Return what the check found; ``but_for_ties``: whether it passed with ``--accept-ties``."""
    if checked.equal_logits:
        same = "all logits equal the trained network's, bit for bit"
    elif checked.other_predictions:
        verb = "differs" if checked.other_predictions == 1 else "differ"
        same = f"{plural(checked.other_predictions, 'prediction')} {verb} from the trained network's"
    else:
        same = "all predictions are the trained network's"
    if not checked.equal_logits:
        same += f"; logits are off by at most {checked.difference:.1e}"
    if checked.moved:
        moved = plural(checked.moved, "image")
        same += f", except those of {moved} with an activation that lies on a threshold but for rounding"
    right = f"{checked.correct} of {checked.seen} {_kind(checked)} right ({checked.accuracy:.2f} %)"
    text = f"read again: {right}; {same}"
    if checked.recorded is not None and checked.accuracy != checked.recorded:
        text += f"\nthe record says {checked.recorded:.2f} %"
    if passed:
        return text
    if but_for_ties:
        return (
            f"{text}\nthe file is the trained network but for rounding: each image whose prediction differs "
            "has an activation on a threshold or two logits that are equal but for rounding; "
            "--accept-ties lets such predictions pass"
        )
    off = f"{plural(checked.wrong, 'image')} {'is' if checked.wrong == 1 else 'are'} off without a cause"
    cause = off if checked.wrong else "its logits differ"
    return f"{text}\nthe file is not the trained network: {cause}"

"""Nodes of Ray's test cluster here, one that trains killed: ``python tests/robustness/nodes.py FOLDER``.

The results end up in ``FOLDER/results``, those of an undisturbed trial in ``FOLDER/calm``. With ``--apart``
the nodes do not see the results folder (a mount of their own hides it; needs the right to mount): it is as on
machines that share no disk. With ``--join`` a node is added as soon as a trial has a checkpoint, and the
others are killed when the new one trains. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]
os.environ["PYTHONPATH"] = str(ROOT)
os.environ["OMP_NUM_THREADS"] = "1"

from tests.robustness import disturbance as d  # noqa: E402

_CLONE_NEWNS = 0x00020000


def hide(folder: Path) -> int:
    """Hide ``folder`` from this process and those that it starts; return a process that still sees it."""
    outside = subprocess.Popen(["sleep", "3600"])
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        raise PermissionError("unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
    return outside.pid


def write_experiment(file: Path, epochs: int, trials: int) -> None:
    """Write an experiment whose trials differ in the seed."""
    base = d.make_config().dump()
    lines = [
        'title = "nodes"',
        "[defaults]",
        'dataset = "digits"',
        'network = "svhn_convnet"',
        f"epochs = {epochs}",
    ]
    lines += [f"{key} = {base[key]}" for key in ("batch_size", "train_size", "width")]
    lines += ["[grid]", f"seed = {list(range(trials))}"]
    lines += ["[[arms]]", 'name = "arm"', 'quantizer = "dorefa"', 'bits = "1/1"']
    file.write_text("\n".join(lines) + "\n")


def trains(node: Any) -> bool:
    """Return whether a trial's process is a child of the node's raylet."""
    raylet = next(process.process.pid for found in node.all_processes.values() for process in found)
    children = subprocess.run(
        ["ps", "--ppid", str(raylet), "-o", "args"], capture_output=True, text=True, check=False
    )
    return "ImplicitFunc.train" in children.stdout


def wait(bench: subprocess.Popen[str], until: Callable[[], object]) -> bool:
    """Wait for ``until``; return whether it came while ``bench`` was still running."""
    while bench.poll() is None:
        if until():
            return True
        time.sleep(0.05)
    return False


def bench_command(args: argparse.Namespace, file: Path, address: str) -> list[str]:
    """Return the command that trains ``file`` on the cluster."""
    program = str(ROOT / "tests" / "robustness" / "bench_with_faults.py")
    where = ["--results", str(args.folder / "results"), "--address", address, "--device", "cpu"]
    return [sys.executable, program, "run", str(file), *where]


def disturb(cluster: Any, nodes: list[Any], bench: subprocess.Popen[str], results: Path, join: bool) -> Any:
    """Kill what trains once there is a checkpoint; return (nodes killed, whether the added node trained)."""
    if not wait(bench, lambda: any(results.glob("trials/*/checkpoint.pt"))):
        return 0, False
    joined = False
    if join:
        added = cluster.add_node(num_cpus=1)
        joined = wait(bench, lambda: trains(added))
    wait(bench, lambda: any(trains(node) for node in nodes))
    doomed = [node for node in nodes if trains(node)][: None if join else 1]
    for node in doomed:
        cluster.remove_node(node, allow_graceful=False)
    return len(doomed), joined


def main() -> int:
    """Do it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--join", action="store_true")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    results = args.folder / "results"
    results.mkdir(parents=True)
    file = args.folder / "nodes.toml"
    write_experiment(file, args.epochs, args.trials)
    os.environ[d.SETTINGS] = json.dumps({"every_steps": 3})
    token = Path.home() / ".ray" / "auth_token"
    os.environ.setdefault("RAY_AUTH_MODE", "token" if token.exists() else "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    outside = 0
    try:
        prefix = []
        if args.apart:
            outside = hide(results)
            prefix = ["nsenter", "-t", str(outside), "-m"]
            results = Path(f"/proc/{outside}/root{results}")
        nodes = [cluster.add_node(num_cpus=1) for _ in range(args.nodes)]
        command = [*prefix, *bench_command(args, file, cluster.address)]
        bench = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
        )
        killed, joined = disturb(cluster, nodes, bench, results, args.join)
        output, _ = bench.communicate()
        said = {"status": bench.returncode, "killed": killed, "joined": joined, "output": output}
        print(json.dumps({**said, "seen": sorted(os.listdir(args.folder / "results"))}))
    finally:
        cluster.shutdown()
        if outside:
            os.kill(outside, 9)
    return 0


if __name__ == "__main__":
    sys.exit(main())

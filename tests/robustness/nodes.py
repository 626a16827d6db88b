"""Two nodes of Ray's own test cluster on this machine, the one that trains killed: ``python tests/nodes.py FOLDER [--apart]``.

The results end up in ``FOLDER/results``, those of an undisturbed trial in ``FOLDER/calm``. With ``--apart`` the nodes do
not see the results folder (a mount of their own hides it; needs the right to mount): it is as on machines that share no
disk. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]
os.environ["PYTHONPATH"] = str(ROOT)
os.environ["OMP_NUM_THREADS"] = "1"

import disturbance as d  # noqa: E402

_CLONE_NEWNS = 0x00020000


def hide(folder: Path) -> int:
    """Hide ``folder`` from this process and those that it starts; return a process that still sees it."""
    outside = subprocess.Popen(["sleep", "3600"])
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS) != 0:
        raise PermissionError("unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(folder)], check=True)
    return outside.pid


def write_experiment(file: Path, epochs: int) -> None:
    """Write the experiment of one trial."""
    base = d.make_config().dump()
    lines = [
        'title = "nodes"',
        "[defaults]",
        'dataset = "digits"',
        'network = "svhn_convnet"',
        f"epochs = {epochs}",
    ]
    lines += [f"{key} = {base[key]}" for key in ("batch_size", "train_size", "width")]
    lines += ["[[arms]]", 'name = "arm"', 'quantizer = "dorefa"', 'bits = "1/1"']
    file.write_text("\n".join(lines) + "\n")


def trains(node: object) -> bool:
    """Return whether a trial's process is a child of the node's raylet."""
    raylet = next(process.process.pid for found in node.all_processes.values() for process in found)  # type: ignore[attr-defined]
    children = subprocess.run(
        ["ps", "--ppid", str(raylet), "-o", "args"], capture_output=True, text=True, check=False
    )
    return "ImplicitFunc.train" in children.stdout


def main() -> int:
    """Do it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--epochs", type=int, default=40)
    args = parser.parse_args()
    results = args.folder / "results"
    results.mkdir(parents=True)
    file = args.folder / "nodes.toml"
    write_experiment(file, args.epochs)
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
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        command = [
            *prefix,
            sys.executable,
            str(ROOT / "tests" / "robustness" / "bench_with_faults.py"),
            "run",
            str(file),
        ]
        command += [
            "--results",
            str(args.folder / "results"),
            "--address",
            cluster.address,
            "--device",
            "cpu",
        ]
        bench = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
        )
        while bench.poll() is None and not any(results.glob("trials/*/checkpoint.pt")):
            time.sleep(0.05)
        time.sleep(0.5)
        killed = next((node for node in nodes if trains(node)), None)
        if killed is not None:
            cluster.remove_node(killed, allow_graceful=False)
        output, _ = bench.communicate()
        seen = sorted(os.listdir(args.folder / "results"))
        print(
            json.dumps(
                {"status": bench.returncode, "killed": killed is not None, "seen": seen, "output": output}
            )
        )
    finally:
        cluster.shutdown()
        if outside:
            os.kill(outside, 9)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``bench doctor``: what this machine has, what is slow on it, and which promises hold on it."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from bench.cli import FAILED, OK
from bench.doctor import machine
from bench.machine.devices import device_name, find_devices
from bench.machine.folders import resolve_data_dir
from bench.text import inert, kind_and_reason, say


def doctor_command(args: argparse.Namespace) -> int:
    """Print facts, remarks, checks and throughput; return 1 where a check failed, else 0."""
    device = find_devices(args.device)[0]
    data_dir = resolve_data_dir(args.data)
    found = machine.facts(args.results, data_dir)
    for line in machine.lines(found, data_dir):
        say(inert(line))
    remarks = machine.remarks(found)
    if remarks:
        say("\nWhat will be slow here, and why:")
    for remark in remarks:
        say(inert(f"- {remark}"))
    checks: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    if not args.facts:
        checks, rows = _run_checks(device)
    if args.json is not None:
        from bench.speed.measure import write_json

        more = {"machine": found, "remarks": remarks, "checks": checks}
        write_json(args.json, device_name(device), rows=rows, **more)
        say(inert(f"written: {args.json}"))
    return FAILED if any(check["status"] == "failed" for check in checks) else OK


def _run_checks(device: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the checks and measure every mode, a line each; return what was found."""
    from bench.doctor import checks
    from bench.speed.measure import text
    from bench.training import execution

    begin = time.perf_counter()
    execution.quiet_profiler()
    say(f"\nChecks on {device}, {checks.STEPS} training steps each:")
    found = []
    for check in checks.checks(device):
        found.append(asdict(check))
        say(inert(f"{check.status:8s} {check.name}: {check.found} ({check.seconds:.0f} s)"))
    say(
        f"\nA training step in every mode on {device}, batches of 128 images; the ratio is to full precision:"
    )
    name = device_name(device)
    rows: list[dict[str, Any]] = []
    try:
        for row in checks.throughput(device):
            rows.append({"device": name, **row})
            if row.get("kind") is None:
                say(f"{text(row)}  {row['peak_memory_bytes'] / 2**20:,.0f} MiB")
    except Exception as error:  # of a compiler or a device: what was measured before is kept
        reason = kind_and_reason(error)
        found.append(asdict(checks.Check("throughput", "failed", reason)))
        say(inert(f"failed   throughput: {reason}"))
    say(f"\n{time.perf_counter() - begin:.0f} s")
    return found, rows

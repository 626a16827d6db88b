"""A small registry and a writer of experiment files, independent of the shipped networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bench import registry
from bench.registry import Entry

NETWORKS = {
    "toy": Entry(
        "networks",
        "toy",
        "bench.networks.toy",
        "Toy",
        "a network",
        options={
            "shortcut": {"type": "str", "choices": ["A", "B"], "default": "A"},
            "depth": {"type": "int", "default": 3, "min": 1},
        },
        facts={"input_size": 8},
    ),
    "plainnet": Entry(
        "networks", "plainnet", "bench.networks.toy", "Plain", "another", facts={"input_size": 8}
    ),
}


def use_toy_networks(monkeypatch) -> None:
    """Make the networks those of this module; every other group stays as shipped."""
    real = registry.entries

    def entries(group: str) -> Mapping[str, Entry]:
        return NETWORKS | {"python": real(group)["python"]} if group == "networks" else real(group)

    monkeypatch.setattr(registry, "entries", entries)


BASE = """
title = "A title"
[defaults]
dataset = "digits"
network = "toy"
epochs = 12
batch_size = 100
"""

ARMS = """
[[arms]]
name = "plain"
quantizer = "dorefa"
bits = "1/1"
[[arms]]
name = "branch"
baseline = "plain"
quantizer = "dorefa"
bits = "1/1"
strategy = { kind = "progressive", merge = "sum", factor = { kind = "cosine", until = 0.5 } }
"""


def write(folder: Path, text: str = BASE + ARMS, name: str = "some.toml") -> Path:
    """Write an experiment file and return its path."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path

"""What it takes to train one trial: the one value that every way of training it hands on. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.experiments.config import TrialConfig
from bench.records.store import Store


def never() -> bool:
    """Return False: the ``stop`` of a trial that nobody stops."""
    return False


@dataclass(frozen=True)
class Job:
    """One trial to train, the folders it reads and writes, and who hears of it.

    ``needs`` are roles ("teacher", "start", "initial") and the ids of finished trials in ``store``. ``stop``
    is asked after each step whether to stop at a checkpoint. ``on_epoch`` is given each epoch's line, and
    before the first one ``{"note": text}`` with what a person should know of how the trial is trained.
    ``pack`` says for the record how trials share the device.
    """

    config: TrialConfig
    trial_id: str
    needs: Mapping[str, str]
    store: Store
    data_dir: Path
    device: str = "cpu"  # "cpu" or "cuda:N"; of several workers their devices with commas
    stop: Callable[[], bool] = never
    on_epoch: Callable[[dict[str, Any]], None] | None = None
    accept_other_hardware: bool = False  # go on where the execution differs from the record's, and mark it
    pack: int | dict[str, Any] = 1

    def alone(self) -> Job:
        """Return the job without what belongs to this process, to be sent to another one."""
        return replace(self, stop=never, on_epoch=None)


def function_called(name: str) -> Callable[..., str]:
    """Return the training function "module:name"; its module may import torch."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)

"""A finished trial's network, built from its record and its final weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from bench.datasets.batches import Batches
from bench.errors import InputError
from bench.experiments import permission
from bench.experiments.config import TrialConfig
from bench.experiments.identity import raised_revisions
from bench.networks import Network, build
from bench.randomness import Clock
from bench.records.store import Store
from bench.training.distributed import SOLO, batch_norm_for
from bench.training.evaluate import reestimate_batch_norm
from bench.training.trial import final_weights


def finished_trial(
    store: Store, id: str, purpose: str
) -> tuple[TrialConfig, dict[str, Tensor], dict[str, Any], str | None]:
    """Return configuration, final weights (on the CPU), summary and the data's checksum of the trial ``id``.

    Raises ``InputError`` where the trial is not finished (``purpose`` says what it cannot be), its weights
    are absent, its network is code that the command line does not allow, or the code computes other numbers
    today than when it was trained (a raised revision).
    """
    state = store.inspect(id)
    if state.status != "done":
        why = f" ({state.reason})" if state.reason else ""
        raise InputError(
            f"{store.folder(id)}: the trial is {state.status}{why}; only finished ones can be {purpose}"
        )
    record, summary = store.read_trial(id) or {}, store.summary(id) or {}
    where = store.folder(id) / "trial.json"
    try:
        config = TrialConfig.model_validate(record.get("config"))
        provenance = record.get("provenance")
        data = provenance.get("data") if isinstance(provenance, dict) else None
        checksum = data if isinstance(data, str) else None
        changed = None if checksum is None else raised_revisions(config, id, checksum)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{where}: not a configuration of this version ({reason})") from None
    if changed is not None:
        raise InputError(f"{where}: {changed}; train the trial again")
    permission.sealed(config.network, f"{where}: network")
    return config, final_weights(store, id, "trial", "cpu"), summary, checksum


def deployed_network(config: TrialConfig, classes: int, weights: dict[str, Tensor], where: str) -> Network:
    """Return the stripped network with its final weights, as the evaluation has it, on the CPU.

    Raises ``InputError`` naming ``where`` for weights of another network.
    """
    with torch.random.fork_rng(devices=[]):
        network = build(config, num_classes=classes, clock=Clock(config.seed))
    network.to(memory_format=torch.channels_last)  # before the statistics: IR-Net's have five axes
    constants = {n: t for n, t in weights.items() if n.endswith("fixed_statistics")}  # of joint statistics
    try:
        network.load_state_dict({n: t for n, t in weights.items() if n not in constants})
        for name, tensor in constants.items():
            network.get_submodule(name.rpartition(".")[0]).fixed_statistics = tensor
    except (RuntimeError, AttributeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{where}: weights of another network ({reason})") from None
    return network.eval()


def reestimate_(network: Network, config: TrialConfig, data: Batches) -> None:
    """Re-estimate the batch norm of a deployed network in place, as the evaluation with ``eval_bn`` does.

    A copy computes with the recipe's kind of batch norm, and with the network's joint statistics.
    """
    trained = copy.deepcopy(network)
    batch_norm_for(trained, config, SOLO)
    reestimate_batch_norm(trained, data.estimation_batches(config.eval_bn, config.batch_size))
    network.load_state_dict(trained.state_dict())

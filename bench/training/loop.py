"""The training loop and the state it moves.

Everything a step does is a function of the global step and of ``Run``'s state, so a checkpoint between any two steps is
enough to go on exactly. No value is read back from the device inside an epoch.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.config import TrialConfig
from bench.datasets import DeviceData
from bench.layers import observe
from bench.networks import Network, costs
from bench.randomness import Clock
from bench.schedules import learning_rate_value
from bench.strategies import Strategy
from bench.training.evaluate import EVALUATION_BATCH, Accuracy, evaluate, reestimate_batch_norm
from bench.training.losses import make_loss
from bench.training.optimizer import make_optimizer, set_step

CHECKPOINT_SECONDS = 60.0  # at least; and at least 50 times what writing one took, so that they cost under 3 %
CHECKPOINT_SHARE = 50.0


def train(
    run: Run,
    *,
    stop: Callable[[], bool],
    save: Callable[[Run], None],
    record: Callable[[dict[str, Any]], None],
) -> str:
    """Train ``run`` from where it stands; return "done", "diverged", or "stopped" (at a checkpoint, to be resumed)."""
    last_save, save_cost = time.monotonic(), 0.0
    while run.step < run.total_steps:
        run.train_step()
        if run.step % run.steps_per_epoch == 0:
            line = run.end_epoch()
            record(line)
            if line["train_loss"] is None:
                return "diverged"
        if run.step == run.total_steps:
            break
        stopping = stop()
        if stopping or time.monotonic() - last_save > max(CHECKPOINT_SECONDS, CHECKPOINT_SHARE * save_cost):
            begin = time.monotonic()
            save(run)
            last_save = time.monotonic()
            save_cost = last_save - begin
        if stopping:
            return "stopped"
    return "done"


class Run:
    """A trial under way: networks, optimizer, data and the sums of the epoch."""

    def __init__(
        self,
        config: TrialConfig,
        data: DeviceData,
        network: Network,
        strategy: Strategy,
        clock: Clock,
        *,
        mode: str = "eager",
    ) -> None:
        self.config, self.data, self.network, self.strategy, self.clock = config, data, network, strategy, clock
        self.device = clock.step.device
        self.steps_per_epoch = data.steps_per_epoch
        self.total_steps = config.epochs * self.steps_per_epoch
        self.trained = strategy.trained()
        self.optimizer = make_optimizer(config, [network, *self.trained.values()])
        self.loss = make_loss(config)
        self.forward = torch.compile(self._forward, fullgraph=True) if mode == "compiled" else self._forward
        self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.signs = self._signs()
        self.one_level: list[str] = []  # layers whose activations were all one level after the first epoch
        self.training_seconds = 0.0  # of the epoch under way, earlier sessions included
        self.wall_seconds = 0.0  # of the whole trial
        self._mark = time.perf_counter()
        for module in (network, *self.trained.values()):
            module.train()

    # -- one step ------------------------------------------------------------------------------------------------

    def _forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (what is minimised, hits of the batch)."""
        with self._autocast():
            logits = self.network(images)
            loss = self.strategy.loss(logits, images, labels, self.loss)
        return loss, (logits.detach().argmax(1) == labels).sum()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def train_step(self) -> None:
        """Do the step ``self.step`` and move on to the next."""
        config, step = self.config, self.step
        factor = self.strategy.factor(step)
        if self.strategy.bn_reestimate and self.strategy.removal(step):
            self.clock.set(step, 0.0)
            batches = self.data.estimation_batches(self.strategy.bn_reestimate, config.batch_size)
            reestimate_batch_norm(self.network, batches)
        self.clock.set(step, factor)
        set_step(
            self.optimizer,
            config,
            step,
            learning_rate_value(config.learning_rate, step, self.total_steps, self.steps_per_epoch),
        )
        images, labels = self.data.train_batch(step)
        loss, hits = self.forward(images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.network.after_step_()
        self.loss_sum += loss.detach()
        self.correct += hits
        self.step += 1

    # -- the end of an epoch -------------------------------------------------------------------------------------

    def end_epoch(self) -> dict[str, Any]:
        """Evaluate, return the epoch's line of ``epochs.jsonl``, and begin the next epoch's sums."""
        epoch = self.step // self.steps_per_epoch
        last = self.step - 1
        factor = self.strategy.factor(last)
        loss = self.loss_sum.item() / self.steps_per_epoch
        hits = self.correct.item()
        self._tick()
        seconds, images = self.training_seconds, self.steps_per_epoch * self.config.batch_size
        line: dict[str, Any] = {
            "epoch": epoch,
            "step": self.step,
            "train_loss": loss if math.isfinite(loss) else None,
            "train_acc": 100.0 * hits / images,
            "val_acc": None,
            "test_acc": None,
            "test_acc_expanded": None,
            "test_acc_top5": None,
            "test_correct": None,
            "test_seen": None,
            "factor": factor,
            "lr": learning_rate_value(self.config.learning_rate, last, self.total_steps, self.steps_per_epoch),
            "seconds": seconds,
            "images_per_second": images / seconds if seconds > 0 else None,
            "sign_flip_rate": self._sign_flip_rate(),
            "branch_ratio": None,
        }
        if line["train_loss"] is not None:
            self._measure(line, factor)
        self.loss_sum.zero_()
        self.correct.zero_()
        self._tick()
        self.training_seconds = 0.0
        return line

    def _measure(self, line: dict[str, Any], factor: float) -> None:
        """Fill in the accuracies of ``line``: the deployed network's, and the expanded one's while the factor is on."""
        data, classes = self.data, self.data.num_classes
        if factor > 0.0:
            self.clock.set_factor(factor)
            expanded = evaluate(self.network, data.test_batches(EVALUATION_BATCH), classes)
            line["test_acc_expanded"] = expanded.percent
        observations = observe(self.network, next(iter(data.test_batches(EVALUATION_BATCH)))[0])
        if line["epoch"] == 1:
            self.one_level = sorted(name for name, observed in observations.items() if observed["one_level"])
        ratios = [o["branch_ratio"] for o in observations.values() if o["branch_ratio"] is not None]
        line["branch_ratio"] = sum(ratios) / len(ratios) if ratios else None
        self.clock.set_factor(0.0)
        deployed = self._deployed()
        self.accuracy: Accuracy = evaluate(deployed, data.test_batches(EVALUATION_BATCH), classes)
        line["test_acc"] = self.accuracy.percent
        line["test_acc_top5"] = self.accuracy.percent_top5 if classes >= 20 else None
        line["test_correct"], line["test_seen"] = self.accuracy.correct, self.accuracy.seen
        if self.config.holdout:
            line["val_acc"] = evaluate(deployed, data.holdout_batches(EVALUATION_BATCH), classes).percent

    def _deployed(self) -> Network:
        """Return the network to evaluate as deployed: itself, or a copy with re-estimated batch norm (``eval_bn``)."""
        if not self.config.eval_bn:
            return self.network
        network = copy.deepcopy(self.network)
        reestimate_batch_norm(network, self.data.estimation_batches(self.config.eval_bn, self.config.batch_size))
        return network

    def _signs(self) -> dict[str, Tensor]:
        return {name: layer.weight.detach() >= 0 for name, layer in self.network.low_precision_layers()}

    def _sign_flip_rate(self) -> float | None:
        """Return the share of low-precision weights whose sign changed since the epoch began; None for none."""
        now = self._signs()
        count = sum(signs.numel() for signs in now.values())
        flips = sum((signs != self.signs[name]).sum() for name, signs in now.items())
        self.signs = now
        return int(flips) / count if count else None

    def _tick(self) -> None:
        now = time.perf_counter()
        self.training_seconds += now - self._mark
        self.wall_seconds += now - self._mark
        self._mark = now

    # -- cost ----------------------------------------------------------------------------------------------------

    def step_flops(self, branch_on: bool) -> float:
        """Return the floating-point operations of one step: forward, backward, and frozen teachers' forward."""
        cost = costs(self.network)
        per_image = float(cost.train_flops_per_image if branch_on else cost.train_flops_per_image_plain)
        per_image += sum(costs(network).train_flops_per_image for network in self.trained.values())
        # a forward pass is a third of a step
        per_image += sum(costs(network).train_flops_per_image / 3.0 for network in self.strategy.forward_only())
        return self.config.batch_size * per_image

    def train_flops(self, steps: int) -> float:
        """Return those of the first ``steps`` steps; a teacher that is a trial of its own counts its training there."""
        on = sum(1 for step in range(steps) if self.strategy.factor(step) > 0.0)
        return on * self.step_flops(True) + (steps - on) * self.step_flops(False)

    # -- state ---------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        self._tick()
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "trained": {name: module.state_dict() for name, module in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
            "correct": self.correct,
            "signs": self.signs,
            "one_level": self.one_level,
            "training_seconds": self.training_seconds,
            "wall_seconds": self.wall_seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what ``state`` returned."""
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        for name, module in self.trained.items():
            module.load_state_dict(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss_sum.copy_(state["loss_sum"])
        self.correct.copy_(state["correct"])
        self.signs = {name: signs.to(self.device) for name, signs in state["signs"].items()}
        self.one_level = state["one_level"]
        self.training_seconds = state["training_seconds"]
        self.wall_seconds = state["wall_seconds"]
        self._mark = time.perf_counter()

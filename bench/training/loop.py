"""The training loop and its state.

A step is a function of the global step and of the state of ``Run``. So a checkpoint between any two steps is
enough to continue exactly. No value is read back from the device within an epoch. Several workers run the
same loop, each on its own rows of every batch (``bench.training.distributed``). The first worker decides for
all when to save and when to stop.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.datasets.batch_rows import rows
from bench.datasets.batches import Batches
from bench.experiments.config import TrialConfig
from bench.layers.diagnostics import layer_diagnostics
from bench.networks import Network
from bench.randomness import Clock
from bench.schedules import learning_rate_value
from bench.strategies import Strategy
from bench.text import first_few
from bench.training import execution
from bench.training.calibration import calibrate, estimation_images
from bench.training.capture import Recording, Written
from bench.training.diagnostics import Diagnostics, due, flip_rate, signs_of
from bench.training.distributed import (
    SOLO,
    Team,
    average_statistics,
    averaged,
    keeping_gradients,
    share_statistics,
)
from bench.training.divergence import largest_loss, named_state, not_finite
from bench.training.evaluate import EVALUATION_BATCH, Accuracy, evaluate, reestimate_batch_norm
from bench.training.losses import make_loss
from bench.training.operations import operations_until, step_operations
from bench.training.optimizer import make_optimizer, set_step

# Between two checkpoints lie at least 60 seconds, and at least 50 times the seconds that writing the last one
# took. So checkpoints take less than 3 % of the training time.
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_RATIO = 50.0


def train(
    run: Run,
    *,
    stop: Callable[[], bool],
    save: Callable[[Run], None],
    record: Callable[[dict[str, Any]], None],
) -> str:
    """Train ``run`` from its present step; return "done", "diverged" or "stopped" (resumable)."""
    last_save, save_cost = time.monotonic(), 0.0
    while run.step < run.total_steps:
        run.train_step()
        if run.step % run.steps_per_epoch == 0:
            record(run.end_epoch())
            if run.problem is not None:
                return "diverged"
        if run.step == run.total_steps:
            break
        due = time.monotonic() - last_save > max(CHECKPOINT_SECONDS, CHECKPOINT_RATIO * save_cost)
        stopping, due = run.team.decided(stop(), due)
        if stopping or due:
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
        data: Batches,
        network: Network,
        strategy: Strategy,
        clock: Clock,
        *,
        mode: str = "eager",
        team: Team = SOLO,
    ) -> None:
        self.config, self.data, self.network = config, data, network
        self.strategy, self.clock, self.team = strategy, clock, team
        self.device = clock.step.device
        self.steps_per_epoch = data.steps_per_epoch
        self.total_steps = config.epochs * self.steps_per_epoch
        clock.total_steps = self.total_steps
        clock.stages = strategy.stage
        self.trained = strategy.trained()
        networks: list[nn.Module] = [network, *self.trained.values()]
        share_statistics(networks, team)
        self.optimizer = make_optimizer(
            config, networks, captured_on=self.device if mode == "captured" else None
        )
        self.loss = make_loss(config)
        compiled = (
            functools.partial(torch.compile, fullgraph=True) if mode != "eager" else lambda function: function
        )
        self.forward = averaged(compiled(self._forward), networks, team)
        # On a CPU, compiled code gathers bytes ten times slower than PyTorch's own kernels.
        on_gpu = data.resident and self.device.type == "cuda"
        self.prepare = compiled(data.prepare) if on_gpu else data.prepare
        self.recording = Recording(self.update, self.written) if mode == "captured" else None
        self.samples: tuple[Tensor | None, ...] = (None,)  # of each part of a batch; None: 0, 1, 2, ...
        if team.size > 1 or config.micro_batches > 1:
            places = rows(config.batch_size, team.rank_and_size, config.micro_batches).to(self.device)
            self.samples = places.chunk(config.micro_batches)
        self.step = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.signs = signs_of(network)
        self.diagnostics = Diagnostics(network)
        self.problem: str | None = None  # why the trial has diverged
        # a user's network may keep infinite constants, a mask for instance
        self.infinite = frozenset(not_finite(self._named_state()))
        self.one_level: list[str] = []  # layers whose activations were all one level after the first epoch
        self.training_seconds = 0.0  # of the epoch under way, earlier sessions included
        self.wall_seconds = 0.0  # of the whole trial
        self.earlier_peak_memory = 0  # bytes, of sessions before this one
        self._mark = time.perf_counter()
        for module in networks:
            module.train()

    # -- one step --------------------------------------------------------------------------------------------

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
        self.strategy.before_step(self.network, step)
        if count := self.strategy.calibration_images(step):
            images = estimation_images(self.data, self.team, count, config.batch_size)
            calibrate(self.strategy, self.network, self.team, images, step)
        if self.strategy.bn_reestimate and self.strategy.removal(step):
            self.clock.set(step, 0.0)
            self._reestimate(self.network, self.strategy.bn_reestimate)
        self.clock.set(step, factor)
        set_step(self.optimizer, config, step, self._learning_rate(step))
        if self.recording is None:
            self.update(*self.data.inputs(step))
        else:
            self.recording.step(self.data.inputs(step), self._stage())
        self.step += 1

    def _learning_rate(self, step: int) -> float:
        return learning_rate_value(self.config.learning_rate, step, self.total_steps, self.steps_per_epoch)

    def update(self, *inputs: Tensor) -> None:
        """Do the part of a step that runs on the device; ``inputs`` come from ``Batches.inputs``."""
        images, labels = self.prepare(*inputs, self.clock.step)
        self.optimizer.zero_grad(set_to_none=True)
        self.backward(images, labels)
        networks = [self.network, *self.trained.values()]
        for network in networks:
            network.add_penalty_()
        self.optimizer.step()
        for network in networks:
            network.after_step_()
        average_statistics(networks, self.team)

    def _stage(self) -> tuple[bool, int]:
        """Return what a recorded step depends on beside tensors: (factor above 0, number of the stage)."""
        return self.clock.active, self.clock.stage

    def written(self) -> Written:
        """Return copies of all that ``update`` writes."""
        return Written([self.network, *self.trained.values()], self.optimizer, [self.loss_sum, self.correct])

    def rehearse(self) -> None:
        """Do the last step of the trial, then its first step, to find out whether the mode can do both.

        A captured step is recorded. The state of the trial does not change. Raises ``RuntimeError`` where the
        device cannot record or the compiler does not understand the network.
        """
        assert self.step == 0
        for step in (self.total_steps - 1, 0):
            self.optimizer.state.clear()  # the last stage makes no moments of a branch
            self.clock.set(step, self.strategy.factor(step))
            if self.recording is not None:
                self.recording.record(self.data.inputs(step), self._stage())
                continue
            before = self.written()
            try:
                self.update(*self.data.inputs(step))
            finally:
                before.put_back()
        if self.recording is None:
            self.optimizer.state.clear()  # a recorded step writes to its moments, which have to stay

    def seconds_per_step(self) -> float:
        """Return the seconds of one step, measured after a step that does not count; both are undone."""
        fresh, before = not self.optimizer.state, self.written()
        self.clock.set(self.step, self.strategy.factor(self.step))
        seconds = 0.0
        for _ in range(2):
            begin = time.perf_counter()
            self.update(*self.data.inputs(self.step))
            seconds = time.perf_counter() - begin
        before.put_back()
        if fresh:
            self.optimizer.state.clear()
        self._mark = time.perf_counter()
        return seconds

    def backward(self, images: Tensor, labels: Tensor) -> None:
        """Add gradients, loss and hits of this worker's images, one micro-batch after the other."""
        count = len(self.samples)
        parts = zip(self.samples, images.chunk(count), labels.chunk(count), strict=True)
        for number, (self.clock.samples, x, y) in enumerate(parts, start=1):
            with keeping_gradients(self.forward) if number < count else contextlib.nullcontext():
                loss, hits = self.forward(x, y)
                if count > 1:
                    loss = loss / count
                loss.backward()
            self.loss_sum += loss.detach()
            self.correct += hits

    # -- the end of an epoch ---------------------------------------------------------------------------------

    def end_epoch(self) -> dict[str, Any]:
        """Evaluate, return the epoch's line of ``epochs.jsonl``, and begin the next epoch's sums."""
        epoch = self.step // self.steps_per_epoch
        last = self.step - 1
        factor = self.strategy.factor(last)
        loss = self.team.total(self.loss_sum).item() / (self.steps_per_epoch * self.team.size)
        hits = self.team.total(self.correct).item()
        self._tick()
        seconds, images = self.training_seconds, self.steps_per_epoch * self.config.batch_size
        signs_before, self.signs = self.signs, signs_of(self.network)
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
            "lr": self._learning_rate(last),
            "seconds": seconds,
            "images_per_second": images / seconds if seconds > 0 else None,
            "sign_flip_rate": flip_rate(signs_before, self.signs),
            "branch_ratio": None,
        }
        self.problem = self._divergence(loss, epoch)
        if self.problem is None:
            self._diagnose_layers(line, factor)
            if epoch % self.config.evaluate_every == 0 or self.step == self.total_steps:
                self._evaluate_epoch(line, factor)
        self.loss_sum.zero_()
        self.correct.zero_()
        self._tick()
        self.training_seconds = 0.0
        return line

    def _diagnose_layers(self, line: dict[str, Any], factor: float) -> None:
        """Fill in ``branch_ratio`` and the row of diagnostics, from the first batch that is evaluated."""
        if not self.team.first:  # the first worker's first batch is the first batch of the set
            return
        data = self.data
        batches = data.test_batches if self.config.evaluate_test else data.holdout_batches
        self.clock.set_factor(factor)
        images = next(iter(batches(EVALUATION_BATCH)))[0]
        detailed = due(line["epoch"], self.config.epochs)
        observations = layer_diagnostics(self.network, images, detailed=detailed)
        if line["epoch"] == 1:
            self.one_level = sorted(name for name, observed in observations.items() if observed["one_level"])
        ratios = [o["branch_ratio"] for o in observations.values() if o["branch_ratio"] is not None]
        line["branch_ratio"] = sum(ratios) / len(ratios) if ratios else None
        if detailed:
            self.clock.set_factor(0.0)
            self.diagnostics.add(self.network, line["epoch"], factor, observations)

    def _evaluate_epoch(self, line: dict[str, Any], factor: float) -> None:
        """Fill in the accuracies of ``line``, in percent.

        ``test_acc`` and ``val_acc`` are the accuracies of the deployed network (factor 0, fp32) on the test
        images and on the held-out training images. ``test_acc_expanded`` is the accuracy of the network with
        its branch, while the factor is above 0. With ``evaluate_test = false`` no test image is read.
        """
        data, classes = self.data, self.data.num_classes
        self.lost_logits = 0
        if self.config.evaluate_test and factor > 0.0:
            self.clock.set_factor(factor)
            expanded = self._evaluate(self.network, data.test_batches, data.test_count)
            line["test_acc_expanded"] = expanded.percent
        self.clock.set_factor(0.0)
        deployed = self._deployed()
        if self.config.evaluate_test:
            self.accuracy = self._evaluate(deployed, data.test_batches, data.test_count)
            line["test_acc"] = self.accuracy.percent
            line["test_acc_top5"] = self.accuracy.percent_top5 if classes >= 20 else None
            line["test_correct"], line["test_seen"] = self.accuracy.correct, self.accuracy.seen
        if self.config.holdout:
            held_out = self._evaluate(deployed, data.holdout_batches, data.holdout_count)
            line["val_acc"] = held_out.percent
            if not self.config.evaluate_test:
                self.accuracy = held_out
        if self.lost_logits:
            lost = f"the logits of {self.lost_logits} images"
            self.problem = f"{lost} evaluated after epoch {line['epoch']} were not finite"
            line |= {key: None for key in line if key.startswith(("test_", "val_"))}

    def _named_state(self) -> Iterator[tuple[str, Tensor]]:
        frozen = {f"frozen network {i}": n for i, n in enumerate(self.strategy.forward_only())}
        return named_state({"": self.network, **self.trained, **frozen}, self.optimizer)

    def _divergence(self, loss: float, epoch: int) -> str | None:
        """Return why the trial has diverged, or None; ``loss`` is the mean training loss of ``epoch``."""
        lost = not_finite((name, value) for name, value in self._named_state() if name not in self.infinite)
        largest = self.strategy.largest_loss(largest_loss(self.config.loss))
        reason = None
        if not math.isfinite(loss):
            reason = f"the training loss of epoch {epoch} was not finite"
        elif lost:
            reason = f"numbers that are not finite after epoch {epoch}: {first_few(lost)}"
        elif loss > largest:
            reason = (
                f"the training loss of epoch {epoch}, {loss:.3g}, is more than any data gives ({largest:.4g})"
            )
        (diverged,) = self.team.decided(reason is not None)
        return (reason or "the first worker's numbers are not finite") if diverged else None

    def _evaluate(self, network: Network, batches: Callable[[int], Iterator[Any]], count: int) -> Accuracy:
        """Evaluate ``network`` on ``count`` images; each worker has every ``size``-th batch of them."""
        classes = self.data.num_classes
        if self.team.rank * EVALUATION_BATCH >= count > 0:  # fewer batches than workers
            found = Accuracy(0, 0, 0, (0,) * classes, (0,) * classes)
        else:
            found = evaluate(network, batches(EVALUATION_BATCH), classes)
        found = self.team.accuracy(found)
        self.lost_logits += found.not_finite
        return found

    def _deployed(self) -> Network:
        """Return the trained network, or with ``eval_bn`` a copy with re-estimated batch norm."""
        if not self.config.eval_bn:
            return self.network
        network = copy.deepcopy(self.network, {id(self.clock): self.clock})  # a clock knows the strategy
        self._reestimate(network, self.config.eval_bn)
        return network

    def _reestimate(self, network: Network, count: int) -> None:
        """Re-estimate the batch-norm statistics of ``network`` over ``count`` training batches, in place."""
        reestimate_batch_norm(network, self.data.estimation_batches(count, self.config.batch_size))
        average_statistics([network], self.team)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.training_seconds += now - self._mark
        self.wall_seconds += now - self._mark
        self._mark = now

    # -- cost ------------------------------------------------------------------------------------------------

    def step_flops(self, branch_on: bool) -> float:
        """Return the floating-point operations of one step, those of further networks included."""
        networks = [self.network, *self.trained.values()]
        per_image = step_operations(networks, self.strategy.forward_only(), branch_on)
        return self.config.batch_size * per_image

    def train_flops(self, steps: int) -> float:
        """Return the operations of the first ``steps`` steps, without those of a teacher's own trial."""
        return operations_until(self.network, self.strategy, self.config.batch_size)(steps)

    def peak_memory(self) -> int:
        """Return the peak bytes of the device, of this process on a CPU, in this and earlier sessions."""
        return max(self.earlier_peak_memory, execution.peak_memory(str(self.device)))

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; the sums of several workers are stacked by rank."""
        self._tick()
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "trained": {name: module.state_dict() for name, module in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.team.gathered(self.loss_sum),
            "correct": self.team.gathered(self.correct),
            "signs": self.signs,
            "codes": self.diagnostics.codes,
            "one_level": self.one_level,
            "training_seconds": self.training_seconds,
            "wall_seconds": self.wall_seconds,
            "peak_memory_bytes": self.peak_memory(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state`` returned."""
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        for name, module in self.trained.items():
            module.load_state_dict(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.recording is not None:
            self.recording.forget()
        self.loss_sum.copy_(self.team.own_part(state["loss_sum"]))
        self.correct.copy_(self.team.own_part(state["correct"]))
        self.signs = {name: signs.to(self.device) for name, signs in state["signs"].items()}
        self.diagnostics.codes = {name: codes.to(self.device) for name, codes in state["codes"].items()}
        self.one_level = state["one_level"]
        self.training_seconds = state["training_seconds"]
        self.wall_seconds = state["wall_seconds"]
        self.earlier_peak_memory = state["peak_memory_bytes"]
        self._mark = time.perf_counter()

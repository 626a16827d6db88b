"""Several workers, and what saves memory: the numbers are those of one worker and of the plain step."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench import datasets
from bench.cli.main import main
from bench.datasets.batch_rows import rows
from bench.datasets.device_batches import DeviceData
from bench.errors import InputError
from bench.experiments.config import TrialConfig
from bench.experiments.config import make_config as complete_config
from bench.launch.data_parallel import check_workers, device_groups
from bench.launch.execute import Task, execute
from bench.layers.batch_norm import FactorBatchNorm
from bench.networks import build, initialize
from bench.randomness import Clock
from bench.records.store import Store
from bench.strategies import make_strategy
from bench.training.distributed import SOLO, SharedBatchNorm, Team, batch_norm_for
from bench.training.loop import Run
from bench.training.memory import recompute_activations
from bench.training.setup import complete_helpers
from tests.launch.team_helpers import FAULT, together
from tests.robustness.disturbance import (
    DROPOUT,
    ID,
    apprentice,
    make_config,
    progressive,
    resumed_steps,
    run,
    unlike,
)

FULL = make_config(quantizer="full_precision", bits="32/32").dump()
HERE = Path(__file__).parent

# --- one run in float64: differences of summation order stay far below a quantizer's thresholds -------------


class Doubled:
    """Data whose images are float64."""

    def __init__(self, data) -> None:
        self._data = data

    def __getattr__(self, name):
        return getattr(self._data, name)

    def train_batch(self, step):
        images, labels = self._data.train_batch(step)
        return images.double(), labels

    def prepare(self, *inputs):
        images, labels = self._data.prepare(*inputs)
        return images.double(), labels

    def _doubled(self, batches):
        return ((images.double(), labels) for images, labels in batches)

    def test_batches(self, size):
        return self._doubled(self._data.test_batches(size))

    def estimation_batches(self, count, size):
        return self._doubled(self._data.estimation_batches(count, size))


def make_run(config: TrialConfig, team: Team = SOLO, *, double: bool = True) -> Run:
    """Return a run at its first step, in float64."""
    clock = Clock(config.seed)
    arrays = datasets.load(config.dataset, Path("/nonexistent"))
    data = DeviceData(
        arrays, config, 40 if config.network["kind"] == "svhn_convnet" else 32, "cpu", team.rank_and_size
    )
    strategy = make_strategy(config, data.steps_per_epoch)

    def make(config, strategy=None):
        branch = strategy.branch if strategy else None
        network = build(
            config, num_classes=10, clock=clock, branch=branch, blend=strategy.blend if strategy else None
        )
        initialize(network, config.seed, config.initialization)
        batch_norm_for(network, config, team)
        if config.activation_checkpointing:
            recompute_activations(network)
        return network.double() if double else network

    network = make(config, strategy)
    strategy.prepare(network, make, {})
    complete_helpers(strategy, config, clock, team)
    for module in strategy.trained().values() if double else ():
        module.double()
    made = Run(config, Doubled(data) if double else data, network, strategy, clock, team=team)
    if double:
        made.clock.factor = made.clock.factor.double()
        for module in made.network.modules():
            if hasattr(module, "clock"):
                module.clock = made.clock
    return made


def trained(team: Team, fields: dict, steps: int) -> tuple[dict[str, np.ndarray], list[float]]:
    """Train a few steps; return weights and buffers, and (loss sum over steps, hits) of the whole team."""
    made = make_run(make_config(**fields), team)
    for _ in range(steps):
        made.train_step()
    found = {name: value.numpy() for name, value in made.network.state_dict().items()}
    loss = team.total(made.loss_sum).item() / team.size
    return found, [loss, float(team.total(made.correct))]  # the loss is computed in float32


# 8 bits where 1-bit activations of so few images would leave a channel constant: its batch norm is 0 but for
# rounding, and 0 is where the gradient of the clip begins to pass.
CASES = {
    "sum, dropout, crops": {"strategy": progressive("sum"), "network": DROPOUT, "augmentation": "crop_flip"},
    "concat, gradient quantizer": {
        "bits": "1/2/4",
        "strategy": progressive("concat"),
        "augmentation": "svhn",
    },
    "stochastic bnn": {"quantizer": {"kind": "bnn", "stochastic": True}},
    "re-estimated at removal": {
        "bits": "8/8",
        "strategy": {**progressive("difference"), "bn_reestimate": 2},
        "epochs": 1,
    },
    "apprentice A, teacher trained beside": {"bits": "8/8", "strategy": apprentice("A")},
    "auxiliary module": {"bits": "8/8", "strategy": {"kind": "auxiliary"}},
    "peers": {"bits": "8/8", "strategy": {"kind": "mutual", "peers": 2, "peer": FULL}},
    "incremental": {"bits": "8/8", "quantizer": "inq", "strategy": {"kind": "incremental", "begin": 0.0}},
    "fitted at removal": {
        "quantizer": "tsq",
        "bits": "2/32",
        "strategy": {"kind": "two_step", "images": 20, "rows": 200},
        "epochs": 1,
    },
    "two micro-batches": {"bits": "8/8", "micro_batches": 2, "network": DROPOUT, "augmentation": "svhn"},
    "groups of 4": {"batch_norm_group": 4, "strategy": progressive("sum")},
    "levels that move, computed again": {
        "quantizer": "lqnets",
        "bits": "4/4",
        "network": "resnet20",  # without max-pooling, whose ties the order of summation would break
        "activation_checkpointing": True,
    },
}


def trained_cases(team: Team) -> dict:
    """Train every case as one of a team."""
    return {case: trained(team, fields, 4 if "removal" in case else 2) for case, fields in CASES.items()}


@pytest.fixture(scope="module")
def cases_by_two():
    return together("tests.training.test_distributed:trained_cases")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_number_of_workers_changes_the_order_of_summation_and_nothing_else(case, cases_by_two):
    """Weights, statistics and hits of two workers are one's, to 1e-9 in float64 (removal is at step 3)."""
    weights, sums = trained(SOLO, CASES[case], 4 if "removal" in case else 2)
    for found, found_sums in (worker[case] for worker in cases_by_two):
        assert found.keys() == weights.keys()
        for name, value in weights.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)
        assert found_sums[0] == pytest.approx(sums[0], rel=1e-6) and found_sums[1] == sums[1]
    one, other = (worker[case][0] for worker in cases_by_two)
    assert all(np.array_equal(one[name], other[name]) for name in one)  # the workers agree to the last bit


# --- batch norm ---------------------------------------------------------------------------------------------

SHAPES = ((8, 3), (8, 3, 5, 4))


def normalised(team: Team) -> list[list[np.ndarray]]:
    """Return output and gradients of this worker's rows, by shape, and of parameters and statistics."""
    found = []
    for shape in SHAPES:
        x, weights, factor = batch(shape)
        like = FactorBatchNorm(3).double()
        with torch.no_grad():
            like.weight.copy_(torch.tensor([1.5, -0.5, 2.0]))
            like.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
        norm = like if team.size == 1 else SharedBatchNorm(like, team, None)
        mine = rows(len(x), team.rank_and_size)
        own = x[mine].requires_grad_()
        y = norm(own, factor)
        (y * weights[mine]).sum().backward()
        grads = [team.total(p.grad) for p in (norm.weight, norm.bias)]
        found.append([t.detach().numpy() for t in (y, own.grad, *grads, norm.running_mean, norm.running_var)])
    return found


def batch(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, weights = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x * 3.0 + 1.0, weights, torch.tensor(0.25, dtype=torch.float64)


def test_shared_batch_norm_is_batch_norm_of_the_whole_batch():
    """Output, gradients of input, scale and shift, and running statistics are PyTorch's on one worker."""
    expected = normalised(SOLO)
    by_worker = together("tests.training.test_distributed:normalised")
    for number in range(len(SHAPES)):
        y, grad, *others = expected[number]
        np.testing.assert_allclose(
            np.concatenate([w[number][0] for w in by_worker]), y, rtol=1e-12, atol=1e-12
        )
        np.testing.assert_allclose(
            np.concatenate([w[number][1] for w in by_worker]), grad, rtol=1e-11, atol=1e-12
        )
        for worker in by_worker:
            for mine, other in zip(worker[number][2:], others, strict=True):
                np.testing.assert_allclose(mine, other, rtol=1e-11, atol=1e-12)


def test_groups_are_normalised_by_their_own_statistics():
    x, _, _ = batch((8, 3, 5, 4))
    norm = SharedBatchNorm(nn.BatchNorm2d(3, eps=1e-4, momentum=0.25).double(), SOLO, 4)
    y = norm(x)
    groups_of_x = x.numpy().reshape(2, 4, 3, 20).transpose(0, 2, 1, 3).reshape(2, 3, 80)
    means, variances = groups_of_x.mean(2), groups_of_x.var(2)
    expected = (groups_of_x - means[..., None]) / np.sqrt(variances[..., None] + 1e-4)
    found = y.detach().numpy().reshape(2, 4, 3, 20).transpose(0, 2, 1, 3).reshape(2, 3, 80)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.25 * means.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
        norm.running_var.numpy(), 0.75 + 0.25 * (variances * 80 / 79).mean(0), rtol=1e-12
    )
    norm.eval()
    plain = nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-4)
    assert torch.equal(norm(x), plain)


# --- shares -------------------------------------------------------------------------------------------------


def test_shares_cut_the_same_batch():
    assert rows(12, (1, 3)).tolist() == [4, 5, 6, 7]
    assert rows(12, (0, 3), micro_batches=2).tolist() == [
        0,
        1,
        6,
        7,
    ]  # a third of 0..5, then a third of 6..11
    assert rows(6).tolist() == list(range(6))
    for bad in ((12, (0, 5), 1), (12, (3, 3), 1), (12, (0, 4), 2)):
        with pytest.raises(ValueError, match="no share"):
            rows(*bad)


def test_workers_see_their_rows_of_the_one_workers_batches():
    config = make_config(augmentation="crop_flip", micro_batches=2)
    arrays = datasets.load(config.dataset, Path("/nonexistent"))
    whole, *shares = (DeviceData(arrays, config, 40, "cpu", share) for share in ((0, 1), (0, 2), (1, 2)))
    for step in (0, 7):
        images, labels = whole.train_batch(step)
        for rank, share in enumerate(shares):
            mine = rows(16, (rank, 2), 2)
            assert torch.equal(share.train_batch(step)[0], images[mine])
            assert torch.equal(share.train_batch(step)[1], labels[mine])
    tests = [batch[1] for batch in whole.test_batches(100)]
    dealt = [[batch[1] for batch in share.test_batches(100)] for share in shares]
    for number, labels in enumerate(tests):
        assert torch.equal(dealt[number % 2][number // 2], labels)
    estimated = [list(data.estimation_batches(2, 16)) for data in (whole, *shares)]
    for number in range(2):
        assert torch.equal(torch.cat([part[number][1] for part in estimated[1:]]), estimated[0][number][1])


# --- whole trials -------------------------------------------------------------------------------------------


def train_by_two(config: TrialConfig, results: Path, *, worker: int | None = None, fault: dict | None = None):
    """Execute a trial by two workers, one of them disturbed."""
    results.mkdir(exist_ok=True)
    (results / FAULT).write_text(json.dumps({"worker": worker, "fault": fault}))
    task = Task(
        ID,
        config.dump(),
        {},
        str(results),
        "/nonexistent",
        "cpu,cpu",
        retry=True,
        function="tests.launch.team_helpers:train_together",
    )
    return execute(task)


def test_a_worker_killed_ends_the_trial_which_goes_on_exactly(tmp_path):
    config = make_config(strategy=progressive("sum"), network=DROPOUT)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert train_by_two(config, calm).status == "done"
    other = train_by_two(config, killed, worker=1, fault={"at": "updated", "from": 8})
    assert (other.status, other.reason) == ("failed", "WorkerDied: worker 1 of 2 died (signal 9)")
    first = train_by_two(config, killed, worker=0, fault={"at": "half", "file": "checkpoint.pt", "from": 13})
    assert first.reason == "WorkerDied: worker 0 of 2 died (signal 9)"
    assert train_by_two(config, killed).status == "done"
    assert unlike(calm, killed) == []
    steps = resumed_steps(killed)
    assert len(steps) == 2 and 0 < steps[0] <= 8 < steps[1] < 20 and any(step % 5 for step in steps)
    execution = Store(calm).read_trial(ID)["execution"]
    assert execution["workers"] == 2 and execution["mode"] == "eager"

    outcome = run(config, tmp_path / "one")  # of one worker: close until rounding has flipped a sign
    assert outcome.status == "done"
    one, two = Store(tmp_path / "one").epochs(ID)[0], Store(calm).epochs(ID)[0]
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=2e-3)
    assert {key: one[key] for key in ("epoch", "step", "factor", "lr", "test_seen")} == {
        key: two[key] for key in ("epoch", "step", "factor", "lr", "test_seen")
    }


def disagreeing(team: Team) -> list[str]:
    """Return what workers say that see other data, and of what one of them lacks."""
    found = []

    def lacks():
        if team.rank == 1:
            raise InputError("/data: the data set 'cifar10' is not there")

    actions = (
        lambda: team.check_same(data="abc" if team.first else "def", number_of_test_images=10),
        lambda: team.agree(lacks),
        lambda: team.from_first(lacks),
    )
    for action in actions:
        try:
            action()
            found.append("")
        except InputError as error:
            found.append(str(error))
    return [*found, str(team.decided(team.rank == 0, team.rank == 1))]


def test_workers_that_see_different_data_are_told_apart():
    answers = together("tests.training.test_distributed:disagreeing")
    for different, lacking, unknown, decided in answers:
        assert re.fullmatch(
            r"the workers of a trial do not see the same data: 'abc' for worker 0 on \S+, 'def' for worker "
            r"1 on \S+",
            different,
        )
        assert lacking.startswith("worker 1 on ") and lacking.endswith("'cifar10' is not there")
        assert unknown == "" and decided == "(True, False)"


def test_what_does_not_divide_is_said_before_training(tmp_path, capsys):
    file = tmp_path / "wide.toml"
    file.write_text(
        'title = "wide"\n[defaults]\ndataset = "digits"\nnetwork = "svhn_convnet"\nepochs = 1\nbatch_size '
        "= 24\n"
        '[[arms]]\nname = "a"\n'
    )

    def said(*options: str) -> str:
        assert (
            main(
                ["run", str(file), "--results", str(tmp_path / "r"), "--device", "cpu", "--no-ray", *options]
            )
            == 2
        )
        return capsys.readouterr().err

    assert "a batch of 24 images does not divide among 5 workers" in said("--workers-per-trial", "5")
    assert "micro-batch of 12 images" in said("--workers-per-trial", "5", "--set", "micro_batches=2")
    grouped = said("--workers-per-trial", "2", "--set", "batch_norm_group=8")
    assert "each of 2 workers has 12 images of a batch, which groups of 8 do not divide" in grouped
    assert "5 parts of a batch of 24 are not equal" in said("--set", "micro_batches=5")
    assert "a micro-batch of 12 images is not a multiple of 8" in said(
        "--set", "micro_batches=2", "--set", "batch_norm_group=8"
    )
    assert not (tmp_path / "r" / "trials").exists()
    with pytest.raises(
        InputError, match=r"--workers-per-trial 4: there are 3 GPUs here \(cuda:0, cuda:1, cuda:2\)"
    ):
        device_groups(["cuda:0", "cuda:1", "cuda:2"], 4)
    assert device_groups([f"cuda:{n}" for n in range(5)], 2) == ["cuda:0,cuda:1", "cuda:2,cuda:3"]
    assert device_groups(["cpu"], 3) == ["cpu,cpu,cpu"]
    check_workers(make_config(batch_norm_group=16), 4)  # the whole batch


# --- memory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy": progressive("sum"), "network": DROPOUT},
        {
            "bits": "1/2/4",
            "strategy": progressive("concat"),
            "network": {"kind": "resnet20", "block": "post"},
        },
        {"strategy": progressive("difference"), "precision": "bf16", "micro_batches": 2},
        {"quantizer": {"kind": "bnn", "stochastic": True}, "network": "resnet20", "batch_norm_group": 8},
    ],
    ids=["chain", "residual", "bf16, micro-batches", "stochastic, grouped"],
)
def test_activation_checkpointing_is_exact_and_keeps_less(fields):
    """Two steps to the last bit, statistics and number of batches too, with fewer bytes for backward."""
    states, kept = [], []
    for recompute in (False, True):
        made = make_run(make_config(width=0.25, **fields, activation_checkpointing=recompute), double=False)
        kept.append(0)

        def pack(tensor, made=made):
            known = {p.untyped_storage().data_ptr() for p in made.network.parameters()}
            if tensor.untyped_storage().data_ptr() not in known:
                kept[-1] += tensor.numel() * tensor.element_size()
            return tensor

        made.clock.set(0, 1.0)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            made.forward(*(part[:8] for part in made.data.train_batch(0)))
        made.network.load_state_dict(
            make_run(make_config(width=0.25, **fields), double=False).network.state_dict()
        )
        for _ in range(2):
            made.train_step()
        states.append(made.network.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert kept[1] < 0.6 * kept[0], kept


def test_levels_that_move_with_the_activations_move_once_a_step_with_checkpointing():
    """LQ-Nets: what is computed again reads the levels of the first time and moves none."""
    fields = {"quantizer": "lqnets", "bits": "2/2", "micro_batches": 2}
    states = []
    for recompute in (False, True):
        made = make_run(make_config(**fields, activation_checkpointing=recompute), double=False)
        for _ in range(2):
            made.train_step()
        states.append(made.network.state_dict())
    assert any(name.endswith("input_basis") for name in states[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_micro_batches_are_batch_norm_groups_trained_one_after_the_other():
    """Loss and gradients of M parts are those of batch-norm groups of B / M; statistics forget as fast."""
    fields = {"strategy": progressive("sum"), "network": DROPOUT, "augmentation": "svhn"}
    grads, losses, momenta = [], [], []
    for more in ({"micro_batches": 4}, {"batch_norm_group": 4}):
        made = make_run(make_config(**fields, **more))
        made.clock.set(0, 0.5)
        made.backward(*made.data.train_batch(0))
        grads.append({name: p.grad for name, p in made.network.named_parameters()})
        losses.append(made.loss_sum.item())
        momenta.append(
            next(m.momentum for m in made.network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the loss is computed in float32
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-5, atol=1e-8, msg=name)
    assert (1.0 - momenta[0]) ** 4 == pytest.approx(1.0 - momenta[1])


def test_none_of_the_new_fields_changes_an_identity_at_its_default():
    from bench.experiments.identity import identity_document

    config = complete_config(make_config().dump())
    assert (
        not {"micro_batches", "activation_checkpointing", "batch_norm_group"}
        & identity_document(config).keys()
    )
    changed = make_config(micro_batches=2, activation_checkpointing=True, batch_norm_group=4)
    assert {"micro_batches", "activation_checkpointing", "batch_norm_group"} <= identity_document(
        changed
    ).keys()

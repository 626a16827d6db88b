"""What single quantizers promise beyond tests/conformance: ties, statistics, scales, noise, compilation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import registry
from bench.errors import InputError
from bench.quantizers import make_quantizer
from bench.quantizers.dorefa import quantize_gradient
from bench.quantizers.functional import _multiply_level_, _reciprocal, level_
from bench.randomness import Clock, Draws
from docs.tools.differences import differences
from tests.conformance.checks import run, values, with_scales
from tests.quantizers import quantizer_oracles as oracle

ULP = 2.0**-23
CONV, LINEAR = (6, 5, 3, 3), (7, 12)


def make(kind, w=None, a=None, **kwargs):
    """A quantizer with the first bit widths it takes, unless told."""
    facts = registry.entries("quantizers")[kind].facts
    return make_quantizer(kind, w or facts["w_bits"][0], a or facts["a_bits"][0], **kwargs)


WEIGHTS = [
    *[("dorefa", bits, {}) for bits in (1, 2, 3, 4, 8)],
    ("dorefa_released", 1, {}),
    ("dorefa_released", 2, {}),
    ("dorefa_channelwise", 1, {}),
    ("bnn", 1, {}),
    ("xnor", 1, {}),
    *[("syq", bits, {"granularity": g}) for bits in (1, 2) for g in ("pixel", "row", "layer")],
    ("syq", 1, {"eta": 0.3}),
    ("syq", 2, {"eta": 0.3}),
    ("syq_released", 1, {}),
    ("syq_released", 2, {}),
    ("syq_four_levels", 2, {}),
    ("dorefa_channelwise_released", 1, {}),
    ("ttq", 2, {}),
    ("ttq", 2, {"threshold": 0.4}),
]


# ----------------------------------------------------------------------------------------------------
# activations


@pytest.mark.parametrize(
    ("kind", "want"), [("dorefa", {1: 0, 2: 2, 3: 4, 4: 8}), ("syq", {1: 1, 2: 2, 3: 4, 4: 8})]
)
def test_the_one_tie_that_float32_can_hold(kind, want):
    for bits, code in want.items():
        n = 2**bits - 1
        assert make(kind, a=bits).activation(torch.tensor(0.5)).item() == np.float32(code / n)


def test_bounding_maps():
    x = np.array([-2.0, -1, -0.5, 0, 0.25, 1, 3])
    g = np.arange(1.0, 8)
    relu = (np.maximum(x, 0), g * (x > 0))
    unit = (np.clip(x, 0, 1), g * ((x >= 0) & (x <= 1)))
    both = (np.clip(x, -1, 1), g * (np.abs(x) <= 1))
    cases = [("full_precision", 32, relu), ("dorefa", 32, unit), ("dorefa", 2, unit), ("syq", 32, unit)]
    cases += [("ttq", 32, relu), ("ttq", 2, unit), ("xnor", 32, relu), ("xnor", 1, both), ("bnn", 1, both)]
    for kind, bits, want in cases:
        q = make(kind, a=bits)
        for function in (q.bound, q.activation) if bits == 32 else (q.bound,):
            for got, expected in zip(run(function, x, g), want, strict=True):
                np.testing.assert_array_equal(got, expected, err_msg=f"{kind} {bits}")


@pytest.mark.parametrize(("kind", "bits"), [("dorefa", 1), ("dorefa", 3), ("syq", 1), ("syq", 2), ("bnn", 1)])
def test_bfloat16_activations_are_computed_in_float32(kind, bits):
    x = torch.tensor(values(4_000)).to(torch.bfloat16)
    q = make(kind, a=bits)
    assert torch.equal(q.activation(x), q.activation(x.float()).to(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(q.activation(x.float()), q.activation(x.float() + 0.0))
        assert q.activation(x.float()).dtype == torch.float32


def test_activations_keep_the_memory_format_and_do_not_change_their_input():
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    before = x.clone()
    for kind, bits in (("dorefa", 1), ("dorefa", 4), ("syq", 2), ("bnn", 1)):
        y = make(kind, a=bits).activation(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, before)


# --------------------------------------------------------------------------------------------------------
# weights


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_are_integers_over_n_rounded_once(bits):
    n = 2**bits - 1
    codes = torch.arange(-n, n + 1, dtype=torch.float32)
    want = (np.arange(-n, n + 1) / n).astype(np.float32)
    np.testing.assert_array_equal(level_(codes.clone(), n).numpy(), want)
    high, low = _reciprocal(n)  # the form used on other devices, with a plain and with a fused multiply-add
    np.testing.assert_array_equal(_multiply_level_(codes.clone(), high, low).numpy(), want)
    exact = codes.double().numpy()
    np.testing.assert_array_equal((exact * high + exact * low).astype(np.float32), want)
    w = make("dorefa", bits).weight(torch.tensor(values(20_000)).float())
    if bits > 1:
        assert set(w.tolist()) == set(want[::2].tolist())
    else:
        assert len(w.unique()) == 2 and w.unique()[0] == -w.unique()[1]


def test_sign_of_zero_is_plus_one_but_in_the_released_variant():
    w = torch.tensor([[0.0, -0.0, 0.5, -1.5]])
    for kind in ("dorefa", "dorefa_channelwise", "xnor"):
        assert make(kind).weight(w).tolist() == [[0.5, 0.5, 0.5, -0.5]]
    for kind in ("dorefa_released", "dorefa_channelwise_released"):
        assert make(kind).weight(w).tolist() == [[0.0, 0.0, 0.5, -0.5]]
    assert make("syq_released", 1).weight(w).tolist() == [[0.0, 0.0, 1.0, -1.0]]
    small = torch.tensor([[0.0, -0.0, 0.05, -1.5]])  # 0.05 is below the threshold 0.05 * 1.5
    assert make("syq_four_levels", 2, scale=0.25).weight(small).tolist() == [[0.0, 0.0, 1.0, -0.25]]
    assert make("bnn").weight(w).tolist() == [[1.0, 1.0, 1.0, -1.0]]
    assert make("syq", 1).weight(w).tolist() == [[1.0, 1.0, 1.0, -1.0]]
    assert make("syq", 2).weight(w).tolist() == [[0.0, 0.0, 1.0, -1.0]]
    assert make("ttq").weight(w).tolist() == [[0.0, 0.0, 1.0, -1.0]]


def test_equal_weights_share_the_gradient_of_the_maximum():
    w, g = np.array([[0.5, -0.5, 0.5, 0.1]]), np.array([[1.0, 2, 3, 4]])
    _, dw = run(make("dorefa", 2).weight, w, g)
    t, m = np.tanh(w), np.tanh(0.5)
    share = (g * t).sum() / m**2 / 3
    want = (g / m - share * np.array([[1, -1, 1, 0]])) * (1 - t**2)
    np.testing.assert_allclose(dw, want, rtol=1e-5)
    np.testing.assert_allclose(dw, oracle.tanh_round(w, g, 2)[1], rtol=1e-5)


@pytest.mark.parametrize(("kind", "bits", "options"), WEIGHTS)
def test_given_statistics_replace_measured_ones(kind, bits, options):
    w = torch.tensor(values(CONV)).float()
    q = make(kind, bits, weight_shape=CONV, **options)
    with_scales(q, CONV)
    measured = q.statistics(w)
    assert torch.equal(q.weight(w, measured), q.weight(w))
    if measured is not None:
        assert measured.dtype == torch.float32
        no_threshold = kind in ("syq", "syq_released") and bits == 1 and "eta" not in options
        assert torch.equal(q.weight(w, measured * 3.0), q.weight(w)) == no_threshold


def test_joint_maximum_carries_its_gradient():
    """The maximum over two tensors: the gradient of both maps reaches the one that holds it."""
    q = make("dorefa", 2)
    main, extra = values((2, 3), seed=1, scale=0.3), values((2, 3), seed=2, scale=1.5)
    tensors = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in (main, extra)]
    joint = q.statistics(torch.cat(tensors, dim=1))
    g = values((2, 6), seed=3)
    y = torch.cat([q.weight(t, joint) for t in tensors], dim=1)
    grads = torch.autograd.grad(y, tensors, torch.tensor(g, dtype=torch.float32))
    want, want_dw = oracle.tanh_round(np.concatenate([main, extra], axis=1), g, 2)
    np.testing.assert_allclose(y.detach().numpy(), want, atol=1e-6)
    np.testing.assert_allclose(torch.cat(grads, dim=1).numpy(), want_dw, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "bits", "options", "scales"),
    [
        ("full_precision", 32, {}, 0),
        ("dorefa", 1, {}, 1),
        ("dorefa", 2, {}, 0),
        ("dorefa_channelwise", 1, {}, CONV[0]),
        ("xnor", 1, {}, CONV[0]),
        ("bnn", 1, {}, 0),
        ("syq", 1, {"granularity": "pixel"}, CONV[2] * CONV[3]),
        ("syq", 2, {"granularity": "layer"}, 1),
        ("ttq", 2, {}, 2),
    ],
)
def test_the_scales_that_the_deployed_network_stores(kind, bits, options, scales):
    assert make(kind, bits, weight_shape=CONV, **options).stored_scales(torch.zeros(CONV)) == scales


def test_learned_scales_are_parameters_created_once():
    q = make_quantizer("syq", 1, 2, weight_shape=CONV, scale=0.2)
    assert q.scale.shape == (1, 1, 3, 3) and q.scale.min() == q.scale.max() == np.float32(0.2)
    assert make_quantizer("syq", 1, 2, weight_shape=CONV, granularity="row").scale.shape == (1, 1, 3, 1)
    assert make_quantizer("syq", 1, 2, weight_shape=CONV, granularity="layer").scale.shape == (1, 1, 1, 1)
    assert make_quantizer("syq", 1, 2, weight_shape=LINEAR).scale.shape == (1, 1)
    late = make_quantizer("syq", 2, 2)
    assert not list(late.parameters())
    late.weight(torch.ones(CONV))
    scale = late.scale
    late.weight(torch.ones(CONV))
    assert late.scale is scale and scale.shape == (1, 1, 3, 3) and (scale == 1).all()
    assert [n for n, _ in make_quantizer("ttq", 2, 2, weight_shape=CONV).named_parameters()] == [
        "positive",
        "negative",
    ]


@pytest.mark.parametrize(
    ("granularity", "axes"), [("pixel", (0, 1)), ("row", (0, 1, 3)), ("layer", (0, 1, 2, 3))]
)
def test_scales_can_start_at_the_mean_magnitude_of_their_group(granularity, axes):
    w = values(CONV, scale=0.3)
    for kind, bits in (("syq", 1), ("syq_released", 2), ("syq_four_levels", 2)):
        q = make_quantizer(kind, bits, 2, weight_shape=CONV, granularity=granularity, scale_from_weights=True)
        q.start_(torch.tensor(w).float())
        want = np.abs(w).mean(axis=axes, keepdims=True)
        np.testing.assert_allclose(q.scale.detach().numpy(), want, rtol=1e-6)
        fixed = make_quantizer(kind, bits, 2, weight_shape=CONV, scale=0.2)
        fixed.start_(torch.tensor(w).float())
        assert (fixed.scale == np.float32(0.2)).all()


def test_which_quantizers_change_the_stored_weights():
    for kind in registry.entries("quantizers"):
        w = torch.tensor([[-3.0, 0.5, 2.0]], requires_grad=True)
        make(kind, weight_shape=(1, 3)).after_step_(w)
        clipped = kind in ("binaryconnect", "bnn", "qnn", "qnn_log", "tang")
        assert w.tolist() == ([[-1.0, 0.5, 1.0]] if clipped else [[-3.0, 0.5, 2.0]])


def test_xnor_input_scale():
    x = values((2, 3, 7, 6))
    q = make("xnor")
    assert (
        q.scales_input
        and not make("xnor", a=32).scales_input
        and not make("xnor", input_scale=False).scales_input
    )
    for kernel, stride, padding in (
        ((3, 3), (1, 1), (1, 1)),
        ((3, 2), (2, 1), (0, 1)),
        ((5, 5), (1, 1), (0, 0)),
    ):
        got = q.input_scale(torch.tensor(x).float(), kernel, stride, padding)
        np.testing.assert_allclose(got.numpy(), oracle.box_scale(x, kernel, stride, padding), rtol=1e-5)
    flat = q.input_scale(torch.tensor(x[:, :, 0, 0]).float(), 1)
    np.testing.assert_allclose(flat.numpy(), np.abs(x[:, :, 0, 0]).mean(axis=1, keepdims=True), rtol=1e-6)
    assert q.input_scale(torch.ones(1, 2, 3, 3, requires_grad=True), 3).requires_grad is False


# ------------------------------------------------------------------------------------------------ stochastic
# maps


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 11)])
def test_gradient_quantizer_equals_the_oracle(bits, shape):
    n = 2**bits - 1
    g, u = values(shape), np.random.default_rng(7).integers(0, 2**24, shape) / 2**24
    g[2] = 0.0
    got = quantize_gradient(torch.tensor(g).float(), n, torch.tensor(u).float()).double().numpy()
    want = oracle.rounded_gradient(g, bits, u)
    peak = np.abs(g).reshape(4, -1).max(axis=1).reshape(4, *[1] * (len(shape) - 1))
    np.testing.assert_allclose(
        got, want, atol=1e-6 * peak.max()
    )  # no code on the other side of a threshold here
    assert (got[2] == 0).all()
    codes = got[[0, 1, 3]] / peak[[0, 1, 3]] * n
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)
    half = torch.tensor(g).to(torch.bfloat16)
    uniform = torch.tensor(u).float()
    assert torch.equal(
        quantize_gradient(half, n, uniform), quantize_gradient(half.float(), n, uniform).to(half.dtype)
    )


def test_gradient_quantizer_in_the_graph():
    q = make("dorefa", g_bits=2)
    clock = Clock(seed=5)
    q.draws = Draws(clock, "gradient", "conv1")
    x, g = values((3, 2, 4, 4)), values((3, 2, 4, 4), seed=1)
    results = []
    for step in (0, 1, 0):
        clock.set(step, 0.0)
        y, dx = run(q.gradient, x, g)
        np.testing.assert_array_equal(y, x)
        want = oracle.rounded_gradient(g, 2, q.draws.uniform(torch.zeros(3, 2, 4, 4)).double().numpy())
        np.testing.assert_allclose(dx, want, atol=1e-5)
        results.append(dx)
    assert (results[0] == results[2]).all() and (results[0] != results[1]).any()
    q.draws = None  # a fixed stream
    assert (run(q.gradient, x, g)[1] == run(q.gradient, x, g)[1]).all()
    whole = make("dorefa")
    y = torch.ones(2, 2)
    assert whole.gradient(y) is y


def test_stochastic_rounding_is_unbiased():
    q = make("dorefa", g_bits=2)
    clock = Clock(seed=1)
    q.draws = Draws(clock, "gradient", "x")
    g = np.concatenate([[1.0], np.linspace(-0.95, 0.95, 23)]).reshape(1, -1).repeat(64, axis=0)
    total = np.zeros(24)
    for step in range(200):
        clock.set(step, 0.0)
        total += run(q.gradient, g, g)[1].mean(axis=0)
    # the spread of one draw is at most 1/n = 1/3: a standard error of 0.003 over 12,800
    np.testing.assert_allclose(total / 200, g[0], atol=0.015)


def test_stochastic_signs():
    q = make("bnn", stochastic=True)
    clock = Clock(seed=1)
    q.draws = Draws(clock, "activation", "x")
    x = np.linspace(-1.5, 1.5, 31).reshape(1, -1).repeat(64, axis=0)
    g = values(x.shape)
    total = np.zeros(31)
    for step in range(200):
        clock.set(step, 0.0)
        y, dx = run(q.activation, x, g)
        assert set(np.unique(y)) == {-1.0, 1.0}
        total += y.mean(axis=0)
    np.testing.assert_array_equal(dx, np.float32(oracle.sign_activation(np.float32(x), g)[1]))
    np.testing.assert_allclose(total / 200, np.clip(x[0], -1, 1), atol=0.045)
    assert (run(q.activation, x, g)[0] == y).all()
    u = q.draws.uniform(torch.tensor(x)).numpy()
    np.testing.assert_array_equal(y, np.where(u < (np.float32(x) + 1) / 2, 1, -1))
    q.eval()
    np.testing.assert_array_equal(run(q.activation, x, g)[0], oracle.sign(x))


# --------------------------------------------------------------------------------------------- compiled,
# registry


class Together(torch.nn.Module):
    """All maps of some quantizers in one graph."""

    def __init__(self, quantizers):
        super().__init__()
        self.quantizers = torch.nn.ModuleList(quantizers)

    def forward(self, w, x):
        outputs = []
        for q in self.quantizers:
            outputs += [q.weight(w), q.weight(w, q.statistics(w)), q.gradient(q.activation(x)), q.bound(x)]
            if q.scales_input:
                outputs.append(q.input_scale(x, 3, 1, 1))
        return outputs


def compare_compiled(cases, backend, tolerance):
    module = Together([make(kind, w, a, weight_shape=CONV, **options) for kind, w, a, options in cases])
    clock = Clock(seed=2)
    for i, q in enumerate(module.quantizers):
        with_scales(q, CONV)
        q.draws = Draws(clock, "quantizer", str(i))
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for step in (0, 1):
        clock.set(step, 0.0)
        results = []
        for function in (module, compiled):
            # The sum of multiples of 2^-12 is exact, so every order of summing gives the same mean.
            w = (torch.tensor(values(CONV, scale=0.7)) * 4096).round().div(4096).float().requires_grad_()
            x = torch.tensor(values((2, 5, 8, 8), seed=1)).float().requires_grad_()
            with torch.no_grad():
                w.view(-1)[:3] = torch.tensor([0.0, -0.0, 1.0])
                x.view(-1)[:4] = torch.tensor([0.0, -0.0, 0.5, 1.0])
            outputs = function(w, x)
            loss = sum((o * (i + 1)).pow(2).sum() for i, o in enumerate(outputs))
            results.append((outputs, torch.autograd.grad(loss, [w, x, *module.parameters()])))
        for i, (eager, other) in enumerate(zip(*(r[0] for r in results), strict=True)):
            if backend == "inductor":  # its tanh and its division by n: one unit in the last place
                torch.testing.assert_close(
                    other, eager, rtol=2.0**-23, atol=0, msg=lambda m, i=i: f"output {i}: {m}"
                )
                assert torch.equal(torch.sign(other), torch.sign(eager))
            else:
                assert torch.equal(eager, other), f"output {i}"
        for eager, other in zip(*(r[1] for r in results), strict=True):
            torch.testing.assert_close(other, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_compiled_equals_eager():
    cases = [
        ("full_precision", 32, 32, {}),
        ("dorefa", 1, 1, {"g_bits": 4}),
        ("dorefa", 2, 3, {"g_bits": 2}),
        ("dorefa_released", 1, 2, {}),
        ("dorefa_channelwise", 1, 2, {}),
        ("bnn", 1, 1, {"stochastic": True}),
        ("xnor", 1, 1, {}),
        ("syq", 1, 2, {"granularity": "layer"}),
        ("syq", 1, 1, {"eta": 0.1}),
        ("syq_released", 1, 2, {}),
        ("syq_four_levels", 2, 2, {}),
        ("syq", 2, 2, {}),
        ("ttq", 2, 2, {}),
    ]
    compare_compiled(cases, "aot_eager", 1e-6)


BY_INDUCTOR = [
    ("dorefa", 1, 2, {"g_bits": 4}),
    ("dorefa", 2, 3, {}),
    ("bnn", 1, 1, {"stochastic": True}),
    ("syq", 2, 2, {}),
    ("ttq", 2, 1, {}),
]


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(BY_INDUCTOR[1:2], id="one"),
        pytest.param(BY_INDUCTOR, id="several", marks=pytest.mark.slow),
    ],
)
def test_compiled_by_inductor_equals_eager(cases):
    compare_compiled(cases, "inductor", 1e-4)


def test_make_quantizer_refuses_what_does_not_exist():
    for call, words in (
        (lambda: make_quantizer("dorafa", 1, 1), "Did you mean 'dorefa'"),
        (lambda: make_quantizer("bnn", 2, 1), "w_bits: 2"),
        (lambda: make_quantizer("dorefa", 1, 9), "a_bits: 9"),
        (lambda: make_quantizer("xnor", 1, 1, 4), "g_bits: 4"),
        (lambda: make_quantizer("syq", 1, 1, granularity="pixle"), "Did you mean 'pixel'"),
        (lambda: make_quantizer("dorefa", 1, 1, stochastic=True), "no such option"),
    ):
        with pytest.raises(InputError, match=words):
            call()


def test_table_of_differences():
    rows = {(row["quantizer"], row["bits"]): row for row in differences()}
    one = {kind: row for (kind, bits), row in rows.items() if bits == "1"}
    # mean |w| of the eight weights is 3.6 / 8; of the channels 1.1 / 4 and 2.5 / 4
    assert one["dorefa"]["levels"] == "-0.45 0.45" and one["dorefa"]["zero"] == "0.45"
    for kind in ("dorefa_released", "dorefa_pytorch"):
        assert one[kind]["levels"] == "-0.45 0 0.45" and one[kind]["zero"] == "0"
    assert one["dorefa_bitorch"]["levels"] == "-1 1" and one["dorefa_bitorch"]["zero"] == "-1"
    assert one["dorefa_channelwise"]["scale"] == one["xnor"]["scale"] == "0.275 0.625"
    assert one["dorefa_channelwise"]["zero"] == "0.275"
    assert one["bnn"]["levels"] == "-1 1" and one["bnn"]["scale"] == "-"
    for kind in ("dorefa", "dorefa_released", "dorefa_bitorch"):
        assert rows[kind, "2"]["levels"] == "-1 -0.3333 0.3333 1"
    m = np.tanh(1.2)
    assert rows["dorefa_pytorch", "2"]["levels"] == f"{-m:.4g} {-m / 3:.4g} {m / 3:.4g} {m:.4g}"
    assert not {("dorefa_channelwise", "2"), ("xnor", "2"), ("bnn", "2")} & rows.keys()
    # straight through; 1/n + alpha 1[|w| <= 1] = 1/4 at w = 1.2; hard tanh
    for kind, largest in {"dorefa": 1, "dorefa_channelwise": 1, "xnor": 0.25, "bnn": 0}.items():
        assert float(one[kind]["gradient"].split(",")[0]) == largest
    t = np.tanh([-0.8, 0, 0.1, 0.2, 0.4, 1.2, -0.3, 0.6])
    of_dorefa, of_pytorch, of_bitorch = (
        float(rows[kind, "2"]["gradient"].split(",")[0])
        for kind in ("dorefa", "dorefa_pytorch", "dorefa_bitorch")
    )
    assert of_dorefa == pytest.approx((1 - m**2) * (1 / m - t.sum() / m**2), abs=1e-4)
    assert of_pytorch == pytest.approx(1 - m**2, abs=1e-4) and of_bitorch == 1
    assert one["dorefa"]["activation_levels"] == "0 1" and one["bnn"]["activation_levels"] == "-1 1"
    assert one["dorefa"]["activation_threshold"] == "0.5" and one["bnn"]["activation_threshold"] == "0"
    assert one["dorefa"]["activation_values"] == "0 0 0 1 1", "half to even"
    assert one["dorefa_pytorch"]["activation_values"] == "0 0 1 1 1"
    assert one["dorefa"]["activation_gradient"] == "0 1 1 1 0"
    assert one["dorefa_bitorch"]["activation_gradient"] == "1 1 1 1 1"


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_all_zero_weights_of_a_range_of_zero_are_zero(bits):
    """The levels of ``dorefa_pytorch`` are m (2 i - n) / n: a weight of 0 is m / n, and 0 where m is 0."""
    q, n = make_quantizer("dorefa_pytorch", bits, 1), 2**bits - 1
    assert torch.equal(q.weight(torch.zeros(2, 3)), torch.zeros(2, 3))
    assert torch.equal(q.weight_levels(torch.zeros(2, 3)).weight(), torch.zeros(2, 3))
    zero, largest = q.weight(torch.tensor([0.0, -0.5])).tolist()
    assert zero == pytest.approx(np.tanh(0.5) / n) and largest == pytest.approx(-np.tanh(0.5))


def test_the_page_of_variants_is_current():
    from docs.tools.variants import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m docs.tools.variants"

"""Counter-based random numbers against an independent NumPy reading of the hash."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from bench.randomness import (
    Clock,
    Draws,
    bits,
    combine,
    key_of,
    normal,
    permutation,
    sample_bits,
    truncated_normal,
    uniform,
)


def oracle_mix(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.uint32)
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x21F0AAAD)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x735A2D97)
    return x ^ (x >> np.uint32(15))


def oracle_combine(key: int, counter: np.ndarray) -> np.ndarray:
    counter = np.asarray(counter, dtype=np.uint32)
    return oracle_mix(oracle_mix(counter + np.uint32(0x61C88647)) + np.uint32(key))


def test_hash_is_the_32_bit_arithmetic_of_unsigned_integers():
    counters = np.array([0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    for key in (0, 1, 0xDEADBEEF, 2**32 - 1):
        expected = oracle_combine(key, counters)
        assert combine(key, torch.tensor(counters.astype(np.int64))).tolist() == expected.tolist()
        assert [combine(key, int(c)) for c in counters] == expected.tolist()


def test_fold_of_names_and_numbers():
    word = int.from_bytes(hashlib.sha256(b"init").digest()[:4], "little")
    key = int(oracle_combine(int(oracle_combine(0, 7)), word))
    assert key_of(7, "init") == key
    assert key_of("init", 7) != key
    assert key_of(2**32 + 7, "init") == key


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_draws_are_the_eager_ones(backend):
    def draw(key, samples):
        return sample_bits(key, samples, (3, 5))

    key, samples = torch.tensor(123), torch.arange(4)
    assert torch.equal(torch.compile(draw, backend=backend)(key, samples), draw(key, samples))


def test_uniform_and_normal_moments():
    u = uniform(key_of(1, "u"), (200_000,)).double()
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / 2e5) ** 0.5
    z = normal(key_of(1, "z"), (200_000,)).double()
    assert abs(z.mean()) < 4 / 2e5**0.5 and abs(z.std() - 1) < 4 / 4e5**0.5
    t = truncated_normal(key_of(1, "t"), (200_000,)).double()
    assert t.abs().max() <= 2
    assert abs(t.std() - 0.87962566) < 0.005  # sqrt(1 - 4 phi(2) / (Phi(2) - Phi(-2)))


def test_neighbouring_counters_and_keys_are_uncorrelated():
    x = np.array([(bits(key, (2000,)).double() / 2**32).tolist() for key in range(300)])
    assert abs(np.corrcoef(x[:, :-1].ravel(), x[:, 1:].ravel())[0, 1]) < 4 / x.size**0.5
    assert abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 4 / x.size**0.5


def test_permutation_is_one_and_depends_on_the_key():
    first, second = permutation(1000, 1), permutation(1000, 2)
    assert sorted(first.tolist()) == list(range(1000))
    assert not torch.equal(first, second)
    assert torch.equal(first, permutation(1000, 1))


def test_a_sample_draws_the_same_wherever_it_stands_in_the_batch():
    whole = sample_bits(9, torch.arange(8), (2, 2))
    assert torch.equal(sample_bits(9, torch.tensor([5, 1]), (2, 2)), whole[[5, 1]])


def test_draws_change_with_step_seed_layer_and_purpose():
    x = torch.zeros(4, 3)
    clock = Clock(seed=1)
    draws = Draws(clock, "dropout", "layer")
    first = draws.uniform(x)
    assert torch.equal(first, draws.uniform(x))
    clock.set(1, 0.0)
    assert not torch.equal(first, draws.uniform(x))
    clock.set(0, 0.0)
    for other in (
        Draws(Clock(seed=2), "dropout", "layer"),
        Draws(clock, "noise", "layer"),
        Draws(clock, "dropout", "other"),
    ):
        assert not torch.equal(first, other.uniform(x))


def test_clock_writes_in_place():
    clock = Clock()
    step, factor = clock.step, clock.factor
    clock.set(5, 0.25)
    assert step.item() == 5 and factor.item() == 0.25 and clock.active
    clock.set_factor(0.0)
    assert factor.item() == 0.0 and not clock.active and step.item() == 5


def test_rows_of_a_sample_draw_the_same_in_whatever_share_of_the_batch():
    """Windows of attention: each image has several rows, and every worker has other images."""
    whole, share = Clock(), Clock()
    share.samples = torch.tensor([2, 3])
    x = torch.zeros(4 * 6, 5)  # of 4 images, 6 rows each
    first, second = (Draws(clock, "dropout", "layer") for clock in (whole, share))
    assert torch.equal(second.uniform(x[12:]), first.uniform(x)[12:])
    assert torch.equal(second.uniform(x[:2]), first.uniform(x[:4])[2:])

"""A search through Ray Tune: the same records and the same choices as without Ray."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from bench.cli.main import main
from tests.tuning.test_run import TRAIN, Bench, change


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
def test_ray_tune_is_fed_by_the_search_and_makes_the_same_choices(tmp_path):
    benches = []
    for name in ("ray", "processes"):
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name)
        change(bench, "effort = 3", 'effort = 3\nscheduler = "halving"')
        benches.append(bench)
    with_ray, without = benches
    assert main(with_ray.words("--jobs", "2"), train=TRAIN) == 0
    assert without.run() == 0
    assert with_ray.tuned() == without.tuned()
    assert sorted(with_ray.calls()) == sorted(without.calls())
    assert with_ray.unfolded()[1].finished


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray")
def test_ashas_stops_are_recorded_as_depending_on_timing_and_never_run_again(tmp_path):
    bench = Bench(tmp_path)
    change(bench, "effort = 3", 'effort = 9\nscheduler = "asha"')
    change(bench, "seeds = [100, 101]", "seeds = [100]")
    assert main(bench.words("--jobs", "2"), train=TRAIN) == 0
    _, standing = bench.unfolded()
    assert standing.finished and all(search.chosen is not None for search in standing.points)
    lines = bench.tuned()
    assert all(line["depends_on_timing"] for line in lines)
    assert any(line["dropped_at"] for line in lines) and not any(
        line["dropped_at"] for line in lines if line["chosen"]
    )
    before = bench.calls()
    assert main(bench.words("--jobs", "2"), train=TRAIN) == 0
    assert bench.calls() == before

"""What every test shares: one thread, forked processes, and the real images of ``BENCH_DATA``."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest

from bench.machine import processes
from tests.forking import Forking

os.environ.setdefault("OMP_NUM_THREADS", "1")

# The files that take longest, the longest first: dealt out at the end, one would keep one worker waiting.
LONGEST = """
    export/test_every_quantizer.py export/test_matrix.py training/test_modes.py
    conformance/test_registered.py test_end_to_end.py reporting/test_figures_visually.py
    api/test_notebooks.py tuning/test_run.py launch/test_running.py reporting/test_page_in_browser.py
    training/test_trial.py integer/test_networks.py robustness/test_failures.py cli/test_cli.py
    launch/test_ray_start.py api/test_api.py export/test_command.py robustness/test_fuzz.py
    training/test_distributed.py export/test_damage.py networks/test_networks.py
    networks/test_imagenet_networks.py networks/test_convert.py quantizers/test_training.py
    doctor/test_doctor.py docs/test_site.py robustness/test_kills.py tuning/test_ray.py
    launch/test_gpu_sharing.py robustness/test_nodes.py datasets/test_photographs.py
    datasets/test_datasets.py reporting/test_report.py reporting/test_ablations.py
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first; the order within a file stays."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    absent = [str(path) for path in places if not path.is_file()]
    assert not absent, f"LONGEST names files that do not exist: {', '.join(absent)}"
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _forked_processes():
    """Processes that the suite starts within the tests' own process begin at once (``forking.py``)."""
    with mock.patch.object(processes, "CONTEXT", Forking()):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The data folder with real images; skips, saying so, where there is none."""
    folder = os.environ.get("BENCH_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs real images: set BENCH_DATA to the folder that holds them")
    return Path(folder)

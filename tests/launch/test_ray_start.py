"""Ray's start where the environment is not made for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.errors import InputError
from bench.launch import ray_cluster
from bench.launch.ray_tune import _write_marks
from bench.records.locks import Owner
from bench.records.store import Store

FILE = """
[defaults]
dataset = "digits"
network = "svhn_convnet"
width = 0.125
epochs = 2
quantizer = "dorefa"
bits = "1/1"
[[arms]]
name = "plain"
"""
LAUNCHER = Path(__file__).parents[1] / "robustness" / "bench_with_fakes.py"


def run(folder: Path, **environment: str) -> str:
    """Run one trial with Ray in this environment; return what was printed."""
    (folder / "ray.toml").write_text(FILE)
    (folder / "data").mkdir()
    places = ["--results", str(folder / "results"), "--data", str(folder / "data")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(LAUNCHER), "run", str(folder / "ray.toml"), *places, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        env={**kept, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store(folder / "results")
    assert [store.status(id) for id in store.ids()] == ["done"]
    assert "Ray: " in done.stdout
    return done.stdout


def test_a_cluster_in_the_environment_a_long_temporary_folder_that_is_not_ascii_and_no_home(tmp_path):
    pytest.importorskip("ray")
    long = tmp_path / ("ä" * 82)
    long.mkdir()
    said = run(tmp_path, RAY_ADDRESS="192.0.2.1:6379", TMPDIR=str(long), HOME="/proc/nowhere")
    assert "RAY_ADDRESS is set, but --address is not given" in said
    assert list(long.glob("bench-*")) == []


class TestShortPlace:
    def test_the_systems_folder_where_it_serves(self, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", "/tmp")
        assert ray_cluster.short_place() == Path("/tmp")

    @pytest.mark.parametrize("name", ["y" * 82, "tämp"])
    def test_another_one_where_the_path_is_long_or_not_ascii(self, monkeypatch, tmp_path, name):
        monkeypatch.setattr(tempfile, "tempdir", f"/{name}")
        monkeypatch.setattr(ray_cluster, "_SHORT_PLACES", ("/proc/none", "/tmp"))
        assert ray_cluster.short_place() == Path("/tmp")

    def test_says_what_to_do_where_there_is_none(self, monkeypatch, tmp_path):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("y" * 82)))
        monkeypatch.setattr(ray_cluster, "_SHORT_PLACES", ("/proc/none",))
        with pytest.raises(InputError, match=r"at most 24 characters.*Set TMPDIR to such a folder") as raised:
            ray_cluster.short_place()
        assert "y" * 82 in str(raised.value) and "--no-ray" in str(raised.value)


class TestPatience:
    """The start waits for the node, however long its processes need, and not for one that is gone."""

    @pytest.fixture
    def start(self, monkeypatch, tmp_path):
        """Return a start of a node that is there at the fourth look; it returns the looks and the port."""
        pytest.importorskip("ray")
        from ray._private import node, services

        looks: list[str] = []

        def get_node(address, id):
            looks.append(id)
            if len(looks) < 4:
                raise RuntimeError("the node is not there")

        monkeypatch.setattr(services, "get_node", get_node)
        monkeypatch.setattr(node.Node, "start_ray_processes", lambda self: None)

        def start(exit_status: int | None) -> tuple[int, int]:
            raylet = SimpleNamespace(process=SimpleNamespace(poll=lambda: exit_status))
            params = SimpleNamespace(runtime_env_agent_port=0)
            fields = {"gcs_address": "", "_node_id": "ab" * 28, "_session_dir": str(tmp_path)}
            with ray_cluster._patience():
                made = SimpleNamespace(all_processes={"raylet": [raylet]}, _ray_params=params, **fields)
                node.Node.start_ray_processes(made)
            return len(looks), params.runtime_env_agent_port

        return start

    def test_it_looks_until_the_node_is_there(self, start, tmp_path):
        from ray import _raylet

        looks, port = start(None)
        assert looks == 4
        if hasattr(_raylet, "persist_port"):
            assert port > 0
            assert [path.read_text() for path in tmp_path.iterdir() if path.is_file()] == ["-1"] * 3

    def test_it_does_not_wait_for_a_raylet_that_is_gone(self, start):
        assert start(1)[0] == 0

    def test_a_ray_with_other_insides_starts_with_its_own_limits(self, monkeypatch):
        pytest.importorskip("ray")
        from ray._private import node

        started = []
        monkeypatch.setattr(node.Node, "start_ray_processes", started.append)
        with ray_cluster._patience():
            node.Node.start_ray_processes("no attribute that is known")
        assert started == ["no attribute that is known"]
        monkeypatch.delattr(node.Node, "start_ray_processes")
        with ray_cluster._patience():
            pass


class TestToken:
    def test_the_users_token_is_used(self, monkeypatch, tmp_path):
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        with monkeypatch.context() as context:
            context.setattr(os, "environ", dict(os.environ))
            ray_cluster._authenticate(local=False)
            assert "RAY_AUTH_MODE" not in os.environ  # no token here: the cluster may need none
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
        with monkeypatch.context() as context:
            context.setattr(os, "environ", dict(os.environ))
            ray_cluster._authenticate(local=True)
            assert "RAY_AUTH_TOKEN" not in os.environ  # Ray finds the file
            ray_cluster._authenticate(local=False)
            assert os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in os.environ

    def test_a_local_start_without_one_gets_a_token_that_no_file_holds(self, monkeypatch, tmp_path):
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        monkeypatch.setattr(os, "environ", environment)
        ray_cluster._authenticate(local=True)
        assert "RAY_AUTH_MODE" not in environment and len(environment["RAY_AUTH_TOKEN"]) == 64
        assert list(tmp_path.iterdir()) == []


def test_marks_of_killed_launchers_go_and_those_of_others_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here = Owner.here()
    owners = {
        "go-on-0000000a": replace(here, pid=dead.pid),
        "here-0000000a": replace(here, pid=dead.pid),
        "go-on-0000000b": here,
        "here-0000000c": replace(here, pid=dead.pid, boot="another machine"),
    }
    for name, owner in owners.items():
        (tmp_path / name).write_text(json.dumps(asdict(owner)))
    (tmp_path / "go-on-0000000d").touch()  # of an older version: nobody can tell
    made = _write_marks(tmp_path)
    kept = {path.name for path in tmp_path.iterdir()} - {path.name for path in made}
    assert kept == {"go-on-0000000b", "here-0000000c", "go-on-0000000d"}
    assert all(path.is_file() for path in made)

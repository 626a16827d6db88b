"""Ray's start: on this machine, or by joining a cluster. Ray is imported only by the functions below."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bench
from bench.errors import InputError
from bench.machine.foreign import source_places
from bench.machine.temporary import temporary_folder
from bench.text import kind_and_reason, say

START = 600.0  # seconds; bounds a start that hangs, and is no limit for a busy machine
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # Ray's own limits of 30 and 60 s: on a busy machine a process needs longer to import what it runs
    "RAY_agent_register_timeout_ms": f"{1000 * START:.0f}",
    "RAY_gcs_server_port_wait_time_s": f"{START:.0f}",
    "RAY_worker_register_timeout_seconds": f"{START:.0f}",
}
_OTHER_RAY = (AttributeError, ImportError, TypeError)  # a Ray whose insides differ: it keeps its own limits
_UNUSED_PORTS = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port")
# A socket's path has 107 bytes at most; below its temporary folder Ray's longest path takes 64 of them, and
# the name of the temporary folder itself 19.
_LONGEST_PLACE = 24
_SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")


def unavailable(address: str | None = None) -> str:
    """Return why Ray cannot be imported, "" where it can; ``address`` is that of the cluster to join."""
    _authenticate(local=address is None)  # Ray reads this at its import
    os.environ.update({name: os.environ.get(name, value) for name, value in _SETTINGS.items()})
    try:
        import ray.tune  # noqa: F401
    except Exception as error:  # a broken installation raises all sorts of things
        return kind_and_reason(error)
    return ""


@contextlib.contextmanager
def cluster(address: str | None, devices: Sequence[str]) -> Iterator[dict[str, float]]:
    """Start Ray here, or join a cluster, and yield its resources; ``InputError`` where that fails."""
    import ray

    place = None if address else short_place()
    elsewhere = None if address else os.environ.pop("RAY_ADDRESS", None)
    if elsewhere:
        say(
            "RAY_ADDRESS is set, but --address is not given: Ray starts on this machine, "
            f"{elsewhere} is not used"
        )
    try:
        with temporary_folder("code" if address else "ray", place) as folder:
            arguments = _joining(address, folder) if address else _starting(devices, folder)
            try:
                _initialize(address, arguments)
                yield ray.cluster_resources()
            finally:
                ray.shutdown()
    finally:
        if elsewhere:
            os.environ["RAY_ADDRESS"] = elsewhere


def _initialize(address: str | None, arguments: dict[str, Any]) -> None:
    """Call ``ray.init``; raises ``InputError``, which says what to do."""
    import ray

    try:
        with _patience():
            ray.init(**arguments, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if address:
            message = f"--address {address}: the cluster cannot be reached ({reason}); is its token in "
            message += f"{_token_file()} here, too?"
        else:
            message = f"Ray cannot be started ({reason});"
        raise InputError(f"{message} --no-ray does without") from error


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Let Ray's start on this machine take its time, as long as its main process, the raylet, is there.

    The raylet waits 15 seconds for its agents, which write their ports into files once they have imported
    what they need, and Ray waits 30 seconds for the raylet. On a busy machine neither is enough, and Ray has
    no setting for either limit. So the one agent that trials need gets its port here, and the files of the
    others say from the beginning that they are not in use. The wait for the raylet stands before Ray's own,
    which then finds the node or says what is wrong. ``START`` bounds a start that hangs.
    """
    try:
        from ray._private import node

        node_class: Any = node.Node
        start = node_class.start_ray_processes
    except _OTHER_RAY:
        yield
        return

    def start_and_wait(self: Any) -> None:
        with contextlib.suppress(*_OTHER_RAY):
            _do_without_agents(self)
        start(self)
        with contextlib.suppress(*_OTHER_RAY):
            _wait_for_node(self)

    node_class.start_ray_processes = start_and_wait
    try:
        yield
    finally:
        node_class.start_ray_processes = start


def _do_without_agents(node: Any) -> None:
    """Write the files that the raylet waits for, and choose the one port that trials need."""
    from ray import _raylet

    insides: Any = _raylet
    for name in _UNUSED_PORTS:
        insides.persist_port(node._session_dir, node._node_id, name, -1)
    node._ray_params.runtime_env_agent_port = _free_port()


def _wait_for_node(node: Any) -> None:
    """Wait until Ray knows the node, or its raylet has ended, or ``START`` is over."""
    from ray._private.services import get_node

    raylets = [process.process for process in node.all_processes.get("raylet", ())]
    end = time.monotonic() + START
    while all(raylet.poll() is None for raylet in raylets) and time.monotonic() < end:
        try:
            get_node(node.gcs_address, node._node_id)
            return
        except RuntimeError:  # the node is not there yet
            time.sleep(0.2)


def _free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def _starting(devices: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the arguments of ``ray.init`` that start Ray on ``devices`` here, its files in ``folder``."""
    gpus = [device.partition(":")[2] for device in devices if device.startswith("cuda")]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = _visible(gpus)
    return {"address": "local", "include_dashboard": False, "num_gpus": len(gpus), "_temp_dir": str(folder)}


def _joining(address: str, folder: Path) -> dict[str, Any]:
    """Return the arguments of ``ray.init`` that join a cluster and say what travels to its nodes.

    This package travels, and the user's code that was allowed; recipes travel resolved, in the tasks.
    ``folder`` holds copies of the user's modules while they are sent.
    """
    settings = {name: os.environ.get(name, value) for name, value in _SETTINGS.items()}
    travels: dict[str, Any] = {"py_modules": [str(Path(bench.__file__).parent)], "env_vars": settings}
    for place in source_places():
        if place.is_dir():
            shutil.copytree(
                place, folder / place.name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )
        else:
            shutil.copy(place, folder)
        travels["working_dir"] = str(folder)  # nodes look for modules there, too
    return {"address": address, "runtime_env": {**travels, "excludes": ["__pycache__"]}}


def short_place() -> Path:
    """Return a folder for Ray's temporary files whose path is short and ASCII, as Ray's sockets need it.

    That is the system's temporary folder ($TMPDIR) where it serves, else a usual one. Raises ``InputError``,
    which says what to do, where there is none.
    """
    for place in (tempfile.gettempdir(), *_SHORT_PLACES):
        if place.isascii() and len(place) <= _LONGEST_PLACE and os.access(place, os.W_OK | os.X_OK):
            return Path(place)
    raise InputError(
        f"Ray needs a temporary folder that can be written and whose path has at most {_LONGEST_PLACE} "
        f"characters, all of them ASCII; TMPDIR is {tempfile.gettempdir()!r}, and none of "
        f"{', '.join(_SHORT_PLACES)} can be written. "
        "Set TMPDIR to such a folder, or give --no-ray"
    )


def _authenticate(*, local: bool) -> None:
    """Give Ray a token: the user's where there is one; for a start on this machine one that no file holds.

    Ray reads a token from $RAY_AUTH_TOKEN, $RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. A start on this machine
    asks for one by itself, and without one would write a file into the home folder, which may be read-only.
    Joining a cluster, Ray (2.59 and later) shows a token only in mode "token", which Ray reads at its import.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    known = bool(named) or _token_file().exists()
    if local and not known:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    elif known and not local:
        os.environ["RAY_AUTH_MODE"] = "token"


def _token_file() -> Path:
    return Path(os.path.expanduser("~")) / ".ray" / "auth_token"


def _visible(gpus: Sequence[str]) -> str:
    """Return ``CUDA_VISIBLE_DEVICES`` for these of the GPUs that are visible now."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else None
    return ",".join(names[int(gpu)] if names else gpu for gpu in gpus)


def check_resources(resources: dict[str, float], cpus: float, gpus: float, workers: int = 1) -> None:
    """Raise ``InputError`` where one trial asks for more than there is: the trial would wait for ever."""
    for option, wanted, kind in (("--cpus-per-trial", cpus, "CPU"), ("--gpus-per-trial", gpus, "GPU")):
        if workers * wanted > resources.get(kind, 0.0):
            asked = f"{option} {wanted:g}" if workers == 1 else f"--workers-per-trial {workers}"
            raise InputError(f"{asked}: Ray finds {resources.get(kind, 0.0):g} {kind}s in all")

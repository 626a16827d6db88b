"""Where a record comes from: code revision and versions."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import bench

_PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "ray", "pydantic")


@functools.cache
def code_revision() -> tuple[str | None, bool | None]:
    """Return (git commit, whether the package's files differ from it); without git ``$BENCH_COMMIT``."""
    folder = Path(bench.__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if git("ls-files", "--", "__init__.py"):  # otherwise the package lies inside someone else's checkout
            return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", str(folder)))
    return os.environ.get("BENCH_COMMIT"), None


def version_of(package: str) -> str | None:
    """Return the version of an installed package, None where it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance(data_checksum: str | None) -> dict[str, Any]:
    """Return the ``provenance`` of a record: commit, dirty flag, versions, data checksum."""
    commit, dirty = code_revision()
    versions = {package: version_of(package) for package in _PACKAGES}
    return {
        "commit": commit,
        "dirty": dirty,
        "bench": bench.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: version for package, version in versions.items() if version},
        "data": data_checksum,
    }

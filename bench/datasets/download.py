"""Downloads a file completely and with its published MD5, or not at all.

NAME.part keeps the bytes received so far. After a broken connection the download continues where it stopped
(HTTP ranges), at once or with the next command. A file with another MD5 is removed.
"""

from __future__ import annotations

import contextlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import __version__
from bench.datasets.checksums import md5
from bench.errors import InputError
from bench.text import clean, say

CHUNK = 1 << 18
SILENCE = 30.0  # seconds without a byte, after which a connection is closed
TRIES = 5  # connections in a row without a byte, after which the download fails
PAUSE = 1.0  # seconds before the second try; doubled before each further try
LINES = 15.0  # seconds between two lines of progress, where the output is not a terminal
Report = Callable[[int, int | None], None]  # (bytes received so far, bytes of the whole file)


def download(url: str, path: Path, published: str) -> None:
    """Download ``url`` to ``path`` unless the file there has this MD5 already.

    Raises ``InputError`` where the server's file has another MD5, and ``OSError`` (``urllib.error.URLError``,
    ...) where the server sends nothing more; the bytes received so far are kept.
    """
    if path.is_file() and _md5(path) == published:
        return
    part = path.with_name(f"{path.name}.part")
    resumed = part.is_file()
    with _progress(path.name) as report:
        _download_rest(url, part, report)
        found = _md5(part)
        if found != published and resumed:  # the first bytes may belong to another version of the file
            part.unlink()
            _download_rest(url, part, report)
            found = _md5(part)
    if found != published:
        part.unlink()
        raise InputError(
            f"{clean(url)} is not the published file: MD5 {found}, published {published}. Nothing was kept."
        )
    part.replace(path)


def _download_rest(url: str, part: Path, report: Report) -> None:
    """Append to ``part`` until the file is complete; raise the last error after ``TRIES`` failures."""
    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        error: Exception | None = None
        try:
            if _receive(url, part, before, report):
                return
        except urllib.error.HTTPError as refused:
            if refused.code == 416 and before:  # the server's file is shorter than the part received
                part.unlink()
                continue
            if refused.code < 500:
                raise
            error = refused
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as broken:
            error = broken
        there = part.stat().st_size if part.is_file() else 0
        failures = 0 if there > before else failures + 1
        if failures == TRIES:
            if isinstance(error, OSError):
                raise error
            raise OSError(f"the connection broke off {TRIES} times in a row ({error or 'no bytes arrive'})")
        if failures:
            time.sleep(PAUSE * 2 ** (failures - 1))


def _receive(url: str, part: Path, received: int, report: Report) -> bool:
    """Receive the bytes of one connection; return whether the file is complete after it."""
    headers = {"User-Agent": f"progressive-bench/{__version__}"}
    if received:
        headers["Range"] = f"bytes={received}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=SILENCE) as answer:
        begins = str(answer.headers.get("Content-Range", ""))
        if answer.status != 206 or not begins.startswith(f"bytes {received}-"):
            received = 0  # a server without ranges sends the whole file again
        length = answer.headers.get("Content-Length")
        total = received + int(length) if length and length.isdigit() else None
        with part.open("ab" if received else "wb") as file:
            while piece := answer.read(CHUNK):
                file.write(piece)
                received += len(piece)
                report(received, total)
    return total is None or received >= total


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return md5(stream)


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Report]:
    """Show the progress of a download: a bar on a terminal, a line every ``LINES`` seconds elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(clean(name, 40), total=None)
            yield lambda received, total: bar.update(task, completed=received, total=total)
        return
    said = [time.monotonic()]

    def line(received: int, total: int | None) -> None:
        if time.monotonic() - said[0] >= LINES or received == total:
            said[0] = time.monotonic()
            share = f" of {total / 1e6:,.1f} MB, {100 * received / total:.0f} %" if total else " MB"
            say(f"{clean(name, 40)}: {received / 1e6:,.1f}{share}", sys.stderr)

    yield line

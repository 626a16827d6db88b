"""Downloads from a server that breaks off, is silent, knows no ranges, or serves another file."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from bench.datasets import download as downloads
from bench.datasets import svhn
from bench.datasets.download import download
from bench.datasets.sources import PublishedFile
from bench.errors import InputError
from tests.waiting import HANG, wait_until

CONTENT = np.random.default_rng(0).bytes(400_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """A server of one file; what it does wrong is set by the test."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.ranges = True
        self.breaks_after: list[int] = []  # bytes of each of the first answers; then whole ones
        self.silent = threading.Event()  # set: an answer waits for it before the body
        self.waits = False
        self.errors: list[int] = []  # statuses of the first answers
        self.asked: list[str | None] = []  # the Range of each request

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.asked.append(wanted)
        if self.errors:
            handler.send_error(self.errors.pop(0))
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start > len(self.content):
            handler.send_error(416)
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(body)))
        if start:
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {start}-{last}/{len(self.content)}")
        handler.end_headers()
        if self.waits:
            self.silent.wait(HANG)
        handler.wfile.write(body[: self.breaks_after.pop(0)] if self.breaks_after else body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            served.answer(self)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        served.url = f"http://127.0.0.1:{listening.server_port}/file.bin"
        yield served
        served.silent.set()
        listening.shutdown()


def test_a_file_arrives_and_is_asked_for_once(server, tmp_path, capsys):
    path = tmp_path / "file.bin"
    download(server.url, path, MD5)
    download(server.url, path, MD5)
    assert path.read_bytes() == CONTENT and server.asked == [None]
    assert "file.bin: 0.4 of 0.4 MB, 100 %" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_a_connection_that_breaks_off_is_taken_up_where_it_stopped(server, tmp_path):
    server.breaks_after = [100_000, 0, 50_000, 1]
    download(server.url, tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == [None, *(f"bytes={n}-" for n in (100_000, 100_000, 150_000, 150_001))]


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    server.ranges = False
    server.breaks_after = [100_000]
    download(server.url, tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_what_arrived_is_kept_for_the_next_command(server, tmp_path):
    server.breaks_after = [300_000, *([0] * downloads.TRIES)]
    with pytest.raises(OSError, match="broke off"):
        download(server.url, tmp_path / "file.bin", MD5)
    assert not (tmp_path / "file.bin").exists()
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:300_000]
    download(server.url, tmp_path / "file.bin", MD5)
    assert server.asked[-1] == "bytes=300000-" and (tmp_path / "file.bin").read_bytes() == CONTENT
    assert not (tmp_path / "file.bin.part").exists()


def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "SILENCE", 0.2)
    server.waits = True
    with pytest.raises(OSError, match="timed out"):
        download(server.url, tmp_path / "file.bin", MD5)
    wait_until(lambda: len(server.asked) >= downloads.TRIES, "the server reads every request")
    assert len(server.asked) == downloads.TRIES


def test_a_wrong_file_is_refused_and_removed(server, tmp_path):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(InputError, match=f"published {MD5}"):
        download(server.url, tmp_path / "file.bin", MD5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("old", [b"of another version" * 9, CONTENT + b"longer", CONTENT])
def test_a_wrong_beginning_is_thrown_away(old, server, tmp_path):
    """Of another version of the file, longer than the file, or all of the file."""
    (tmp_path / "file.bin.part").write_bytes(old)
    download(server.url, tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_damaged_file_is_replaced(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT[:10])
    download(server.url, tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_busy_server_is_asked_again_and_an_absent_file_is_not(server, tmp_path):
    server.errors = [503, 502]
    download(server.url, tmp_path / "file.bin", MD5)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    server.errors, server.asked = [404], []
    with pytest.raises(OSError, match="404"):
        download(server.url, tmp_path / "other.bin", MD5)
    assert len(server.asked) == 1


def test_the_command_says_that_it_can_go_on(server, tmp_path, monkeypatch):
    files = {part: PublishedFile(f"{part}.mat", MD5, len(CONTENT)) for part in ("train", "test")}
    monkeypatch.setattr(svhn, "FILES", files)
    monkeypatch.setattr(svhn, "_SITE", server.url + "?")
    server.breaks_after = [300_000, *([0] * downloads.TRIES)]
    with pytest.raises(InputError, match=r"arrived of train\.mat is kept: the same command goes on"):
        svhn.SVHN.fetch({}, tmp_path)
    svhn.SVHN.fetch({}, tmp_path)
    assert (tmp_path / "train.mat").read_bytes() == (tmp_path / "test.mat").read_bytes() == CONTENT

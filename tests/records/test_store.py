"""Records: atomic, without a torn last line, clear about other damage, held by one runner at a time."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.errors import InputError
from bench.records import locks
from bench.records.files import Damaged, Newer, StoreError, append, read_lines, write_atomic
from bench.records.locks import Busy, Owner
from bench.records.store import Store
from tests.waiting import HANG, wait_until

ID = "0123456789abcdef"
OTHER = "fedcba9876543210"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def line(epoch: int, **more) -> dict:
    return {"epoch": epoch, "test_acc": 10.0 * epoch, **more}


def finish(store: Store, id: str = ID, status: str = "done", **more) -> None:
    store.write_trial(id, {"config": {"epochs": 2}})
    store.write_epochs(id, [line(1), line(2)])
    store.write_summary(id, {"status": status, "final_test_acc": 20.0, **more})


class TestWriting:
    def test_replaces_the_whole_file_and_leaves_nothing_else(self, tmp_path):
        path = tmp_path / "new" / "file"
        write_atomic(path, b"one")
        write_atomic(path, b"two")
        assert path.read_bytes() == b"two"
        assert os.listdir(path.parent) == ["file"]

    def test_a_message_names_the_file_that_is_meant_not_the_temporary_one(self, tmp_path):
        (tmp_path / "file").mkdir()
        with pytest.raises(StoreError, match=r"/file: Is a directory"):
            write_atomic(tmp_path / "file", b"new")

    def test_lines_of_two_commands_stay_both(self, tmp_path):
        """Two may measure into one file: `bench export` in two formats, `bench sharpness` of two arms."""
        path = tmp_path / "file"

        def write(who: int) -> None:
            for number in range(20):
                append(path, {"who": who, "number": number})

        threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({(line["who"], line["number"]) for line in read_lines(path)}) == 80

    @pytest.mark.parametrize(
        ("number", "word"), [(errno.ENOSPC, "full"), (errno.EDQUOT, "quota"), (errno.EROFS, "--results")]
    )
    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_keeps_the_old_content_when_it_fails(self, tmp_path, monkeypatch, step, number, word):
        path = tmp_path / "file"
        write_atomic(path, b"old")

        def fail(*args):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, step, fail)
        with pytest.raises(StoreError, match=word) as caught:
            write_atomic(path, b"new")
        assert str(path) in str(caught.value) or str(tmp_path) in str(caught.value)
        assert caught.value.no_space == (number != errno.EROFS)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["file"]

    def test_a_full_disk_at_an_epoch_is_said(self, store):
        store.append_epoch(ID, line(1))
        (store.folder(OTHER)).mkdir()
        (store.folder(OTHER) / "epochs.jsonl").symlink_to("/dev/full")
        with pytest.raises(StoreError, match="full") as caught:
            store.append_epoch(OTHER, line(1))
        assert caught.value.no_space
        assert store.epochs(ID) == [line(1)]

    def test_not_finite_numbers_become_null(self, store):
        store.append_epoch(ID, line(1, train_loss=math.nan, lr=math.inf))
        text = (store.folder(ID) / "epochs.jsonl").read_text()
        assert json.loads(text, parse_constant=pytest.fail)["train_loss"] is None

    def test_summary_has_every_key_of_the_contract(self, store):
        store.write_summary(ID, {"status": "failed", "reason": "x"})
        summary = store.summary(ID)
        assert summary["schema"] == 1 and summary["final_test_acc"] is None and summary["reason"] == "x"
        assert "train_flops" in summary

    def test_a_folder_that_cannot_be_written(self):
        with pytest.raises(StoreError):
            Store("/proc/self/nothing").check_writable()

    def test_a_file_instead_of_the_folder(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="not a folder"):
            Store(tmp_path / "file").check_writable()


class TestEpochs:
    def test_every_cut_of_the_last_line_leaves_the_epochs_before_it(self, store):
        store.write_epochs(ID, [line(1), line(2), line(3)])
        path = store.folder(ID) / "epochs.jsonl"
        whole = path.read_bytes()
        start = whole[:-1].rfind(b"\n") + 1
        for end in range(start, len(whole) + 1):
            path.write_bytes(whole[:end])
            complete = end >= len(whole) - 1  # only the line feed may be missing
            assert len(store.epochs(ID)) == (3 if complete else 2)
            store.append_epoch(ID, line(4 if complete else 3))
            assert [e["epoch"] for e in store.epochs(ID)] == ([1, 2, 3, 4] if complete else [1, 2, 3])

    @pytest.mark.parametrize(
        ("damaged", "number"),
        [
            (b'{"epoch": 1}\n{"epo\n{"epoch": 3}\n', 2),
            (b'{"epoch": 1}\n\n{"epoch": 3}\n', 2),
            (b'{"epoch": 1}\n[2]\n', 2),
            (b'{"epoch": 1}\n{"epoch": 3}\n', 2),
            (b'{"epoch": NaN}\n', 1),
            (b"\xff\xfe\n", 1),
            (b"[" * 100_000 + b"\n", 1),
        ],
    )
    def test_other_damage_names_file_and_line(self, store, damaged, number):
        store.write_trial(ID, {})
        path = store.folder(ID) / "epochs.jsonl"
        path.write_bytes(damaged)
        with pytest.raises(Damaged, match=f"line {number}") as caught:
            store.epochs(ID)
        assert str(path) in str(caught.value)
        assert store.status(ID) == "damaged"
        assert path.read_bytes() == damaged


class TestStatus:
    def test_goes_from_missing_to_done(self, store):
        assert store.status(ID) == "missing"
        store.write_trial(ID, {})
        assert store.status(ID) == "unfinished"
        store.append_epoch(ID, line(1))
        assert store.inspect(ID).epochs == 1
        with store.lock(ID):
            assert store.status(ID) == "running"
            assert store.inspect(ID, mine=True).status == "unfinished"
        finish(store)
        assert store.inspect(ID).accuracy == 20.0
        assert store.status(ID) == "done"

    @pytest.mark.parametrize("status", ["failed", "diverged"])
    def test_failed_and_diverged_say_why(self, store, status):
        finish(store, status=status, reason="because")
        assert (store.inspect(ID).status, store.inspect(ID).reason) == (status, "because")

    @pytest.mark.parametrize(
        "text", ['{"schema": 1, "status": "do', "", "[]", '{"status": "done"}', '{"schema": 1}']
    )
    def test_a_broken_summary_is_damage(self, store, text):
        finish(store)
        (store.folder(ID) / "summary.json").write_text(text)
        state = store.inspect(ID)
        assert state.status == "damaged" and "summary.json" in state.reason and not state.newer

    def test_a_newer_schema_is_refused_and_kept(self, store):
        finish(store)
        path = store.folder(ID) / "summary.json"
        path.write_text('{"schema": 99, "status": "done"}')
        with pytest.raises(Newer, match=r"schema 99.*newer version"):
            store.summary(ID)
        assert store.inspect(ID).newer

    def test_a_finished_trial_that_was_copied_in_part_is_damage(self, store):
        """`bench report` says so, too, and a run must be able to repair it."""
        finish(store)
        store.write_epochs(ID, [line(1)])
        assert store.status(ID) == "damaged" and "1 of the 2 epochs" in store.inspect(ID).reason
        finish(store, OTHER, "diverged")
        store.write_epochs(OTHER, [line(1)])  # it need not have come to its end
        assert store.status(OTHER) == "diverged"
        (store.folder(OTHER) / "trial.json").unlink()
        assert store.status(OTHER) == "damaged" and "without trial.json" in store.inspect(OTHER).reason

    def test_a_record_under_a_wrong_id_is_damage(self, store):
        finish(store)
        os.rename(store.folder(ID), store.folder(OTHER))
        assert store.status(OTHER) == "damaged"

    def test_retired_records_stay_beside_each_other(self, store):
        for n in (1, 2):
            finish(store)
            assert store.retire(ID).name == f"{ID}.old-{n}"
        assert store.ids() == [] and store.status(ID) == "missing"
        assert len(os.listdir(store.root / "trials")) == 2

    def test_reopening_keeps_the_old_summary(self, store):
        finish(store, status="failed")
        store.reopen(ID)
        assert store.status(ID) == "unfinished"
        assert (store.folder(ID) / "summary.old-1.json").exists()


class TestNames:
    @pytest.mark.parametrize(
        "id", ["../../../etc/passw", "", "0123", "0123456789ABCDEF", ID + "/", ID + "\n", "a" * 300, None]
    )
    def test_ids_cannot_leave_the_folder(self, store, id):
        with pytest.raises(InputError, match="16 hexadecimal digits"):
            store.folder(id)

    @pytest.mark.parametrize(
        "name", ["trials", "report", "", ".", "..", ".locks", "a/b", "a\0b", "x" * 300, "a\x1b[2J"]
    )
    def test_experiments_cannot_take_reserved_or_foreign_places(self, store, name):
        with pytest.raises(InputError):
            store.experiment_folder(name)

    def test_a_trial_is_found_by_its_beginning(self, store):
        finish(store)
        finish(store, OTHER)
        assert store.find("0123") == ID
        assert store.find(str(store.folder(OTHER))) == OTHER
        for text in ("012", "9999", "../x"):
            with pytest.raises(InputError, match="no such trial"):
                store.find(text)


class TestIndex:
    TEXT = '[[arms]]\nname = "A"\n[[arms]]\nname = "B"\n'

    def index_line(self, id: str, arm: str | None = "A", **more) -> dict:
        return {"arm": arm, "baseline": None, "grid": {"seed": 0}, "id": id, **more}

    def test_keeps_the_lines_of_other_profiles_and_each_line_once(self, store):
        store.write_index("e", self.TEXT, [self.index_line(ID)])
        store.write_index("e", self.TEXT, [self.index_line(OTHER, "B"), self.index_line(ID)])
        store.write_index("e", self.TEXT, [self.index_line(OTHER, "B", baseline="A")])
        assert [(found["id"], found["arm"]) for found in store.index("e")] == [(ID, "A"), (OTHER, "B")]
        assert store.index("e")[1]["baseline"] == "A"
        assert (store.root / "e" / "e.toml").read_text() == self.TEXT
        assert store.experiments() == ["e"]

    def test_drops_the_lines_of_arms_that_the_file_no_longer_has(self, store):
        store.write_index("e", self.TEXT, [self.index_line(ID), self.index_line(OTHER, None)])
        store.write_index("e", self.TEXT.replace('"A"', '"C"'), [self.index_line(ID, "C")])
        assert [found["arm"] for found in store.index("e")] == [None, "C"]

    def test_damage_names_the_line(self, store):
        store.write_index("e", self.TEXT, [self.index_line(ID)])
        with open(store.root / "e" / "index.jsonl", "a") as file:
            file.write('{"arm": "A", "id": "../x"}\n')
        with pytest.raises(Damaged, match="line 2"):
            store.index("e")


HOLD = """
import os, sys, time
from bench.records.store import Store
with Store(sys.argv[1]).lock(sys.argv[2]):
    if sys.argv[3:] == ["fork"] and os.fork() == 0:
        time.sleep(600)
        os._exit(0)
    print("held", flush=True)
    time.sleep(600)
"""


def hold(store: Store, *more: str) -> subprocess.Popen:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.root), ID, *more],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
    )
    assert holder.stdout.readline() == "held\n"
    return holder


class TestLocks:
    @pytest.fixture
    def store(self, tmp_path):
        store = Store(tmp_path)
        store.heartbeat, store.silence, store.settle = 0.05, 0.4, 0.05
        return store

    def test_one_holder_at_a_time_who_is_named(self, store):
        with store.lock(ID), pytest.raises(Busy, match=f"process {os.getpid()}"), store.lock(ID):
            pass
        with store.lock(ID), store.lock(OTHER):
            pass
        assert os.listdir(store.root / ".locks") == []

    @pytest.mark.parametrize("mode", ["plain", "fork"])
    def test_a_killed_holder_leaves_it_free(self, store, mode):
        holder = hold(store, mode)
        try:
            with pytest.raises(Busy, match=f"process {holder.pid}"), store.lock(ID):
                pass
            assert store.status(ID) == "running"
            holder.kill()
            holder.wait()
            assert store.status(ID) == "missing"
            with store.lock(ID):
                pass
        finally:
            os.killpg(holder.pid, signal.SIGKILL) if mode == "fork" else holder.kill()

    def plant(self, store, **changes) -> Path:
        path = store.root / ".locks" / ID
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps({**Owner.here().__dict__, "host": "elsewhere", "boot": "another kernel", **changes})
        )
        return path

    def test_another_host_is_believed_while_it_shows_signs_of_life(self, store):
        store.silence = HANG  # only a sign of life ends the wait
        path = self.plant(store)
        done = threading.Event()

        def beat():
            for n in itertools.count(1):
                if done.wait(0.05):
                    return
                path.write_text(json.dumps({**json.loads(path.read_text()), "beat": n}))

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            with pytest.raises(Busy, match="elsewhere"), store.lock(ID):
                pass
        finally:
            done.set()
            thread.join()

    def test_another_host_is_not_gone_because_its_file_is_old_but_because_it_stays_silent(self, store):
        path = self.plant(store)
        os.utime(path, (0, 0))
        began = time.monotonic()
        with store.lock(ID):
            assert time.monotonic() - began >= store.silence
            assert Owner.read(path.read_bytes()).pid == os.getpid()
        assert not path.exists()

    def test_a_holder_notices_that_it_was_taken_over(self, store):
        with store.lock(ID) as lock:
            path = self.plant(store)
            wait_until(lambda: lock.lost, "the holder notices")
        assert path.exists()  # it is the other's now

    def test_signs_of_life_are_written(self, store):
        with store.lock(ID) as lock:
            wait_until(lambda: Owner.read(lock.path.read_bytes()).beat >= 2, "two signs of life")

    @pytest.mark.parametrize("state", ["alive", "gone", "number used again"])
    def test_without_advisory_locks_the_process_decides(self, store, monkeypatch, state):
        def refuse(fd, how):
            raise OSError(errno.ENOSYS, "no locks")

        monkeypatch.setattr(fcntl, "flock", refuse)
        gone = subprocess.Popen(["true"])
        gone.wait()
        owner = Owner.here()
        changes = {"alive": {}, "gone": {"pid": gone.pid}, "number used again": {"started": "1"}}[state]
        self.plant(store, **{**owner.__dict__, **changes})
        if state == "alive":
            with pytest.raises(Busy), store.lock(ID):
                pass
        else:
            with store.lock(ID):
                pass

    def test_a_lock_file_nobody_signed_is_taken(self, store):
        (store.root / ".locks").mkdir(parents=True)
        (store.root / ".locks" / ID).write_text("")
        with store.lock(ID):
            pass

    def test_the_owner_is_recognised_by_its_start_time(self):
        assert not Owner.here().dead()
        assert Owner(**{**Owner.here().__dict__, "started": "1"}).dead()
        assert locks._start_time(os.getpid()) is not None

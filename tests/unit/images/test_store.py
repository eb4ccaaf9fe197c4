# SPDX-License-Identifier: MIT
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from harness.errors import HostLacks
from harness.images.progress import SilentProgress, Task
from harness.images.store import CacheUnusable, Store, read_json, write_json

QUIET = SilentProgress()


def fill(folder: Path) -> None:
    (folder / "data").write_text("whole")


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made = []

    def build(folder: Path) -> None:
        made.append(folder)
        fill(folder)

    store = Store(tmp_path)
    first = store.entry("kind", "key", QUIET, build)
    assert store.entry("kind", "key", QUIET, build) == first == store.path("kind", "key")
    assert (first / "data").read_text() == "whole"
    assert len(made) == 1
    assert store.entries("kind") == (first,)


def test_what_is_being_made_has_another_name(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def build(folder: Path) -> None:
        assert not store.path("kind", "key").exists()
        assert store.entries("kind") == ()
        fill(folder)

    store.entry("kind", "key", QUIET, build)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def build(folder: Path) -> None:
        fill(folder)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        store.entry("kind", "key", QUIET, build)
    assert list((tmp_path / "kind").iterdir()) == []
    assert store.entry("kind", "key", QUIET, fill).is_dir()


def test_many_files_reach_the_disk_too(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        for number in range(100):
            (folder / str(number)).write_text("x")

    assert len(list(Store(tmp_path).entry("kind", "key", QUIET, build).iterdir())) == 100


HOLDER = """
import pathlib, sys, time
from harness.images.progress import SilentProgress, Task
from harness.images.store import Store
def build(folder):
    (folder / "half").write_text("half")
    print("building", flush=True)
    sys.stdin.read()
    (folder / "data").write_text("whole")
Store(pathlib.Path(sys.argv[1])).entry("kind", "key", SilentProgress(), build)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is in the middle of making kind/key."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "building\n"
        yield process
        process.kill()


def test_a_second_process_waits_and_uses_the_firsts_work(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    titles = []

    class Listening(SilentProgress):
        def task(self, title: str, total: float | None = None) -> AbstractContextManager[Task]:
            titles.append(title)
            assert holder.stdin is not None
            holder.stdin.close()  # lets the first one finish
            return super().task(title, total)

    def never(folder: Path) -> None:
        raise AssertionError(f"{folder} is built twice")

    entry = Store(tmp_path).entry("kind", "key", Listening(), never)
    assert (entry / "data").read_text() == "whole"
    assert titles == [f"waiting for process {holder.pid}, which is making kind.key"]


def test_waiting_has_an_end(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(HostLacks, match="another process") as caught:
        Store(tmp_path, lock_timeout=0.1).entry("kind", "key", QUIET, fill)
    assert str(holder.pid) in caught.value.observed


def test_the_work_of_a_killed_process_is_dropped(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    leftover = tmp_path / "kind/.tmp.key"
    assert (leftover / "half").is_file()
    entry = Store(tmp_path).entry("kind", "key", QUIET, fill)
    assert [path.name for path in entry.iterdir()] == ["data"]
    assert not leftover.exists()


def test_leftovers_of_other_entries_are_swept_unless_alive(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    store = Store(tmp_path)
    store.entry("kind", "second", QUIET, fill)
    assert (tmp_path / "kind/.tmp.key").exists()  # its maker lives
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    store.entry("kind", "third", QUIET, fill)
    assert not (tmp_path / "kind/.tmp.key").exists()


def test_threads_make_an_entry_once(tmp_path: Path) -> None:
    made = []

    def build(folder: Path) -> None:
        made.append(1)
        fill(folder)

    store = Store(tmp_path)
    threads = [threading.Thread(target=store.entry, args=("kind", "key", QUIET, build)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_a_name(tmp_path: Path, code: int) -> None:
    def build(folder: Path) -> None:
        fill(folder)
        raise OSError(code, os.strerror(code))

    with pytest.raises(CacheUnusable, match="full") as caught:
        Store(tmp_path).entry("kind", "key", QUIET, build)
    assert isinstance(caught.value, HostLacks)
    assert str(tmp_path) in caught.value.summary
    assert "IOBMD_CACHE" in caught.value.hint
    assert list((tmp_path / "kind").iterdir()) == []


def test_a_read_only_cache_serves_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    entry = store.entry("kind", "key", QUIET, fill)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    # permissions do not stop root, so the calls that write are what is taken away
    for name in ("mkdir", "open", "rename", "unlink"):
        monkeypatch.setattr(os, name, refuse)
    assert store.entry("kind", "key", QUIET, fill) == entry
    with pytest.raises(CacheUnusable, match="cannot be written") as caught:
        store.entry("kind", "new", QUIET, fill)
    assert "IOBMD_CACHE" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(CacheUnusable, match="cannot be written"):
        Store(tmp_path / "cache").entry("kind", "key", QUIET, fill)


def test_other_errors_keep_their_kind(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error", str(folder))

    with pytest.raises(OSError, match="Input/output"):
        Store(tmp_path).entry("kind", "key", QUIET, build)


def test_pointers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.pointer("recipe-x") is None
    store.set_pointer("recipe-x", {"kernel": "a"})
    store.set_pointer("recipe-x", {"kernel": "b"})
    assert store.pointer("recipe-x") == {"kernel": "b"}
    assert [path.name for path in (tmp_path / "pointers").iterdir()] == ["recipe-x.json"]


def test_a_damaged_document_counts_as_absent(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    path.write_text('{"a": ')
    assert read_json(path) is None
    path.write_text("[]")
    assert read_json(path) is None

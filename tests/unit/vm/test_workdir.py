# SPDX-License-Identifier: MIT
"""Private folders: made, removed, kept, and swept up after the dead."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.vm.workdir import KEPT, Workdir, sweep, workdir_base


def test_an_own_folder_is_private_and_removed(tmp_path: Path) -> None:
    folder = Workdir(base=tmp_path)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "console.log").write_text("x")
    folder.close(keep=False)
    folder.close(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_a_given_folder_is_never_removed(tmp_path: Path) -> None:
    folder = Workdir(tmp_path / "a" / "b")
    folder.close(keep=False)
    assert (tmp_path / "a" / "b").is_dir()


def test_a_kept_folder_stays_and_no_sweep_takes_it(tmp_path: Path) -> None:
    folder = Workdir(base=tmp_path)
    (folder.path / "console.log").write_text("evidence")
    folder.close(keep=True)
    os.utime(folder.path, (0, 0))
    assert sweep(tmp_path) == ()
    assert [path.name for path in folder.path.iterdir()] == ["console.log"]


def test_a_living_owner_is_respected_and_so_are_strangers(tmp_path: Path) -> None:
    folder = Workdir(base=tmp_path)
    (tmp_path / "somebody-elses").mkdir()
    (tmp_path / "iobmd-vm-link").symlink_to(tmp_path / "somebody-elses")
    assert sweep(tmp_path) == ()
    assert folder.path.is_dir()
    folder.close(keep=False)


def _killed_with_a_folder(base: Path, cache: Path, before: str = "") -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from harness.vm import workdir;" + before +
        "w = workdir.Workdir(base=Path(sys.argv[1])); (w.path / 'console.log').write_text('x');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(base)],
        cwd=Path(__file__).parents[3], env={**os.environ, "IOBMD_CACHE": str(cache)}, check=False,
    )  # fmt: skip
    assert done.returncode == -9


def test_a_dead_owners_folder_is_swept_by_the_next_machine(tmp_path: Path) -> None:
    """Should its heir have died with it."""
    base = tmp_path / "base"
    base.mkdir()
    _killed_with_a_folder(base, tmp_path, "workdir._HEIRS.name_one = lambda base: None;")
    assert len(list(base.iterdir())) == 1
    folder = Workdir(base=base)
    assert list(base.iterdir()) == [folder.path]
    folder.close(keep=False)


def test_a_killed_process_has_an_heir_that_removes_what_is_its_own(tmp_path: Path) -> None:
    base, cache = tmp_path / "base", tmp_path / "cache"
    for name in (
        "base/iobmd-vm-1-kept",
        "cache/locks",
        "cache/modules/.tmp.dead",
        "cache/modules/.tmp.alive",
        "cache/modules/.tmp.strange",
    ):
        (tmp_path / name).mkdir(parents=True)
    (base / "iobmd-vm-1-kept" / "console.log").write_text("somebody else's")
    for name in ("dead", "alive"):
        (cache / "locks" / f"modules.{name}").touch()
    with (cache / "locks" / "modules.alive").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _killed_with_a_folder(base, cache)
        end = time.monotonic() + 5
        while len(list(base.iterdir())) > 1 or (cache / "modules" / ".tmp.dead").exists():
            assert time.monotonic() < end, (*base.iterdir(), *cache.glob("*/.tmp.*"))
            time.sleep(0.01)  # nobody tells when an heir is done
        assert [path.name for path in base.iterdir()] == ["iobmd-vm-1-kept"]
        # Of one without a lock nobody here knows the maker.
        names = sorted(path.name for path in (cache / "modules").iterdir())
        assert names == [".tmp.alive", ".tmp.strange"]


def test_a_snapshot_that_is_being_made_does_not_outlive_its_maker(tmp_path: Path) -> None:
    """From its first moment on, when no machine has been started yet."""
    code = (
        "import os, signal; from harness.vm import SnapshotStore; from harness.vm.snapshots import Slot;"
        "Slot(SnapshotStore.default(), 'key', {}).make(lambda folder: os.kill(os.getpid(), signal.SIGKILL))"
    )
    environment = {**os.environ, "IOBMD_CACHE": str(tmp_path), "TMPDIR": str(tmp_path)}
    repository = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, env=environment, check=False)
    assert done.returncode == -9
    end = time.monotonic() + 5
    while list(tmp_path.glob("snapshots/.tmp.*")):
        assert time.monotonic() < end, list(tmp_path.glob("snapshots/*"))
        time.sleep(0.01)  # nobody tells when an heir is done


def test_only_the_newest_logs_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        folder = tmp_path / f"iobmd-vm-1-{number:02}"
        folder.mkdir()
        (folder / "console.log").write_text("evidence")
        os.utime(folder, (number, number))
    assert sorted(path.name for path in sweep(tmp_path)) == [f"iobmd-vm-1-{number:02}" for number in range(3)]
    assert len(list(tmp_path.iterdir())) == KEPT


def test_a_folder_that_is_being_made_is_left_alone(tmp_path: Path) -> None:
    newborn = tmp_path / "iobmd-vm-1-x"
    newborn.mkdir()
    assert sweep(tmp_path) == ()
    os.utime(newborn, (time.time() - 120,) * 2)
    assert sweep(tmp_path) == (newborn,)


def test_the_runtime_folder_is_preferred_when_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert workdir_base() == tmp_path
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    assert workdir_base() != tmp_path / "gone"


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), KeyboardInterrupt()])
def test_what_cannot_be_finished_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(type(error)):
        Workdir(base=tmp_path)
    assert list(tmp_path.iterdir()) == []

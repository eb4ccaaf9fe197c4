# SPDX-License-Identifier: MIT
"""Private folders: made, removed, kept, and swept up after the dead."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.vm.workdir import Workdir, sweep, workdir_base


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


def test_a_dead_owners_folder_is_swept_by_the_next_machine(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from harness.vm.workdir import Workdir;"
        "w = Workdir(base=Path(sys.argv[1])); (w.path / 'console.log').write_text('x');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[3], check=False
    )
    assert done.returncode == -9
    stale = list(tmp_path.iterdir())
    assert len(stale) == 1
    folder = Workdir(base=tmp_path)
    assert list(tmp_path.iterdir()) == [folder.path]
    folder.close(keep=False)


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

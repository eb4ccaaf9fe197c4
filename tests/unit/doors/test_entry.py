# SPDX-License-Identifier: MIT
"""What surrounds the console door: signals at any moment, closed and full streams, mistakes of our own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import cli
from harness.bug import report_bug
from harness.contract.engine import CheckFault
from harness.errors import FailureKind, GuestFailure

IOBMD = [sys.executable, "-m", "harness"]


def _run(*words: str, **options) -> subprocess.CompletedProcess[str]:
    # Buffered, as it is for users: what cannot be written shows at the end only.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [*IOBMD, *words],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env=environment,
        **options,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_ends_quietly(number):
    """From the first lines of `main` on; before them it is Python that starts, however long it takes."""
    codes = set()
    script = (
        "import os\n"
        "from harness import entry\n"
        "next_line = entry._have_standard_streams\n"
        "def begun():\n"
        "    os.write(1, b'.')\n"
        "    next_line()\n"
        "entry._have_standard_streams = begun\n"
        "entry.main()\n"
    )
    for turn in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", script, "clauses"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.read(1)
        time.sleep(0.02 + turn * 0.06)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
        codes.add(process.returncode)
        assert b"Traceback" not in told, (turn, told)
        assert process.returncode in (0, 128 + number, -signal.SIGTERM), (turn, told)
    assert codes & {128 + number, -signal.SIGTERM}


def test_who_ignores_ctrl_c_is_not_interrupted():
    """As `nohup` and shells without job control want it."""
    process = subprocess.Popen(
        [*IOBMD, "clauses"],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # noqa: PLW1509
    )
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@pytest.mark.parametrize("words", ["clauses", "--version", "doctor"])
def test_a_reader_that_has_gone(words):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = _run(words, stdout=writing)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", ["clauses", "doctor"])
def test_a_full_disk_under_standard_output(words):
    with Path("/dev/full").open("w") as full:
        done = _run(words, stdout=full)
    assert done.returncode == FailureKind.HOST_EXHAUSTED.exit_code
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams(closed):
    """Nothing of ours may be opened under their numbers."""
    redirections = " ".join(f"{fd}>&-" for fd in closed)
    line = f'exec "$@" {redirections}'
    done = subprocess.run(["/bin/sh", "-c", line, "sh", *IOBMD, "clauses", "C08"], check=False, timeout=60)
    assert done.returncode == 0


def test_no_pipe_to_complain_into():
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>/dev/full', "sh", *IOBMD, "check", "--kernel", "nonsense"],
        check=False,
        timeout=60,
    )
    assert done.returncode == 2


def test_help_lists_every_kind_from_the_enum():
    done = _run("--help", stdout=subprocess.PIPE)
    assert done.returncode == 0
    for kind in FailureKind:
        line = next(line for line in done.stdout.splitlines() if f" {kind.word} " in line)
        assert line.split()[0] == str(kind.exit_code)
        assert kind.meaning in line


@pytest.fixture
def door(monkeypatch, tmp_path):
    """`iobmd clauses` that raises what the test wants."""
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "cache"))

    def run(error: BaseException) -> int:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(cli, "print_clauses", fail)
        return cli.main(["clauses", "C08"])

    return run


def test_a_mistake_of_ours_is_kept_and_told_in_a_paragraph(door, capsys, tmp_path):
    assert door(ZeroDivisionError("by us")) == FailureKind.HARNESS_BUG.exit_code
    told = capsys.readouterr().err
    (file,) = (tmp_path / "cache" / "bugs").iterdir()
    assert str(file) in told.replace("\n", "")
    assert "mistake in iobmd itself: ZeroDivisionError: by us" in told
    assert "Traceback" not in told
    kept = file.read_text()
    assert "command: iobmd clauses C08" in kept
    assert "ZeroDivisionError: by us" in kept
    assert "in fail\n    raise error" in kept


def test_a_named_mistake_of_ours_is_kept_as_well(door, tmp_path):
    assert door(CheckFault("a check went wrong")) == 19
    assert len(list((tmp_path / "cache" / "bugs").iterdir())) == 1


def test_where_nothing_can_be_written_the_trace_is_told(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    try:
        raise KeyError("x")
    except KeyError as error:
        found = report_bug(error, ["check"])
    assert any("raise KeyError" in line for line in found.evidence)
    assert found.exit_code == 19


def test_reports_do_not_pile_up(monkeypatch, tmp_path):
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path))
    (tmp_path / "bugs").mkdir()
    for number in range(30):
        (tmp_path / "bugs" / f"bug-20000101-0000{number:02}-1.txt").touch()
    report_bug(KeyError("x"), [])
    names = sorted(path.name for path in (tmp_path / "bugs").iterdir())
    assert len(names) == 20
    assert names[0] == "bug-20000101-000011-1.txt"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GuestFailure("gone"), 3),
        (MemoryError(), 18),
        (OSError(errno.EMFILE, "Too many open files"), 18),
        (BrokenPipeError(), 141),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_exit_code_is_the_kinds(door, error, code, tmp_path):
    assert door(error) == code
    assert not (tmp_path / "cache" / "bugs").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143)], ids=["ctrl-c", "sigterm"])
def test_what_fails_while_everything_is_ended_does_not_hide_why(door, stop, tmp_path):
    try:
        try:
            raise stop
        finally:
            raise GuestFailure("noise on the way out")
    except GuestFailure as error:
        late = error
    if isinstance(stop, SystemExit):
        with pytest.raises(SystemExit) as caught:
            door(late)
        assert caught.value.code == 143
    else:
        assert door(late) == 130
    assert not (tmp_path / "cache" / "bugs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_that_hangs_is_cut_short(number):
    script = (
        "import os, time\n"
        "from harness import cli, entry\n"
        "def hang():\n"
        "    try:\n"
        "        os.write(1, b'.'); time.sleep(60)\n"
        "    finally:\n"
        "        time.sleep(60)\n"
        "cli.main = hang\n"
        "entry._ORDERLY_SECONDS = 0.3\n"
        "entry.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    process.stdout.read(1)
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == 128 + number

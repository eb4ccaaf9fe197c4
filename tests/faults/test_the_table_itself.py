# SPDX-License-Identifier: MIT
"""A row is red when the name is wrong, the report late, or something left; each is tried here."""

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from fault_table import NOTHING, Fault, Report, Row, carry_out, dump, load, show
from left_over import Census, left_over
from rich.console import Console

from harness.errors import FailureKind
from harness.link import ChannelBroken

_BROKEN, _HUNG = FailureKind.CHANNEL_BROKEN, FailureKind.KERNEL_HUNG


def _row(inject, expected: FailureKind | None = _BROKEN, limit: float = 1.0, left=()) -> Row:
    fault = Fault("made up", "here", "nothing really", expected, limit, inject)
    return carry_out(fault, Report(), lambda: left)


def _breaks(stage: Report) -> None:
    with stage.injection():
        raise ChannelBroken("broken", observed="as asked")


def test_a_row_is_green():
    row = _row(_breaks)
    assert row.faults == ()
    assert (row.named, row.said) == ("channel-broken", "broken; as asked")
    assert load(dump(row)) == row


def test_a_wrong_name_is_red():
    (fault,) = _row(_breaks, expected=_HUNG).faults
    assert fault == "it was called 'channel-broken', not 'kernel-hung' (broken; as asked)"


def test_a_failure_that_nobody_named_is_red():
    def goes_well(stage: Report) -> None:
        with stage.injection():
            pass

    assert "it was called 'nothing', not 'channel-broken'" in _row(goes_well).faults[0]
    assert _row(goes_well, expected=None).faults == ()
    assert "not 'nothing'" in _row(_breaks, expected=None).faults[0]


def test_a_late_report_is_red():
    def late(stage: Report) -> None:
        with stage.injection():
            time.sleep(0.02)
            raise ChannelBroken("broken")

    assert _row(late).faults == ()
    (fault,) = _row(late, limit=0.01).faults
    assert fault.endswith("not at most 0.01 s")


def test_what_goes_wrong_beside_the_injection_is_red():
    def mistaken(stage: Report) -> None:
        _breaks(stage)
        raise KeyError("a mistake of the test's own")

    (fault,) = _row(mistaken).faults
    assert fault.startswith("KeyError outside of the injection")


def _left(before: Census, world: Path) -> list[str]:
    return [line.partition(":")[0] for line in _row(_breaks, left=left_over(before, world)).left]


def test_a_process_that_is_left_is_red(world: Path):
    """Also one whose parent has gone, which is nobody's child any more."""
    before = Census.take(world)
    told = subprocess.Popen(["sh", "-c", "sleep 60 >/dev/null & echo $!"], stdout=subprocess.PIPE)
    orphan = int(told.communicate()[0])
    try:
        row = _row(_breaks, left=left_over(before, world))
        assert [line for line in row.faults if f"processes: {orphan} sleep 60" in line]
    finally:
        os.kill(orphan, 9)


def test_a_child_that_nobody_reaped_is_red(world: Path):
    before = Census.take(world)
    child = subprocess.Popen(["true"])
    assert _left(before, world) == ["processes"]
    child.wait()
    assert _left(before, world) == []


def test_a_socket_and_a_memory_file_that_are_left_are_red(world: Path):
    before = Census.take(world)
    ours, theirs = socket.socketpair()
    memory = os.memfd_create("left")
    assert sorted(_left(before, world)) == ["memory", "sockets", "sockets"]
    ours.close()
    theirs.close()
    os.close(memory)
    assert _left(before, world) == []


def test_a_private_folder_and_a_half_made_entry_that_are_left_are_red(world: Path, tmp_path: Path):
    before = Census.take(world, tmp_path)
    folder = Path(tempfile.mkdtemp(prefix="iobmd-vm-", dir=world))
    (tmp_path / "snapshots" / ".tmp.half").mkdir(parents=True)
    found = Census.take(world, tmp_path).beyond(before)
    assert found == (f"folders: {folder.name}", "temporaries: snapshots/.tmp.half")
    (folder / "console.log").write_text("kept for a reader")
    assert Census.take(world).beyond(before) == ()
    (folder / "owner.lock").touch()
    assert Census.take(world).beyond(before) == (f"folders: {folder.name}",)


def test_a_red_row_stands_out(capsys: pytest.CaptureFixture[str]):
    rows = [_row(_breaks), _row(_breaks, expected=_HUNG), _row(_breaks, left=("processes: 1 qemu",))]
    show(rows, Console(width=160))
    text = capsys.readouterr().out
    assert "kernel-hung" in text
    assert text.count("channel-broken !") == 2
    assert "1 of 3 as they have to be; 3 failures, 0 that are none; 1 left over" in text
    assert NOTHING not in text.partition("1 of 3")[0].replace("nothing really", "")

# SPDX-License-Identifier: MIT
"""Audits from their beginning to every end there is: what was found is there, whatever ended them."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.audit import (
    AuditRun,
    Direction,
    DriverNotLoaded,
    DriverNotUnloaded,
    ExerciseFailed,
    NotAsExpected,
    expect,
)
from harness.errors import BadInput, FailureKind
from harness.forensics import GuestPanicked
from harness.images import SilentProgress, build_module

HERE = Path(__file__).parent
SOURCE = (HERE / "ends" / "ends.c").read_text().splitlines()


def line(mark):
    return next(number for number, text in enumerate(SOURCE, 1) if f"/* {mark} */" in text)


def told(findings):
    return [(one.rule.id, one.site.file, one.site.line) for one in findings]


MISTAKE = ("free-size", "ends.c", line("MISTAKE"))
KICK = ("unmap-direction", "ends.c", line("KICK"))


def kick(run, *values):
    for value in values or (1,):
        run.sh(f"echo {value} > /sys/module/ends/parameters/kick")


def test_the_block_is_the_exercise(audit):
    with audit.module("ends") as run:
        assert told(run.findings) == [MISTAKE]
        kick(run)
        assert told(run.findings) == [MISTAKE, KICK]
        kick(run)
    assert told(run.findings) == [MISTAKE, KICK]
    assert run.findings[1].count == 2
    result = run.result()
    assert (result.exit_code, result.failure, result.complaints) == (1, None, ())
    assert (result.bound, result.loaded, result.lost, result.missed) == (("ends",), ("ends",), 0, 0)
    assert result.looks >= 3
    judged = {(row.what, row.calls, row.alive, row.rules) for row in result.judged}
    assert judged == {
        ("coherent buffer", 1, 0, ("free-size",)),
        ("coherent buffer", 1, 0, ()),
        ("streaming mapping", 2, 0, ("unmap-direction",)),
    }


def test_buffers_are_looked_at_from_outside(audit):
    with audit.module("ends") as run:
        (ring,) = run.buffers
        assert (ring.size, ring.device, ring.alive, run.mappings) == (16384, "ends", True, [])
        assert "ends.c" in ring.site
        expect(ring).below(32).aligned(16384).type("WB").contiguous().direction("BIDIRECTIONAL")
        expect(ring).holds(bytes([0x5A]) * 16).holds(bytes(64), offset=16)
        assert ring.look().walked
        assert run.oracle.physical_of(ring)[0].start == ring.bus
        for wrong in (
            lambda: expect(ring).below(12),
            lambda: expect(ring).aligned(1 << 40),
            lambda: expect(ring).type("WC"),
            lambda: expect(ring).zeroed(),
            lambda: expect(ring).direction(Direction.TO_DEVICE),
        ):
            with pytest.raises(NotAsExpected, match=f"{ring.bus:#x}(.|\n)*observed(.|\n)*ends.c:"):
                wrong()
    assert not ring.alive


@pytest.mark.parametrize("what", ["use.sh", "use.py"])
def test_an_exercise_out_of_a_file(audit, what):
    with audit.module("ends", exercise=what) as run:
        pass
    assert told(run.findings) == [MISTAKE, KICK]
    assert what in run.result().exercised


def test_an_exercise_that_fails_keeps_what_was_found(audit, tmp_path):
    script = tmp_path / "fails.sh"
    script.write_text("echo how far it came\nfalse\n")
    with (
        pytest.raises(ExerciseFailed, match="exit status 1") as caught,
        audit.module("ends", exercise=script),
    ):
        pytest.fail("the block runs after a failed exercise")
    assert "how far it came" in caught.value.evidence


def test_a_driver_that_refuses_to_load(audit):
    with pytest.raises(DriverNotLoaded, match="EINVAL") as caught, audit.module("ends", params="end=refused"):
        pytest.fail("the block runs without its driver")
    assert caught.value.kind is FailureKind.REFUSED


def test_a_driver_that_cannot_be_unloaded(audit):
    with pytest.raises(DriverNotUnloaded), audit.module("ends", params="end=stays") as run:
        kick(run)
    result = run.result()
    assert told(result.findings) == [MISTAKE, KICK]
    assert result.exit_code == FailureKind.REFUSED.exit_code
    assert "leak-on-remove" in result.blind[0].rules


@pytest.mark.expect_oops("this is what was asked for")
def test_a_driver_that_makes_the_kernel_warn(audit):
    with audit.module("ends", params="end=warns") as run:
        pass
    assert len(run.complaints) == 1
    assert "ends: this is what was asked for" in run.complaints[0]
    assert told(run.findings) == [MISTAKE]


@pytest.mark.expect_oops("NULL pointer dereference")
@pytest.mark.parametrize("where", ["in the block", "at the end"])
def test_a_driver_that_kills_its_kernel(audit, where):
    params, last = ("end=crashes", 1) if where == "at the end" else ("", "crash")
    with pytest.raises(GuestPanicked), audit.module("ends", params=params) as run:
        kick(run, 1, last)
    result = run.result()
    assert told(result.findings) == [MISTAKE, KICK]
    assert result.exit_code == FailureKind.KERNEL_PANICKED.exit_code
    assert "ended before its time" in result.blind[0].what
    assert any("NULL pointer dereference" in one for one in result.complaints)
    # What was alive is still listed.
    assert ("coherent buffer", 16384, 1) in {(row.what, row.largest, row.alive) for row in result.judged}


def test_the_next_audit_is_of_a_clean_guest(audit):
    for _ in range(2):
        with audit.module("ends") as run:
            assert len(run.buffers) == 1
        assert told(run.findings) == [MISTAKE]


def test_a_module_that_is_built_already(audit, guest_image, tmp_path):
    build = build_module(guest_image.kernel, HERE / "ends", SilentProgress(), name="ends")
    stripped, whole = tmp_path / "ends.ko", tmp_path / "debug" / "ends.ko"
    whole.parent.mkdir()
    stripped.write_bytes(build.ko.read_bytes())
    whole.write_bytes(build.ko_debug.read_bytes())
    with audit.module(whole) as run:
        pass
    assert told(run.findings) == [MISTAKE]
    with audit.module(stripped) as run:
        pass
    (finding,) = run.findings
    assert (finding.rule.id, finding.site.file, finding.site.function) == ("free-size", "", "probe")
    assert any("no debug information" in one.what for one in run.result().blind)


def test_a_driver_that_is_there_already(audit):
    with audit.module("ends") as run:
        again = AuditRun(run.guest, run.subject, run.ledger)
        with pytest.raises(BadInput, match="in the guest already"), again:
            pass
        assert not again.begun


def test_a_driver_of_the_kernels_own_with_traffic(audit):
    with audit.module("virtio_blk", devices=["virtio-blk"], exercise="traffic") as run:
        assert [one.driver for one in run.devices.values()] == ["virtio_blk"]
    assert run.findings == []
    result = run.result()
    assert (result.lost, result.missed) == (0, 0)
    assert sum(row.calls for row in result.judged) > 100
    assert not any("past the DMA API" in one.what for one in result.blind)


def test_a_device_that_bypasses_the_dma_api_is_said(audit):
    with audit.module("virtio_rng", devices=["virtio-rng-pci"]) as run:
        pass
    (blind,) = [one for one in run.result().blind if "past the DMA API" in one.what]
    assert "VIRTIO_F_ACCESS_PLATFORM" in blind.hint

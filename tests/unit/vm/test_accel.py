# SPDX-License-Identifier: MIT
"""The choice of the accelerator, its reasons and its memory; no KVM needed."""

import dataclasses
import os
from pathlib import Path

import pytest

from harness.errors import HostLacks
from harness.vm import Accel, AcceleratorVerdict, MachineSpec, choose_accelerator
from harness.vm.accel import Outcome, Trial
from harness.vm.qemu import Qemu

QEMU = Qemu(Path("/usr/bin/qemu"), "7.2.22")
WORKS = Trial(Outcome.WORKS, "a guest answered")
DEAD = Trial(Outcome.DEAD, "silent for 4 s")
UNCLEAR = Trial(Outcome.UNCLEAR, "it panicked")


class Rig:
    """A device node that opens, a cache, and a trial that is counted instead of run."""

    def __init__(self, folder: Path) -> None:
        self.device = folder / "kvm"
        self.device.write_bytes(b"")
        self.cache = folder / "cache"
        kernel = folder / "vmlinux"
        kernel.write_bytes(b"\x7fELF")
        self.spec = MachineSpec(kernel=kernel, initrd=folder / "initrd")
        self.trials = 0
        self.result = WORKS

    def probe(self, _qemu: Qemu, _spec: MachineSpec) -> Trial:
        self.trials += 1
        return self.result

    def choose(self, accel: Accel = Accel.AUTO, qemu: Qemu = QEMU) -> AcceleratorVerdict:
        return choose_accelerator(
            dataclasses.replace(self.spec, accel=accel),
            qemu=qemu,
            cache=self.cache,
            device=self.device,
            probe=self.probe,
        )


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_only_a_guest_that_answered_gets_kvm(rig: Rig) -> None:
    assert rig.choose() == AcceleratorVerdict("kvm", "a guest answered")
    for result in (DEAD, UNCLEAR):
        rig.result = result
        os.utime(rig.spec.kernel, ns=(0, rig.trials))
        assert rig.choose() == AcceleratorVerdict("tcg", result.reason)


def test_a_verdict_is_remembered_until_something_changes(rig: Rig) -> None:
    rig.choose()
    assert (rig.choose().name, rig.trials) == ("kvm", 1)
    rig.result = DEAD
    changes = [
        lambda: rig.spec.kernel.write_bytes(b"\x7fELF another"),
        lambda: (rig.device.unlink(), rig.device.write_bytes(b"")),
        lambda: setattr(rig, "spec", dataclasses.replace(rig.spec, cpu="qemu64")),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        assert rig.choose().name == "tcg"
        assert rig.trials == number
    assert rig.choose(qemu=Qemu(QEMU.path, "9.2.0")).name == "tcg"
    assert rig.trials == len(changes) + 2


def test_what_may_be_the_guests_fault_is_not_remembered(rig: Rig) -> None:
    rig.result = UNCLEAR
    assert rig.choose().name == "tcg"
    rig.result = WORKS
    assert rig.choose().name == "kvm"
    assert rig.trials == 2


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", "null", '{"outcome": "perhaps", "reason": ""}', "\x00\xff"]
)
def test_a_damaged_memory_is_repaired(rig: Rig, damage: str) -> None:
    rig.choose()
    (file,) = rig.cache.iterdir()
    file.write_bytes(damage.encode("latin-1"))
    assert rig.choose().name == "kvm"
    assert rig.choose().name == "kvm"
    assert rig.trials == 2


def test_a_cache_that_cannot_be_written_only_costs_time(rig: Rig) -> None:
    rig.cache.write_text("a file where a folder should be")
    assert rig.choose().name == rig.choose().name == "kvm"
    assert rig.trials == 2


def test_without_the_device_nothing_is_tried(rig: Rig) -> None:
    rig.device.unlink()
    assert rig.choose() == AcceleratorVerdict("tcg", f"no {rig.device}")
    with pytest.raises(HostLacks, match=r"no .*kvm"):
        rig.choose(Accel.KVM)
    assert rig.trials == 0


def test_a_device_that_does_not_open_is_explained(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("harness.vm.accel.os.open", refuse)
    assert "may not open it" in rig.choose().reason


def test_forced_choices_are_honoured(rig: Rig) -> None:
    assert rig.choose(Accel.TCG) == AcceleratorVerdict("tcg", "asked for")
    assert rig.trials == 0
    rig.result = UNCLEAR
    assert rig.choose(Accel.KVM).name == "kvm"
    rig.result = DEAD
    with pytest.raises(HostLacks) as caught:
        rig.choose(Accel.KVM)
    assert "silent for 4 s" in caught.value.observed
    assert "tcg" in caught.value.hint

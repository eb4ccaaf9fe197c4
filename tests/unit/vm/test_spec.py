# SPDX-License-Identifier: MIT
"""What a machine specification refuses, and how it says so."""

import dataclasses
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.vm import MachineSpec
from harness.vm.spec import CMDLINE_MAX, CPUS_MAX, MEMORY_MIB_MIN

GOOD = MachineSpec(kernel=Path("vmlinux"), initrd=Path("initrd"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"slots": 17}, "cannot have 17 slots", id="too many slots"),
        pytest.param({"slots": -1}, "cannot have -1 slots", id="fewer slots than none"),
        pytest.param({"memory_mib": 64}, f"{MEMORY_MIB_MIN} MiB", id="too little memory"),
        pytest.param({"memory_mib": MEMORY_MIB_MIN - 1}, "too few", id="one MiB short"),
        pytest.param({"cpus": 0}, "0 virtual CPUs", id="no cpu"),
        pytest.param({"cpus": CPUS_MAX + 1}, "256 virtual CPUs", id="too many cpus"),
        pytest.param({"machine": "microvm"}, "PAT it does not have", id="microvm"),
        pytest.param({"machine": "vax"}, "known: q35, pc", id="unknown machine"),
        pytest.param({"cpu": "max -kernel x"}, "no CPU model", id="cpu with blanks"),
        pytest.param({"cmdline": ("quiet\nloglevel=7",)}, "control character", id="newline in cmdline"),
        pytest.param({"cmdline": ("x" * (CMDLINE_MAX + 1),)}, "2048 bytes", id="cmdline too long"),
        pytest.param({"ports": ("a", "a")}, "share a name", id="twin ports"),
        pytest.param({"ports": ("a,chardev=b",)}, "cannot name", id="comma in port"),
        pytest.param({"ports": tuple(f"p{i}" for i in range(31))}, "31 virtio", id="too many ports"),
        pytest.param({"devices": ("-s",)}, "no -device value", id="option as device"),
        pytest.param({"devices": ("",)}, "no -device value", id="empty device"),
    ],
)
def test_nonsense_is_refused_with_a_reason(change: dict[str, object], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        dataclasses.replace(GOOD, **change)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_limits_themselves_are_allowed() -> None:
    dataclasses.replace(GOOD, memory_mib=MEMORY_MIB_MIN, cpus=CPUS_MAX, cmdline=("x" * CMDLINE_MAX,))


def test_a_specification_is_a_value() -> None:
    assert dataclasses.replace(GOOD) == GOOD
    assert hash(GOOD) == hash(dataclasses.replace(GOOD))


@pytest.fixture
def files(tmp_path: Path) -> MachineSpec:
    (tmp_path / "kernel").write_bytes(b"\x7fELF" + bytes(600))
    (tmp_path / "initrd").write_bytes(b"070701")
    return MachineSpec(kernel=tmp_path / "kernel", initrd=tmp_path / "initrd")


def test_an_elf_and_a_bzimage_are_kernels(files: MachineSpec) -> None:
    files.check_files()
    files.kernel.write_bytes(bytes(0x202) + b"HdrS" + bytes(100))
    files.check_files()


def test_missing_empty_and_foreign_files_are_named(files: MachineSpec, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"initramfs .*nowhere is not a file"):
        dataclasses.replace(files, initrd=tmp_path / "nowhere").check_files()
    with pytest.raises(BadInput, match="is not a file"):
        dataclasses.replace(files, initrd=tmp_path).check_files()
    files.kernel.write_bytes(b"")
    with pytest.raises(BadInput, match=r"kernel .* is empty"):
        files.check_files()
    files.kernel.write_bytes(b"#!/bin/sh\n" * 100)
    with pytest.raises(BadInput, match="no x86 kernel"):
        files.check_files()

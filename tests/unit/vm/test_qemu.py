# SPDX-License-Identifier: MIT
"""The command line, word for word, and the search for a usable QEMU."""

import dataclasses
import itertools
import stat
from pathlib import Path

import pytest

from harness.errors import HostLacks
from harness.vm import Accel, MachineSpec, find_qemu
from harness.vm.qemu import Qemu, Wires, compose, compose_by_hand, cpu_argument

QEMU = Qemu(Path("/usr/bin/qemu-system-x86_64"), "7.2.22")
SPEC = MachineSpec(
    kernel=Path("/k/vmlinux"),
    initrd=Path("/k/initrd"),
    cmdline=("console=ttyS0", "panic=-1"),
    memory_mib=256,
    cpus=2,
    accel=Accel.TCG,
    ports=("org.iobmd.link", "org.iobmd.ssh"),
    devices=("edu,dma_mask=0xffffffff",),
)
WIRES = Wires(ram=3, console=4, qmp=5, ports={"org.iobmd.link": 6, "org.iobmd.ssh": 7})

GOLDEN = """
/usr/bin/qemu-system-x86_64
-nodefaults
-no-user-config
-display none
-nic none
-machine q35,memory-backend=ram,sata=off
-accel tcg,thread=multi
-cpu max,-erms,-fsrm
-smp 2
-m 256M
-no-reboot
-kernel /k/vmlinux
-initrd /k/initrd
-append console=ttyS0 panic=-1
-object memory-backend-file,id=ram,size=256M,mem-path=/proc/self/fd/3,share=on
-chardev socket,id=console,fd=4
-serial chardev:console
-chardev socket,id=qmp,fd=5
-mon chardev=qmp,mode=control
-device virtio-serial-pci,id=serial
-chardev socket,id=port0,fd=6
-device virtserialport,bus=serial.0,nr=1,chardev=port0,name=org.iobmd.link
-chardev socket,id=port1,fd=7
-device virtserialport,bus=serial.0,nr=2,chardev=port1,name=org.iobmd.ssh
-device edu,dma_mask=0xffffffff
"""


def in_lines(argv: tuple[str, ...]) -> str:
    text = ""
    for word in argv:
        text += ("\n" if word.startswith("-") or not text else " ") + word
    return "\n" + text.strip() + "\n"


def test_the_command_line_is_the_golden_one() -> None:
    assert in_lines(compose(QEMU, SPEC, "tcg", WIRES)).replace("\n/usr", "\n/usr") == GOLDEN


@pytest.mark.parametrize(
    ("cpu", "accelerator", "argument"),
    [
        ("max", "tcg", "max,-erms,-fsrm"),
        ("max,la57=off", "tcg", "max,la57=off,-erms,-fsrm"),
        ("max,+erms", "tcg", "max,+erms"),
        ("max,fsrm=on", "tcg", "max,fsrm=on"),
        ("max", "kvm", "max"),
        ("kvm64", "tcg", "kvm64"),
    ],
)
def test_tcg_does_not_promise_quick_byte_strings(cpu: str, accelerator: str, argument: str) -> None:
    spec = dataclasses.replace(SPEC, cpu=cpu)
    assert cpu_argument(spec, accelerator) == argument
    argv = compose(QEMU, spec, accelerator, WIRES)
    assert argv[argv.index("-cpu") + 1] == argument


def test_nothing_listens_and_nothing_has_a_name() -> None:
    text = " ".join(compose(QEMU, SPEC, "kvm", WIRES))
    assert "-accel kvm" in text
    for forbidden in ("tcp:", "unix:", "server", "path=/tmp", "-netdev", "hostfwd", "gdb"):
        assert forbidden not in text


def test_every_wire_is_used_once() -> None:
    text = " ".join(compose(QEMU, SPEC, "tcg", WIRES))
    assert WIRES.all() == (3, 4, 5, 6, 7)
    assert [text.count(f"fd={fd}") + text.count(f"fd/{fd},") for fd in WIRES.all()] == [1] * 5


def test_pc_has_no_q35_switches_and_no_ports_need_no_controller() -> None:
    spec = MachineSpec(kernel=Path("k"), initrd=Path("i"), machine="pc", ports=())
    text = " ".join(compose(QEMU, spec, "tcg", Wires(3, 4, 5)))
    assert "-machine pc,memory-backend=ram -accel" in text
    assert "virtio" not in text


def test_the_line_by_hand_inherits_nothing() -> None:
    text = " ".join(compose_by_hand(QEMU, SPEC, "tcg"))
    assert "fd=" not in text
    assert "/proc/self/fd" not in text
    assert "memory-backend-memfd,id=ram,size=256M,share=on" in text
    assert "mon:stdio" in text
    assert "name=org.iobmd.ssh" in text
    assert "edu,dma_mask=0xffffffff" in text


def fake_qemu(folder: Path, body: str) -> None:
    program = folder / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\n" + body)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param("echo QEMU emulator version 5.2.0", "5.2.0 is too old", id="too old"),
        pytest.param("echo hello", "does not tell its version", id="no version"),
        pytest.param("echo version 9.1; exit 1", "does not tell its version", id="fails"),
    ],
)
def test_an_unusable_qemu_is_named(
    body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu(tmp_path, body)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(HostLacks, match=words):
        find_qemu()


def test_a_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_qemu(tmp_path, "echo 'QEMU emulator version 9.2.4 (Debian 1:9.2.4)'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert find_qemu() == Qemu(
        tmp_path / "qemu-system-x86_64", "9.2.4", "QEMU emulator version 9.2.4 (Debian 1:9.2.4)"
    )


def test_a_missing_qemu_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostLacks) as caught:
        find_qemu()
    assert "apt-get install qemu-system-x86" in caught.value.hint


def test_slots_are_ports_after_all_devices_or_the_older_bus_itself() -> None:
    argv = compose(QEMU, dataclasses.replace(SPEC, slots=2), "tcg", WIRES)
    devices = [word for before, word in itertools.pairwise(argv) if before == "-device"]
    assert devices[-3:] == [
        "edu,dma_mask=0xffffffff",
        "pcie-root-port,id=slot0,chassis=1",
        "pcie-root-port,id=slot1,chassis=2",
    ]
    older = dataclasses.replace(SPEC, machine="pc", slots=2)
    assert not [word for word in compose(QEMU, older, "tcg", WIRES) if "root-port" in word]
    assert len(older.places) == 2

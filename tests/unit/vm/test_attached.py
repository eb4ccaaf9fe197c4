# SPDX-License-Identifier: MIT
"""Disks and networks: what can be asked for, their words for QEMU, and the host's view of a disk."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.vm import Disk, DiskFile, DiskModel, MachineSpec, Network, NetworkModel
from harness.vm.attached import MIB, disk_address, disk_file, network_address
from harness.vm.qemu import Qemu, Wires, compose, compose_by_hand

QEMU = Qemu(Path("/usr/bin/qemu-system-x86_64"), "7.2.22")
SPEC = MachineSpec(
    kernel=Path("k"),
    initrd=Path("i"),
    ports=(),
    disks=(Disk(DiskModel.NVME), Disk(DiskModel.AHCI, 8), Disk(DiskModel.VIRTIO)),
    networks=(Network(NetworkModel.E1000E), Network(NetworkModel.VIRTIO)),
)
WIRES = Wires(ram=3, console=4, qmp=5, disks=(6, 7, 8), networks=(9, 10))
GOLDEN = """
-add-fd fd=6,set=2
-blockdev driver=file,filename=/dev/fdset/2,locking=off,discard=unmap,node-name=disk0
-add-fd fd=7,set=3
-blockdev driver=file,filename=/dev/fdset/3,locking=off,discard=unmap,node-name=disk1
-device ich9-ahci,id=disk1-ahci,addr=0x11
-device ide-hd,bus=disk1-ahci.0,drive=disk1,serial=disk1
-add-fd fd=8,set=4
-blockdev driver=file,filename=/dev/fdset/4,locking=off,discard=unmap,node-name=disk2
-device virtio-blk-pci,disable-legacy=on,iommu_platform=on,drive=disk2,serial=disk2,addr=0x12
-chardev socket,fd=9,id=net0-wire
-netdev user,id=net0,restrict=on,guestfwd=tcp:10.0.2.100:7-chardev:net0-wire
-device e1000e,netdev=net0,mac=52:54:00:12:34:00,romfile=,addr=0x18
-chardev socket,fd=10,id=net1-wire
-netdev user,id=net1,restrict=on,guestfwd=tcp:10.0.2.100:7-chardev:net1-wire
-device virtio-net-pci,disable-legacy=on,iommu_platform=on,\
netdev=net1,mac=52:54:00:12:34:01,romfile=,addr=0x19
"""


def test_their_words_follow_each_other() -> None:
    argv = compose(QEMU, SPEC, "tcg", WIRES)
    assert " ".join(argv).endswith(" " + " ".join(GOLDEN.split()))
    assert WIRES.all() == (3, 4, 5, 6, 7, 8, 9, 10)


def test_they_come_after_the_devices_so_that_an_iommu_is_there_first() -> None:
    argv = compose(QEMU, replace(SPEC, devices=("intel-iommu",)), "tcg", WIRES)
    assert argv.index("intel-iommu") < argv.index("-blockdev")


def test_no_network_reaches_the_host_and_the_line_by_hand_inherits_nothing() -> None:
    for argv in (compose(QEMU, SPEC, "tcg", WIRES), compose_by_hand(QEMU, SPEC, "tcg")):
        networks = [word for word in argv if word.startswith("user,")]
        assert len(networks) == len(SPEC.networks)
        assert all("restrict=on" in word and "hostfwd" not in word for word in networks)
    text = " ".join(compose_by_hand(QEMU, SPEC, "tcg"))
    assert "fd=" not in text
    assert "-device nvme,drive=disk0,serial=disk0" in text
    assert "driver=null-co,read-zeroes=on,size=8M,node-name=disk1" in text


def test_the_kernel_finds_them_where_they_were_put() -> None:
    assert [disk_address(0), disk_address(7)] == ["0000:00:10.0", "0000:00:17.0"]
    assert [network_address(0), network_address(5)] == ["0000:00:18.0", "0000:00:1d.0"]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match="0 MiB"):
        Disk(DiskModel.NVME, 0)
    for change in ({"disks": SPEC.disks * 3}, {"networks": SPEC.networks * 4}):
        with pytest.raises(BadInput):
            replace(SPEC, **change)


def test_a_specification_with_them_can_be_told_apart_in_json() -> None:
    told = {json.dumps(asdict(replace(SPEC, **change))["disks"]) for change in ({}, {"disks": ()})}
    assert len(told) == 2


def test_a_disk_is_seen_and_written_and_cleared() -> None:
    with disk_file(0, Disk(DiskModel.NVME, 1)) as fd:
        disk = DiskFile(fd, MIB)
    try:
        assert disk.read(MIB - 4, 4) == bytes(4)
        disk.write(MIB - 4, b"last")
        assert disk.read(MIB - 4, 4) == b"last"
        disk.clear()
        assert disk.read(MIB - 4, 4) == bytes(4)
        for offset, length in ((-1, 1), (MIB - 3, 4)):
            with pytest.raises(BadInput, match="not all on a disk"):
                disk.read(offset, length)
    finally:
        disk.close()

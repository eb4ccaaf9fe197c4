# SPDX-License-Identifier: MIT
"""Disks and networks of a machine: what can be asked for, and the host's end of each.

A disk is a memory file that QEMU inherits: the host sees every byte of it, live. A network is QEMU's user
network, restricted: it answers ARP, DHCP and pings, and hands the one TCP connection that is made to `PEER`
to a socket of the host's. Neither has a name in the file system or a port on the host.
"""

import mmap
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from harness.errors import BadInput, HostExhausted

MIB: Final = 1 << 20
#: Places on the root bus, eight for disks; 0x1f is q35's own, and one before it stays free.
DISKS_MAX: Final = 8
NETWORKS_MAX: Final = 6
#: QEMU's user network (net/slirp.c): itself, the guest, and where our wire is.
GATEWAY: Final = "10.0.2.2"
ADDRESS: Final = "10.0.2.15"
PEER: Final = ("10.0.2.100", 7)

_FIRST_DISK, _FIRST_NETWORK = 0x10, 0x18
#: Locally administered (IEEE 802, bit 1 of the first byte), in QEMU's own range.
_MAC: Final = "52:54:00:12:34:{:02x}"
#: What a virtio device has to offer or its driver goes past the DMA API: VIRTIO_F_ACCESS_PLATFORM
#: (drivers/virtio/virtio_ring.c: vring_use_dma_api), which a legacy interface has no bit for.
_BY_DMA_API: Final = "disable-legacy=on,iommu_platform=on"


class DiskModel(StrEnum):
    """Which controller a disk is behind; each disk has one of its own."""

    NVME = "nvme"
    AHCI = "ahci"
    VIRTIO = "virtio-blk"

    @property
    def comes_late(self) -> bool:
        """Whether it is plugged in when the guest runs: with it there, QEMU tells nobody the CPUs' state."""
        return self is DiskModel.NVME


class NetworkModel(StrEnum):
    """Which card a network is behind."""

    E1000E = "e1000e"
    E1000 = "e1000"
    VIRTIO = "virtio-net"


@dataclass(frozen=True)
class Disk:
    """A disk, empty when the machine starts.

    Attributes:
        model: its controller.
        size_mib: its size in MiB.

    Raises:
        BadInput: it has no size.
    """

    model: DiskModel
    size_mib: int = 64

    def __post_init__(self) -> None:
        """Look at the size."""
        if self.size_mib < 1:
            raise BadInput(f"a disk of {self.size_mib} MiB", hint="1 MiB or more; 64 is usual")


@dataclass(frozen=True)
class Network:
    """A network of its own, with one card.

    Attributes:
        model: its card.
    """

    model: NetworkModel


def disk_address(index: int) -> str:
    """Where the guest's kernel sees the controller of a disk, for example ``"0000:00:10.0"``.

    Not of one that comes late: see `harness.link.Guest.disk_address`.
    """
    return f"0000:00:{_FIRST_DISK + index:02x}.0"


def network_address(index: int) -> str:
    """Where the guest's kernel sees the card of a network."""
    return f"0000:00:{_FIRST_NETWORK + index:02x}.0"


def disk_words(index: int, disk: Disk, backend: str) -> list[str]:
    """The words of QEMU's command line for a disk; of one that comes late, for its bytes.

    Args:
        index: its place in the specification.
        disk: which.
        backend: ``-blockdev`` value without a name, of the bytes.
    """
    name, slot = f"disk{index}", f"addr={_FIRST_DISK + index:#x}"
    words = ["-blockdev", f"{backend},node-name={name}"]
    if disk.model.comes_late:
        return words
    if disk.model is DiskModel.AHCI:
        words += ["-device", f"ich9-ahci,id={name}-ahci,{slot}"]
        return [*words, "-device", f"ide-hd,bus={name}-ahci.0,drive={name},serial={name}"]
    return [*words, "-device", f"{disk_device(index, disk)},{slot}"]


def disk_device(index: int, disk: Disk) -> str:
    """The ``-device`` value of a disk that is a device itself, without a place for it."""
    name = f"disk{index}"
    model = f"virtio-blk-pci,{_BY_DMA_API}" if disk.model is DiskModel.VIRTIO else disk.model.value
    return f"{model},drive={name},serial={name}"


def network_words(index: int, network: Network, backend: str) -> list[str]:
    """The words of QEMU's command line for a network.

    Args:
        index: its place in the specification.
        network: which.
        backend: ``-chardev`` value without a name, of the wire behind `PEER`.
    """
    name, slot = f"net{index}", f"addr={_FIRST_NETWORK + index:#x}"
    model = f"virtio-net-pci,{_BY_DMA_API}" if network.model is NetworkModel.VIRTIO else network.model.value
    host, port = PEER
    # romfile= (none): nobody boots from this card, and its boot ROM is another file of the host's.
    # fmt: off
    return [
        "-chardev", f"{backend},id={name}-wire",
        # restrict=on: not a packet leaves for the host or beyond; the rule for our wire is still followed.
        "-netdev", f"user,id={name},restrict=on,guestfwd=tcp:{host}:{port}-chardev:{name}-wire",
        "-device", f"{model},netdev={name},mac={_MAC.format(index)},romfile=,{slot}",
    ]
    # fmt: on


class DiskFile:
    """The host's view of a disk's bytes, shared with QEMU; what the guest has flushed is in it."""

    def __init__(self, fd: int, size: int) -> None:
        """Map the file.

        Args:
            fd: the memory file; it may be closed afterwards.
            size: bytes.
        """
        self._fd = os.dup(fd)
        self._map = mmap.mmap(fd, size)
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Copy bytes out.

        Raises:
            BadInput: some of them lie behind the disk's end.
        """
        self._check(offset, length)
        return self._map[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes in, as another writer of the medium would; a guest has cached what it has read.

        Raises:
            BadInput: some of them lie behind the disk's end.
        """
        self._check(offset, len(data))
        self._map[offset : offset + len(data)] = data

    def clear(self) -> None:
        """Make every byte 0 again; the file takes no memory afterwards."""
        self._map.madvise(mmap.MADV_REMOVE, 0, self.size)

    def close(self) -> None:
        """Unmap it."""
        self._map.close()
        os.close(self._fd)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise BadInput(f"{length} bytes at {offset} are not all on a disk of {self.size} bytes")


@contextmanager
def disk_file(index: int, disk: Disk) -> Iterator[int]:
    """An anonymous file for a disk; it takes memory where it was written.

    Yields:
        The descriptor, sized and close-on-exec.

    Raises:
        HostExhausted: the host cannot make it.
    """
    fd = os.memfd_create(f"iobmd-disk{index}", os.MFD_CLOEXEC)
    try:
        try:
            os.truncate(fd, disk.size_mib * MIB)
        except OSError as err:
            raise HostExhausted(
                f"this host cannot back a disk of {disk.size_mib} MiB", tried="ftruncate", observed=str(err)
            ) from err
        yield fd
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Attached:
    """The host's ends of what one QEMU has.

    Attributes:
        disks: in the specification's order.
        wires: of each network the socket behind `PEER`.
    """

    disks: tuple[DiskFile, ...] = ()
    wires: tuple[socket.socket, ...] = ()

    def rewind(self) -> None:
        """Make the disks as empty as they were when the guest booted."""
        for disk in self.disks:
            disk.clear()

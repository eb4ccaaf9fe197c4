# SPDX-License-Identifier: MIT
"""Whatever is asked, the answer is a clear one, nothing is lost and the kernel does not complain."""

import errno
import itertools
import os

import pytest

from harness.iokit import Null, kernel_task, kIODirectionInOut
from harness.link import GuestOSError, Nr

TOP = (1 << 64) - 1
KERNEL_ADDRESSES = (0xFFFF_8880_0000_1000, 0xFFFF_FFFF_8100_0000, TOP)
UNREADABLE = (0x1000, 1 << 47, *KERNEL_ADDRESSES)


@pytest.fixture
def quiet(guest, iobmd):
    """No descriptor more than before and no complaint of the kernel."""
    before, mark = iobmd.info().live, len(guest.machine.console.text())
    yield
    iobmd.release_all()
    assert iobmd.info().live == before
    said = guest.machine.console.text()[mark:]
    assert not [line for line in said.splitlines() if "WARN" in line or "BUG" in line or "Oops" in line], said


def refused(call, *codes):
    with pytest.raises(GuestOSError) as caught:
        call()
    assert caught.value.errno in codes
    return caught.value


def create(iobmd, **fields):
    layout = iobmd.layouts.struct("iobmd_create")
    return iobmd.ioctl(iobmd.device, "CREATE", layout.pack(**fields))


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "options", [0, 3, 0x13, 0x23, 0x63, 0x403, 0x10003, 1 << 26, 0x0F00_0000, 0xFFFF_FFFF]
)
def test_arguments_at_their_limits_give_a_buffer_or_a_reason(iobmd, options):
    capacities = (0, 1, 4096, 4097, TOP - 4095, TOP - 1, TOP)
    alignments = (0, 1, 3, 100, 4096, 5000, 1 << 32, 1 << 63, TOP)
    for capacity, alignment in itertools.product(capacities, alignments):
        made = iobmd.withOptions(options, capacity, alignment)
        if isinstance(made, Null):
            assert made.errno > 0
            assert made.reason
            continue
        assert made.getCapacity() == capacity
        made.release()


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    "mask", [0, 1, 0xFFF, 0xF0F0_F000, 0x80000000, 1 << 63, (1 << 63) | 1, 0xFFFF_F000, TOP]
)
def test_masks_at_their_limits_give_a_buffer_or_a_reason(iobmd, mask):
    for capacity in (0, 1, 4096, 3 << 20, TOP):
        made = iobmd.inTaskWithPhysicalMask(kernel_task, kIODirectionInOut, capacity, mask)
        assert made or made.reason
        if made:
            made.release()


@pytest.mark.usefixtures("quiet")
def test_what_is_no_factory_call_is_refused(iobmd):
    enums = iobmd.layouts.enum
    good = {"options": 3, "capacity": 16, "alignment": 1, "task": enums("iobmd_task")["IOBMD_TASK_KERNEL"]}
    for wrong in ({"factory": 99}, {"task": 99, "factory": 1}, {"context": 99}, {"options": 1 << 40}):
        refused(lambda wrong=wrong: create(iobmd, **{**good, **wrong}), errno.EINVAL)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("address", [0, *UNREADABLE])
def test_a_source_that_cannot_be_read_changes_nothing(iobmd, address):
    with_bytes = iobmd.layouts.enum("iobmd_factory")["IOBMD_WITH_BYTES"]
    refused(lambda: create(iobmd, factory=with_bytes, options=3, capacity=4096, bytes=address), errno.EFAULT)

    buf = iobmd.withOptions(kIODirectionInOut, 4096)
    assert buf.writeBytes(0, b"kept" * 1024) == 4096
    buf.setLength(100)
    transfer = iobmd.layouts.struct("iobmd_transfer").pack(offset=0, length=50, bytes=address)
    for name in ("APPEND_BYTES", "READ_BYTES", "WRITE_BYTES"):
        if (name, address) == ("WRITE_BYTES", 0):
            continue  # a NULL source means zeros
        refused(lambda name=name: iobmd.ioctl(buf.fd, name, transfer), errno.EFAULT)
    assert buf.getLength() == 100
    assert buf.readBytes(0, 100) == b"kept" * 25


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("address", UNREADABLE)
def test_a_structure_in_kernel_space_is_a_fault(guest, iobmd, address):
    buf = iobmd.withOptions(kIODirectionInOut, 4096)
    commands = iobmd.layouts.enum("iobmd_ioctl")
    for name, command in commands.items():
        fd = iobmd.device if name in ("IOBMD_IOC_INFO", "IOBMD_IOC_CREATE") else buf.fd
        result = guest.link.syscall(Nr.IOCTL, fd, command, address, timeout=10).value
        # The commands that take no structure, and those of a mapping, are not answered with a fault.
        assert result in (-errno.EFAULT, -errno.ENOTTY), f"{name} answered {result}"


@pytest.mark.usefixtures("quiet")
def test_wrong_handles_are_refused(guest, iobmd):
    buf = iobmd.withOptions(kIODirectionInOut, 4096)
    word = bytes(8)
    null = guest.open("/dev/null", os.O_RDWR)
    for fd in (null, iobmd.device):
        refused(lambda fd=fd: iobmd.ioctl(fd, "GET_CAPACITY", word), errno.ENOTTY)
    refused(lambda: iobmd.ioctl(buf.fd, "CREATE", bytes(8)), errno.ENOTTY)
    guest.close(null)

    number = buf.fd
    refused(
        lambda: guest.peer.ioctl(number + 500, 0, word), errno.EBADF
    )  # a number of the agent's, not the peer's
    buf.release()
    refused(lambda: guest.ioctl(number, 0, word), errno.EBADF)


@pytest.mark.usefixtures("quiet")
def test_offsets_and_lengths_that_wrap_around_reach_nothing(iobmd):
    buf = iobmd.withOptions(kIODirectionInOut, 8192)
    buf.writeBytes(0, b"\xa5" * 8192)
    for offset, length in itertools.product((0, 1, 8191, 8192, TOP - 4095, TOP), (1 << 63, TOP - 8191, TOP)):
        assert buf.getBytesNoCopy(offset, length) == 0
        assert buf.readBytes(offset, length) == b""
        assert buf.writeBytes(offset, None, length) == 0
    for offset in (8192, 1 << 63, TOP):
        assert tuple(buf.getPhysicalSegment(offset)) == (0, 0)
    assert buf.readBytes(0, 8192) == b"\xa5" * 8192

# SPDX-License-Identifier: MIT
"""The methods, against a module that answers by the reference model."""

from __future__ import annotations

import pytest

from harness.errors import BadInput
from harness.iokit import IOReturn, Null, Task
from harness.iokit import constants as k
from harness.iokit.handle import TRANSFER_MAX

PAGE = 4096
BASE = 0xFFFF_8880_0000_0000


@pytest.fixture
def buffer(iokit):
    return iokit.withOptions(k.kIODirectionInOut, 3 * PAGE)


@pytest.fixture
def pageable(iokit):
    options = k.kIODirectionInOut | k.kIOMemoryPageable | k.kIOMemoryPurgeable
    return iokit.inTaskWithOptions(Task.CURRENT, options, 2 * PAGE)


def test_plain_values(buffer):
    assert (buffer.getCapacity(), buffer.getLength(), buffer.getDirection()) == (3 * PAGE, 3 * PAGE, 3)
    buffer.setLength(100)
    buffer.setDirection(k.kIODirectionOut)
    assert (buffer.getLength(), buffer.getDirection()) == (100, 2)
    buffer.setLength(1 << 60)
    assert (buffer.getLength(), buffer.refusedLengths) == (100, 1)
    assert buffer.getFlags() == 0xA
    assert buffer.getBytesNoCopy() == buffer.address == BASE
    assert buffer.getBytesNoCopy(10, 90) == BASE + 10
    assert buffer.getBytesNoCopy(10, 91) == 0
    assert buffer.storage == 3 * PAGE
    with pytest.raises(BadInput):
        buffer.setLength(-1)
    with pytest.raises(BadInput):
        buffer.setDirection(1 << 32)


def test_bytes_go_in_and_out(buffer):
    assert buffer.writeBytes(10, b"hello") == 5
    assert buffer.readBytes(8, 9) == b"\0\0hello\0\0"
    assert buffer.writeBytes(11, None, 3) == 3
    assert buffer.readBytes(10, 5) == b"h\0\0\0o"
    assert buffer.writeBytes(0, b"abcdef", 2) == 2
    assert buffer.readBytes(0, 3) == b"ab\0"
    assert buffer.readBytes(3 * PAGE, 1) == b""
    assert buffer.readBytes(3 * PAGE - 1, 2) == b""
    assert buffer.writeBytes(3 * PAGE - 1, b"xy") == 0
    with pytest.raises(BadInput, match="needs a length"):
        buffer.writeBytes(0, None)
    with pytest.raises(BadInput, match="told to copy"):
        buffer.writeBytes(0, b"ab", 3)


def test_transfers_larger_than_a_request(iokit, process):
    size = 2 * TRANSFER_MAX + 5
    buffer = iokit.withOptions(k.kIODirectionInOut, size)
    data = bytes(at * 31 % 256 for at in range(size))
    assert buffer.writeBytes(0, data) == size
    assert buffer.readBytes(0, size) == data
    before = process.log.count("READ_BYTES")
    assert buffer.readBytes(1, size) == b"", "one request, so that nothing of what does not fit is copied"
    assert process.log.count("READ_BYTES") == before + 1
    assert buffer.writeBytes(1, data) == 0
    assert buffer.readBytes(0, 100) == data[:100]
    buffer.setLength(0)
    assert buffer.appendBytes(data + b"too much") is True
    assert buffer.getLength() == size
    assert process.log.count("APPEND_BYTES") == 1, "Apple's call is one call"


def test_append(buffer):
    buffer.setLength(3)
    assert buffer.appendBytes(b"") is True
    assert buffer.appendBytes(b"xyz") is True
    assert (buffer.getLength(), buffer.readBytes(0, 6)) == (6, b"\0\0\0xyz")


def test_segments(buffer):
    assert buffer.getPhysicalSegment(0) == (0x10_0000, 8192)
    assert [segment.length for segment in buffer.segments()] == [8192, PAGE]
    assert buffer.getPhysicalSegment(3 * PAGE) == (0, 0)
    assert buffer.getPhysicalAddress() == 0x10_0000


def test_codes_are_ioreturns(buffer, iokit, module):
    assert buffer.prepare() is IOReturn.kIOReturnSuccess
    assert buffer.complete(k.kIODirectionCompleteWithError) is IOReturn.kIOReturnSuccess
    assert module.asked[-1] == ("iobmd_wiring", {"direction": 0x40, "code": 0})
    reading = iokit.withOptions(k.kIODirectionOut, 10)
    assert reading.prepare(k.kIODirectionIn) is IOReturn.kIOReturnNotWritable
    assert buffer.setPurgeable(9) == (IOReturn.kIOReturnBadArgument, 0)
    assert buffer.setPurgeable(k.kIOMemoryPurgeableVolatile).code in (1, 4)
    assert buffer.getPageCounts() == (IOReturn.kIOReturnNotReady, 3, 2)
    assert buffer.performOperation(k.kIOMemoryIncoherentIOFlush, 0, 10) is IOReturn.kIOReturnSuccess
    assert buffer.performOperation(k.kIOMemoryIncoherentIOFlush, 1 << 40, 10) is IOReturn.kIOReturnUnderrun


def test_purgeable_states(pageable):
    assert pageable.setPurgeable(k.kIOMemoryPurgeableVolatile).oldState == k.kIOMemoryPurgeableNonVolatile
    assert pageable.setPurgeable(k.kIOMemoryPurgeableEmpty).code.ok
    assert pageable.setPurgeable(k.kIOMemoryPurgeableNonVolatile).oldState == k.kIOMemoryPurgeableEmpty


def test_description_has_names(buffer):
    told = buffer.describe()
    assert (told.memory_type, told.storage_kind, told.chunks) == ("WC", "CHUNKS", 2)
    assert (told.prepared, told.alignment, told.user_address) == (1, 64, 0)


def test_kernel_mapping(buffer):
    with buffer.map() as mapping:
        assert mapping.getVirtualAddress() == mapping.getAddress() == BASE
        assert (mapping.getLength(), mapping.own, mapping.guard) == (3 * PAGE, True, 0)
        assert mapping.getMapOptions() == k.kIOMapAnywhere
        assert mapping.getMemoryDescriptor() is buffer
        assert mapping.getAddressTask() is Task.KERNEL
        assert mapping.readLocked(10, 20) == bytes(20)
        with pytest.raises(BadInput, match="kernel's address space"):
            mapping.read()
    with pytest.raises(BadInput, match="released"):
        mapping.readLocked(0, 1)


def test_part_of_a_buffer(buffer, module):
    mapping = buffer.createMappingInTask(Task.CURRENT, 0x1000, k.kIOMapReadOnly, PAGE, 100)
    assert (mapping.getLength(), mapping.describe().offset, mapping.describe().writable) == (100, PAGE, False)
    _, asked = next(one for one in reversed(module.asked) if one[0] == "iobmd_create_mapping")
    assert (asked["task"], asked["address"], asked["options"]) == (2, 0x1000, k.kIOMapReadOnly)
    null = buffer.createMappingInTask(Task.CURRENT, 0, k.kIOMapAnywhere, PAGE)
    assert isinstance(null, Null)
    assert "createMappingInTask(CURRENT, 0x0, 0x1, 4096, 0)" in repr(null)


def test_a_mapping_in_another_process_belongs_to_it(buffer, peer, process, iokit):
    mapping = buffer.createMappingInTask(peer, 0, k.kIOMapAnywhere)
    assert mapping.process is peer
    assert peer.files.keys() == {mapping.fd}
    assert mapping.getAddressTask() is peer
    assert len(process.files) == 2
    reads = []
    peer.peek = lambda address, size: reads.append((address, size)) or b"seen"
    assert mapping.read(4, 10) == b"seen"
    assert reads == [(BASE + 4, 10)]
    iokit.release_all()
    assert peer.files == {}


def test_driverkit(iokit):
    memory = iokit.Create(3, 6000, 0).memory
    assert memory.GetLength() == (IOReturn.kIOReturnSuccess, 6000)
    assert memory.SetLength(10) is IOReturn.kIOReturnSuccess
    assert memory.SetLength(6001) is IOReturn.kIOReturnBadArgument
    assert memory.GetAddressRange() == (IOReturn.kIOReturnSuccess, (BASE, 10))
    code, mapping = memory.CreateMapping(k.kIOMemoryMapGuardedNone)
    assert (code, mapping.getLength()) == (IOReturn.kIOReturnSuccess, 10)
    assert iokit.maps == (mapping,)
    code, null = memory.CreateMapping(0x1000)
    assert (code, bool(null), null.reason) == (IOReturn.kIOReturnBadArgument, False, "cache bits")

# SPDX-License-Identifier: MIT
"""Every factory puts its arguments where the ABI says, and turns the answer into an object or NULL."""

from __future__ import annotations

import pytest

from harness.errors import BadInput
from harness.iokit import Context, IOBufferMemoryDescriptor, IOKit, IOReturn, Null, NullDescriptorError, Task
from harness.iokit import constants as k
from harness.iokit.handle import TRANSFER_MAX

OUT = k.kIODirectionOut
PAGEABLE = k.kIOMemoryPageable | k.kIODirectionInOut

CALLS = {
    "withOptions": (
        lambda kit: kit.withOptions(OUT, 5000, 256),
        {"factory": "IOBMD_WITH_OPTIONS", "options": OUT, "capacity": 5000, "alignment": 256},
        "withOptions(0x2, 5000, 256)",
    ),
    "withOptions, default alignment": (
        lambda kit: kit.withOptions(OUT, 5000),
        {"alignment": 1},
        "withOptions(0x2, 5000, 1)",
    ),
    "inTaskWithOptions": (
        lambda kit: kit.inTaskWithOptions(Task.CURRENT, PAGEABLE, 100),
        {"factory": "IOBMD_IN_TASK_WITH_OPTIONS", "task": 2, "alignment": 1, "kernel_tag": 0},
        "inTaskWithOptions(CURRENT, 0x23, 100, 1)",
    ),
    "inTaskWithOptions with tags": (
        lambda kit: kit.inTaskWithOptions(Task.KERNEL, OUT, 100, 8, 70_000, 5),
        {"factory": "IOBMD_IN_TASK_WITH_OPTIONS_TAGGED", "task": 1, "kernel_tag": 70_000, "user_tag": 5},
        "inTaskWithOptions(KERNEL, 0x2, 100, 8, 70000, 5)",
    ),
    "inTaskWithPhysicalMask": (
        lambda kit: kit.inTaskWithPhysicalMask(Task.NULL, OUT, 100, 0xFFFF_0000),
        {"factory": "IOBMD_IN_TASK_WITH_PHYSICAL_MASK", "task": 0, "mask": 0xFFFF_0000},
        "inTaskWithPhysicalMask(NULL, 0x2, 100, 0xffff0000)",
    ),
    "initWithPhysicalMask": (
        lambda kit: kit.initWithPhysicalMask(Task.KERNEL, OUT, 100, 64, 0xFF_FFFF),
        {"factory": "IOBMD_INIT_WITH_PHYSICAL_MASK", "task": 1, "mask": 0xFF_FFFF, "alignment": 64},
        "initWithPhysicalMask(KERNEL, 0x2, 100, 64, 0xffffff)",
    ),
    "withCapacity": (
        lambda kit: kit.withCapacity(8192, OUT, True),
        {"factory": "IOBMD_WITH_CAPACITY", "options": OUT, "contiguous": 1},
        "withCapacity(8192, 0x2, True)",
    ),
    "withBytes": (
        lambda kit: kit.withBytes(b"abc", OUT),
        {"factory": "IOBMD_WITH_BYTES", "capacity": 3, "contiguous": 0, "data": b"abc"},
        "withBytes(3 bytes, 0x2, False)",
    ),
    "inTaskWithGuardPages": (
        lambda kit: kit.inTaskWithGuardPages(Task.KERNEL, OUT, 5),
        {"factory": "IOBMD_IN_TASK_WITH_GUARD_PAGES", "capacity": 5},
        "inTaskWithGuardPages(KERNEL, 0x2, 5)",
    ),
}


@pytest.mark.parametrize(("call", "fields", "text"), CALLS.values(), ids=CALLS)
def test_arguments_arrive(iokit, module, call, fields, text):
    made = call(iokit)
    assert isinstance(made, IOBufferMemoryDescriptor)
    arrived = module.created[-1]
    assert {name: arrived[name] for name in fields} == fields
    assert arrived["context"] == 0
    assert repr(made).startswith(f"<IOBufferMemoryDescriptor {text}, fd ")
    assert iokit.alive == (made,)


def test_create_is_driverkits(iokit, module):
    code, memory = iokit.Create(k.kIOMemoryDirectionInOut, 6000, 256)
    assert (code, memory.getLength()) == (IOReturn.kIOReturnSuccess, 6000)
    assert module.created[-1]["factory"] == "IOBMD_DRIVERKIT_CREATE"
    created = iokit.Create(1 << 40, 6000, 0)
    assert created.code is IOReturn.kIOReturnBadArgument
    assert isinstance(created.memory, Null)
    assert iokit.Create(0, 0, 0).code is IOReturn.kIOReturnNoMemory


def test_bytes_larger_than_a_request_lie_in_memory_of_the_process(iokit, module, process):
    data = bytes(range(256)) * (TRANSFER_MAX // 256 + 1)
    made = iokit.withBytes(data, OUT)
    assert module.created[-1]["bytes"] != 0
    assert made.readBytes(0, len(data)) == data
    assert f"memory of {len(data)}" in process.log
    assert process.memories == {}


def test_a_copy_is_made_from_the_callers_memory(iokit, module, process):
    with process.memory(b"source") as source:
        made = iokit.withCopy(Task.KERNEL, PAGEABLE, Task.CURRENT, source.address, 6)
    assert made.readBytes(0, 6) == b"source"
    assert (module.created[-1]["factory"], module.created[-1]["task"]) == ("IOBMD_WITH_COPY", 1)


def test_a_copy_from_one_process_into_another_is_refused(iokit, peer, process):
    for task, source in ((peer, Task.CURRENT), (Task.CURRENT, peer), (Task.CURRENT, Task.KERNEL)):
        with pytest.raises(BadInput, match="maps the copy in"):
            iokit.withCopy(task, PAGEABLE, source, 0x1000, 6)
    assert process.files.keys() == {iokit.device}


def test_the_memory_of_another_process_is_copied_by_that_process(iokit, module, peer, process):
    with peer.memory(b"theirs") as source:
        for task in (peer, Task.KERNEL):
            made = iokit.withCopy(task, PAGEABLE, peer, source.address, 6)
            assert made.readBytes(0, 6) == b"theirs"
            assert made.process is process
    assert [one["task"] for one in module.created] == [2, 1]


def test_a_buffer_in_another_process_is_made_there_and_handed_over(iokit, module, peer, process):
    made = iokit.inTaskWithOptions(peer, PAGEABLE, 100)
    assert made.process is process
    assert made.fd in process.files
    assert module.created[-1]["task"] == 2
    assert "CREATE" in peer.log
    assert len(peer.files) == 1, "the peer keeps its device and nothing else"
    made.release()
    assert module.live == 0
    iokit.close()
    assert peer.files == {}


def test_one_tag_is_no_overload(iokit):
    for tags in ({"kernTag": 1}, {"userTag": 1}):
        with pytest.raises(BadInput, match="both tags"):
            iokit.inTaskWithOptions(Task.KERNEL, OUT, 100, 1, **tags)


def test_null_has_reason_and_no_methods(iokit):
    made = iokit.withOptions(OUT, 0)
    assert not made
    assert repr(made) == "<NULL from withOptions(0x2, 0, 1): ENOMEM: by A05>"
    with pytest.raises(NullDescriptorError, match="getCapacity was asked of NULL"):
        made.getCapacity()
    assert iokit.alive == ()


def test_factories_are_called_from_where_the_block_says(iokit, module):
    with iokit.calledFrom(Context.INTERRUPT):
        assert not iokit.withOptions(OUT, 100)
        with iokit.calledFrom(Context.SIMPLE_LOCK):
            assert not iokit.withCapacity(100, OUT)
    assert iokit.withOptions(OUT, 100)
    assert [one["context"] for one in module.created] == [2, 1, 0]


def test_numbers_no_argument_can_hold_are_refused(iokit):
    for call in (
        lambda: iokit.withOptions(OUT, 1 << 64),
        lambda: iokit.withOptions(OUT, -1),
        lambda: iokit.withOptions(1 << 64, 1),
    ):
        with pytest.raises(BadInput, match="unsigned"):
            call()


def test_the_session_counts_and_releases(iokit, module):
    made = [iokit.withOptions(OUT, 100) for _ in range(3)]
    assert iokit.info().live == 3
    assert iokit.info().types == {"WB", "WC", "WT"}
    made[1].release()
    made[1].release()
    assert iokit.alive == (made[0], made[2])
    mapping = made[0].map(k.kIOMapUnique)
    assert iokit.release_all() == 2
    assert (iokit.alive, iokit.maps, module.live) == ((), (), 0)
    for gone in (made[0].getLength, mapping.describe):
        with pytest.raises(BadInput, match="was released"):
            gone()
    iokit.close()
    iokit.close()
    with pytest.raises(BadInput, match="session is closed"):
        iokit.withOptions(OUT, 100)


def test_mappings_go_before_the_buffers_they_keep(process):
    with IOKit(process) as session:
        buffer = session.withOptions(OUT, 100)
        mapping = buffer.map(k.kIOMapUnique)
        order = [f"close {mapping.fd}", f"close {buffer.fd}"]
    assert [line for line in process.log if line.startswith("close")][:2] == order


def test_a_context_manager_releases(iokit, module):
    with iokit.withOptions(OUT, 100) as buffer:
        assert module.live == 1
    assert module.live == 0
    assert repr(buffer).endswith("released>")

# SPDX-License-Identifier: MIT
"""A module without a kernel: the ABI's own layouts, with the reference model behind them.

The structures come out of a C file that includes the real header: a field that is renamed there breaks here.
"""

from __future__ import annotations

import errno
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from harness.images import Layouts, source_root
from harness.iokit import IOKit
from harness.iokit import constants as k
from harness.iokit.reference import Call, Factory, Limits, ReferenceBuffer, Role, Verdict, place
from harness.link import GuestOSError, IoctlResult, Nr, Process
from harness.link.frames import Protocol

BASE = 0xFFFF_8880_0000_0000
LIMITS = Limits(memory=1 << 30, top=1 << 30)

FACTORIES = {
    "IOBMD_WITH_OPTIONS": Factory.WITH_OPTIONS,
    "IOBMD_IN_TASK_WITH_OPTIONS": Factory.IN_TASK,
    "IOBMD_IN_TASK_WITH_OPTIONS_TAGGED": Factory.IN_TASK,
    "IOBMD_WITH_CAPACITY": Factory.CAPACITY,
    "IOBMD_WITH_BYTES": Factory.BYTES,
    "IOBMD_IN_TASK_WITH_PHYSICAL_MASK": Factory.PHYSICAL_MASK,
    "IOBMD_INIT_WITH_PHYSICAL_MASK": Factory.INIT,
    "IOBMD_WITH_COPY": Factory.COPY,
    "IOBMD_IN_TASK_WITH_GUARD_PAGES": Factory.GUARD_PAGES,
    "IOBMD_DRIVERKIT_CREATE": Factory.CREATE,
}


@pytest.fixture(scope="session")
def layouts(tmp_path_factory) -> Layouts:
    folder = tmp_path_factory.mktemp("abi")
    (folder / "abi.c").write_text('#include "iobmd_abi.h"\n')
    argv = ["gcc", "-g", "-c", "-fno-eliminate-unused-debug-types", f"-I{source_root() / 'kext_shim'}"]
    subprocess.run([*argv, "-o", folder / "abi.o", folder / "abi.c"], check=True)
    return Layouts.from_elf(folder / "abi.o")


class Module:
    """What the processes of one guest share."""

    def __init__(self, layouts: Layouts, protocol: Protocol) -> None:
        self.layouts = layouts
        self.protocol = protocol
        self.names = {number: name for name, number in layouts.enum("iobmd_ioctl").items()}
        self.live = 0
        self.created: list[dict] = []  # what arrived with CREATE
        self.asked: list[tuple[str, dict]] = []  # every other structure that arrived


class File:
    """An open file: the device, a descriptor or a mapping; taken descriptors share it."""

    def __init__(self, model=None, answer=None) -> None:
        self.model, self.map, self.users = model, answer, 1
        self.refused = 0


class FakePending:
    """A frame with calls, answered when it is waited for."""

    def __init__(self, link, payload, what) -> None:
        self.link, self.payload, self.what = link, payload, what
        self.sent = self.done = False
        self.reply = None

    def send(self) -> None:
        self.sent = True

    def wait(self, _timeout, pause=None):
        assert self.sent
        assert pause is not None, "what a frame makes would be lost"
        pause()
        if self.link.before_answer:
            self.link.before_answer(self)
        if self.reply is None:
            self.reply = SimpleNamespace(payload=self.link.execute(self.payload))
        self.done = True
        return self.reply


class FakeLink:
    """The agent's part of LINK_BATCH, over the fake process."""

    def __init__(self, process, protocol) -> None:
        self.process, self.protocol = process, protocol
        self.before_answer = None  # called with the frame that is waited for
        self.frames: list[FakePending] = []

    def prepare(self, op, payload=b"", what=""):
        assert op == self.protocol.batch
        assert len(payload) <= self.protocol.payload_max
        self.frames.append(FakePending(self, payload, what))
        return self.frames[-1]

    def execute(self, payload):
        protocol = self.protocol
        head = protocol.batch_record.unpack(payload)
        layout = protocol.layouts.struct("link_batch_call")
        start = protocol.batch_record.size
        end = start + head["calls"] * layout.size
        arena = bytearray(payload[end:].ljust(head["arena"], b"\0"))
        results = b""
        for at in range(start, end, layout.size):
            result = self.one(layout.unpack(payload[at:]), arena)
            results += result.to_bytes(8, "little", signed=True)
        window = bytes(arena[head["out_start"] : head["out_start"] + head["out_length"]])
        return protocol.batch_result_record.pack(made=head["calls"]) + results + window

    def one(self, call, arena):
        args = list(call["args"])
        for index, at in enumerate(call["args"]):
            if call["load_args"] >> index & 1:
                args[index] = int.from_bytes(arena[at : at + 4], "little", signed=True)
        try:
            if call["number"] == Nr.CLOSE:
                self.process.close(args[0])
                return 0
            assert (call["number"], call["arena_args"]) == (Nr.IOCTL, 4)
            size = args[1] >> 16 & 0x3FFF  # asm-generic/ioctl.h: _IOC_SIZE
            place = slice(args[2], args[2] + size)
            assert place.stop <= len(arena)
            arena[place] = self.process.ioctl(args[0], args[1], bytes(arena[place])).arg
        except GuestOSError as error:
            return -error.errno
        return 0


class FakeProcess(Process):
    """One process of the guest that has no guest."""

    def __init__(self, module: Module, pid: int = 1) -> None:
        super().__init__()
        self.link = FakeLink(self, module.protocol)
        self.module, self.number = module, pid
        self.image = SimpleNamespace(layouts=module.layouts)
        self.files: dict[int, File] = {}
        self.memories: dict[int, bytes] = {}
        self.log: list[str] = []
        self._next = pid * 1000

    @property
    def pid(self) -> int:
        return self.number

    def _add(self, file: File) -> int:
        self._next += 1
        self.files[self._next] = file
        return self._next

    def open(self, path, _flags=0, _mode=0):
        assert path == "/dev/iobmd"
        return self._add(File())

    def close(self, fd):
        self.log.append(f"close {fd}")
        file = self.files.pop(fd, None)
        if file is None:
            raise GuestOSError(errno.EBADF, f"close {fd}")
        file.users -= 1
        self.module.live -= file.users == 0 and file.model is not None

    def take(self, fd, owner):
        file = owner.files[fd]
        file.users += 1
        return self._add(file)

    @contextmanager
    def memory(self, contents, _prot=3):
        address = 0x7000_0000 + 0x1000 * len(self.log)
        self.log.append(f"memory of {len(contents)}")
        self.memories[address] = contents
        yield SimpleNamespace(address=address)
        del self.memories[address]

    def ioctl(self, fd, cmd, arg=b"", pointers=None):
        if fd not in self.files:
            raise GuestOSError(errno.EBADF, "ioctl")
        name = self.module.names[cmd].removeprefix("IOBMD_IOC_")
        self.log.append(name)
        answer, data = getattr(self, "do_" + name.lower())(self.files[fd], arg, pointers or {})
        return IoctlResult(0, answer, data)

    # -- one method per ioctl -------------------------------------------------------------------------------

    def _struct(self, name: str, arg: bytes):
        layout = self.module.layouts.struct(name)
        fields = layout.unpack(arg)
        self.module.asked.append((name, dict(fields)))
        return layout, fields

    def do_info(self, _file, _arg, _pointers):
        layout = self.module.layouts.struct("iobmd_info")
        return layout.pack(abi_version=2, live=self.module.live, types=0b1011), {}

    def do_create(self, _file, arg, pointers):
        layout = self.module.layouts.struct("iobmd_create")
        fields = layout.unpack(arg)
        names = {number: name for name, number in self.module.layouts.enum("iobmd_factory").items()}
        name = names[fields["factory"]]
        where = layout.fields["bytes"].offset
        data = pointers.get(where) or self.memories.get(fields["bytes"], b"")
        fields["data"], fields["factory"] = data, name
        self.module.created.append(fields)
        role = (Role.NULL, Role.KERNEL, Role.USER)[fields["task"]]
        placement = place(
            Call(
                FACTORIES[name], fields["options"], fields["capacity"], fields["alignment"], fields["mask"],
                role, bool(fields["contiguous"]),
            ), LIMITS,
        )  # fmt: skip
        if placement.verdict is Verdict.NULL or fields["context"]:
            code = 0xE00002C2 if placement.clause == "K02" else 0xE00002BD
            return self._null(layout, arg, 12, f"by {placement.clause}", code), {}
        self.module.live += 1
        model = ReferenceBuffer(placement, data[: fields["capacity"]])
        return self._over(layout, arg, fd=self._add(File(model))), {}

    @staticmethod
    def _over(layout, arg, **fields):
        kept = {name: value for name, value in layout.unpack(arg).items() if name not in fields}
        return layout.pack(**kept, **fields)

    def _null(self, layout, arg, error, reason, code):
        return self._over(layout, arg, fd=-1, error=error, reason=reason.encode(), code=code)

    def _number(self, value, size=8):
        return value.to_bytes(size, "little"), {}

    def do_get_capacity(self, file, _arg, _pointers):
        return self._number(file.model.placement.capacity)

    def do_get_length(self, file, _arg, _pointers):
        return self._number(file.model.length)

    def do_set_length(self, file, arg, _pointers):
        length = int.from_bytes(arg, "little")
        file.refused += length > file.model.placement.capacity
        file.model.setLength(length)
        return arg, {}

    def do_get_direction(self, file, _arg, _pointers):
        return self._number(file.model.direction, 4)

    def do_set_direction(self, file, arg, _pointers):
        file.model.setDirection(int.from_bytes(arg, "little"))
        return arg, {}

    def do_get_flags(self, file, _arg, _pointers):
        return self._number(file.model.direction | k.kIOMemoryAutoPrepare, 4)

    def do_get_bytes_no_copy(self, file, _arg, _pointers):
        return self._number(BASE if file.model.placement.mapped else 0)

    def do_get_bytes_no_copy_at(self, file, arg, _pointers):
        layout, fields = self._struct("iobmd_window", arg)
        base = BASE if file.model.placement.mapped else 0
        address = file.model.getBytesNoCopy(base, fields["start"], fields["length"])
        return self._over(layout, arg, address=address), {}

    def do_get_physical_address(self, _file, _arg, _pointers):
        return self._number(0x10_0000)

    def do_get_physical_segment(self, file, arg, _pointers):
        layout, fields = self._struct("iobmd_segment", arg)
        left = file.model.length - fields["offset"]
        if left <= 0:
            return arg, {}
        run = min(left, 8192 - fields["offset"] % 8192)  # two pages, then a hole
        return self._over(layout, arg, address=0x10_0000 + 2 * fields["offset"], length=run), {}

    def do_read_bytes(self, file, arg, pointers):
        layout, fields = self._struct("iobmd_transfer", arg)
        (data,) = file.model.readBytes(fields["offset"], fields["length"])
        where, room = next(iter(pointers.items()))
        assert room >= len(data)
        return self._over(layout, arg, result=len(data)), {where: data.ljust(room, b"\0")}

    def do_write_bytes(self, file, arg, pointers):
        layout, fields = self._struct("iobmd_transfer", arg)
        data = next(iter(pointers.values()), None)
        moved = file.model.writeBytes(fields["offset"], data, fields["length"])
        return self._over(layout, arg, result=moved), {}

    def do_append_bytes(self, file, arg, pointers):
        layout, fields = self._struct("iobmd_transfer", arg)
        data = next(iter(pointers.values()), None) or self.memories.get(fields["bytes"], b"")
        assert len(data) == fields["length"]
        return self._over(layout, arg, result=int(file.model.appendBytes(data))), {}

    def do_prepare(self, file, arg, _pointers):
        layout, fields = self._struct("iobmd_wiring", arg)
        return self._over(layout, arg, code=int(file.model.prepare(fields["direction"]))), {}

    def do_complete(self, file, arg, _pointers):
        layout, _ = self._struct("iobmd_wiring", arg)
        return self._over(layout, arg, code=int(file.model.complete())), {}

    def do_set_purgeable(self, file, arg, _pointers):
        layout, fields = self._struct("iobmd_purge", arg)
        code, old = min(file.model.purge_answers(fields["state"]))
        file.model.purge(fields["state"], old)
        return self._over(layout, arg, code=int(code), old_state=max(old, 0)), {}

    def do_get_page_counts(self, _file, arg, _pointers):
        layout, _ = self._struct("iobmd_page_counts", arg)
        return self._over(layout, arg, resident=3, dirty=2, code=0xE00002D8), {}

    def do_perform_operation(self, file, arg, _pointers):
        layout, fields = self._struct("iobmd_operation", arg)
        code = 0xE00002E7 if fields["offset"] > file.model.length else 0
        return self._over(layout, arg, code=code), {}

    def do_create_mapping(self, file, arg, _pointers):
        layout, fields = self._struct("iobmd_create_mapping", arg)
        role = (Role.NULL, Role.KERNEL, Role.USER)[fields["task"]]
        answer = file.model.map_answer(role, fields["options"], fields["offset"], fields["length"])
        if answer is None:
            return self._over(layout, arg, fd=-1, error=22, reason=b"outside"), {}
        return self._over(layout, arg, fd=self._add(File(answer=(answer, fields)))), {}

    def do_describe_mapping(self, file, _arg, _pointers):
        answer, fields = file.map
        return self.module.layouts.struct("iobmd_mapping").pack(
            address=BASE + answer.offset, length=answer.length, offset=answer.offset, task=fields["task"],
            options=fields["options"], own=int(answer.own), writable=int(answer.writable), areas=1,
        ), {}  # fmt: skip

    def do_read_mapping_locked(self, file, arg, pointers):
        layout, fields = self._struct("iobmd_transfer", arg)
        answer, _ = file.map
        start = answer.offset + fields["offset"]
        data = bytes(answer.buffer.contents[start : start + fields["length"]])
        return self._over(layout, arg, result=len(data)), {next(iter(pointers)): data}

    def do_driverkit_set_length(self, file, arg, _pointers):
        layout, fields = self._struct("iobmd_driverkit_length", arg)
        fits = fields["length"] <= file.model.placement.capacity
        file.model.setLength(fields["length"])
        return self._over(layout, arg, code=0 if fits else 0xE00002C2), {}

    def do_driverkit_get_length(self, file, arg, _pointers):
        layout, _ = self._struct("iobmd_driverkit_length", arg)
        return self._over(layout, arg, length=file.model.length), {}

    def do_driverkit_get_address_range(self, file, arg, _pointers):
        layout, _ = self._struct("iobmd_driverkit_range", arg)
        return self._over(layout, arg, address=BASE, length=file.model.length), {}

    def do_driverkit_create_mapping(self, file, arg, _pointers):
        layout, fields = self._struct("iobmd_driverkit_mapping", arg)
        if fields["options"] & 0xF000:
            return self._over(layout, arg, fd=-1, code=0xE00002C2, error=22, reason=b"cache bits"), {}
        answer = file.model.map_answer(Role.USER, k.kIOMapAnywhere, fields["offset"], fields["length"])
        made = File(answer=(answer, {"task": 2, "options": fields["options"]}))
        return self._over(layout, arg, fd=self._add(made)), {}

    def do_describe(self, file, _arg, _pointers):
        model = file.model
        return self.module.layouts.struct("iobmd_description").pack(
            kernel_address=BASE, storage=-(-model.placement.capacity // 4096) * 4096, memory_type=1,
            storage_kind=1, chunks=2, prepared=model.prepared, refused_lengths=file.refused, alignment=64,
        ), {}  # fmt: skip


@pytest.fixture
def module(layouts, protocol):
    return Module(layouts, protocol)


@pytest.fixture
def process(module):
    return FakeProcess(module)


@pytest.fixture
def peer(module):
    return FakeProcess(module, 2)


@pytest.fixture
def iokit(process):
    with IOKit(process) as session:
        yield session
    assert process.files == {}, "the session left files open"

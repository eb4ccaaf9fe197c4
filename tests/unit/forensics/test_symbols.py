# SPDX-License-Identifier: MIT
"""Names of addresses, and vCPUs read from outside; the guest here is made of dictionaries."""

from __future__ import annotations

import gc
import struct
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from harness.errors import BadInput
from harness.forensics import Symbols, backtraces
from harness.forensics.backtraces import KernelMemory, read_registers, return_addresses
from harness.forensics.symbols import read_kallsyms
from harness.link import GuestOSError

TEXT = 0xFFFF_FFFF_8100_0000
MODULE = 0xFFFF_FFFF_C020_0000
KALLSYMS = """\
0000000000000000 A fixed_percpu_data
0000000000001000 A cpu_debug_store
{0:016x} T startup_64
{0:016x} T _text
{1:016x} t inner
{2:016x} T outer
{3:016x} T _etext
{4:016x} D jiffies_64
{5:016x} b last
{6:016x} t handler\t[iobmd]
{6:016x} t bpf_prog\t[bpf]
"""
SOURCE = """\
int there(int value) { return value * 3; }
__attribute__((section(".init.text"))) int at_start(int value) { return there(value) + 1; }
int handler(int value) { return there(value) - 1; }
static const char name[] __attribute__((used, section(".modinfo"))) = "name=iobmd";
int data = 7;
"""


def kallsyms(slide=0):
    base = TEXT + slide
    offsets = (0, 0x100, 0x180, 0x1000, 0x20000, 0x20100)
    return KALLSYMS.format(*(base + offset for offset in offsets), MODULE).encode()


@pytest.fixture(scope="module")
def ko(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ko")
    (folder / "iobmd.c").write_text(SOURCE)
    subprocess.run(
        ["gcc", "-O1", "-ffreestanding", "-c", "iobmd.c", "-o", "iobmd.ko"], cwd=folder, check=True
    )
    return folder / "iobmd.ko"


class FakeGuest:
    """As much of `harness.link.Guest` as symbols need; counts what it is asked."""

    def __init__(self, folder, ko, slide=0, nonce=b"1" * 16):
        kernel = folder / "vmlinux"
        kernel.write_bytes(b"kernel")
        (folder / "modules").mkdir(exist_ok=True)
        self.image = SimpleNamespace(
            kernel=SimpleNamespace(boot_image=kernel, modules=folder / "modules"),
            module=SimpleNamespace(ko=ko),
        )
        self.hello = SimpleNamespace(boot_nonce=nonce)
        self.vitals = SimpleNamespace(note=None)
        self.machine = SimpleNamespace(ram=None)
        self.asked = []
        self.files = {
            "/proc/kallsyms": kallsyms(slide),
            "/proc/modules": f"iobmd 81920 0 - Live {MODULE:#x} (OE)\n".encode(),
            "/sys/module/iobmd/sections/.text": f"{MODULE:#x}\n".encode(),
        }

    def read_file(self, path):
        self.asked.append(path)
        if path not in self.files:
            raise GuestOSError(2, f"open {path}")
        return self.files[path]

    def open(self, path, _flags):
        self.position = 0
        return path

    def close(self, fd):
        pass

    def syscall(self, _number, fd, _out, _room, **_more):
        self.asked.append(f"part of {fd}")
        data = self.files[fd][self.position : self.position + 100]
        self.position += len(data)
        return SimpleNamespace(value=len(data), outputs=(data,))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "cache"))


def test_names(tmp_path, ko):
    symbols = Symbols.of(FakeGuest(tmp_path, ko))
    assert symbols.name(TEXT) == "startup_64+0x0/0x100"  # the first of two names, as the kernel has it
    assert symbols.name(TEXT + 0x17F) == "inner+0x7f/0x80"
    assert symbols.name(TEXT + 0x180) == "outer+0x0/0xe80"
    assert symbols.name(0x1000) == "0x1000"  # an offset of a per-CPU variable is no address
    assert symbols.name(TEXT - 1) == hex(TEXT - 1)
    assert symbols.name(TEXT + 0x1000_0000) == hex(TEXT + 0x1000_0000)
    assert symbols.address("jiffies_64") == TEXT + 0x20000
    assert symbols.is_code(TEXT + 0x110)
    assert not symbols.is_code(TEXT + 0x20001)
    assert not symbols.is_code(0xFFFF_8880_0000_0000)
    with pytest.raises(BadInput, match="no symbol nothing"):
        symbols.address("nothing")


def test_names_in_modules(tmp_path, ko):
    symbols = Symbols.of(FakeGuest(tmp_path, ko))
    (module,) = symbols.modules
    assert module.sections == {".text": MODULE}  # what is freed after the start is not there
    there, handler = symbols.address("there", "iobmd"), symbols.address("handler", "iobmd")
    assert there == MODULE
    assert symbols.frame(handler + 1).place.startswith("handler+0x1/0x")
    assert symbols.frame(handler + 1).module == "iobmd"
    assert symbols.is_code(handler)
    after = MODULE + 0x4000  # its data
    assert symbols.name(after) == f"{after:#x} [iobmd]"
    assert not symbols.is_code(after)
    with pytest.raises(BadInput, match="handler in module other"):
        symbols.address("handler", "other")


def test_the_kernels_table_is_read_once_for_all_guests(tmp_path, ko):
    first, second = FakeGuest(tmp_path, ko), FakeGuest(tmp_path, ko, slide=0x1600_0000, nonce=b"2" * 16)
    assert Symbols.of(first).slide == 0
    symbols = Symbols.of(second)
    assert "/proc/kallsyms" in first.asked
    assert "/proc/kallsyms" not in second.asked
    assert symbols.slide == 0x1600_0000
    assert symbols.name(TEXT + 0x1600_0000 + 0x101) == "inner+0x1/0x80"
    assert symbols.address("outer") == TEXT + 0x1600_0000 + 0x180
    assert symbols.name(TEXT + 0x101) == hex(TEXT + 0x101)


def test_asked_again_only_when_something_may_have_changed(tmp_path, ko):
    guest = FakeGuest(tmp_path, ko)
    symbols = Symbols.of(guest)
    guest.asked.clear()
    assert Symbols.of(guest) is symbols
    assert guest.asked == ["/proc/modules"]
    guest.files["/proc/modules"] += f"extra 4096 0 - Live {MODULE + 0x100000:#x} (OE)\n".encode()
    guest.files["/sys/module/extra/sections/.text"] = f"{MODULE + 0x100000:#x}\n".encode()
    more = Symbols.of(guest, {"extra": ko})
    assert more.name(more.address("handler", "extra")).endswith(" [extra]")
    assert "/sys/module/iobmd/sections/.text" not in guest.asked
    unknown = Symbols.of(guest)
    assert unknown.name(MODULE + 0x100010) == f"{MODULE + 0x100010:#x} [extra]"


def test_a_dead_guest_keeps_its_symbols(tmp_path, ko):
    guest = FakeGuest(tmp_path, ko)
    assert Symbols.known(guest) is None
    symbols = Symbols.of(guest)
    guest.files.clear()
    assert Symbols.known(guest) is symbols
    guest.hello.boot_nonce = b"another boot    "
    assert Symbols.known(guest) is None


def test_symbols_do_not_keep_a_guest_alive(tmp_path, ko):
    guest = FakeGuest(tmp_path, ko)
    Symbols.of(guest)
    alive = sum(isinstance(item, FakeGuest) for item in gc.get_objects())
    del guest
    gc.collect()
    assert sum(isinstance(item, FakeGuest) for item in gc.get_objects()) == alive - 1


def test_without_a_cache_the_guest_is_asked(tmp_path, ko, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IOBMD_CACHE", str(tmp_path / "file/below"))
    guest = FakeGuest(tmp_path, ko)
    assert Symbols.of(guest).name(TEXT + 0x101) == "inner+0x1/0x80"


def test_a_damaged_cache_is_not_believed(tmp_path, ko):
    Symbols.of(FakeGuest(tmp_path, ko))
    for names in (tmp_path / "cache/symbols").glob("*/names"):
        names.write_text("one\ntwo")
    assert Symbols.of(FakeGuest(tmp_path, ko)).name(TEXT + 0x101) == "inner+0x1/0x80"


def test_lines_that_are_no_symbols():
    assert read_kallsyms(b"no symbols\n\xff\xfe\n").names == ()
    assert read_kallsyms(b"0000000000000000 T hidden\n").names == ()  # kptr_restrict


# -- vCPUs --------------------------------------------------------------------------------------------------

PRESENT, WRITABLE, PAGE = 1, 2, 4096
STACK = 0xFFFF_C900_0010_0000
IRQ_STACK = 0xFFFF_FE00_0040_0000
REGISTERS = """\

CPU#0
RAX=0000000000000402 RBX={rbx:016x} RCX=0000000000000040 RDX=ffff888003e6c180
RSI=0000000000000292 RDI=ffffffff82b25e18 RBP=ffffc90000083ef0 RSP={rsp:016x}
R8 =ffffffff82b25e20 R9 =0000000000000000 R10=0000000000000000 R11=0000000000000001
R12=ffff888003e6c180 R13=ffff888003e5e100 R14=0000000000000000 R15=ffffffff81129820
RIP={rip:016x} RFL={rfl:08x} [-------] CPL={cpl} II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 00000000 00000000
FS =0000 0000000000000000 00000000 00000000
GS =0000 ffff88801f400000 00000000 00000000
CR0=80050033 CR2=00007f2a4c53cfe0 CR3=0000000000001000 CR4=00750eb0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000d01
CPU#1
RAX=0000000000000000 RBX=0000000000000000 RCX=0000000000000000 RDX=0000000000000000
RSI=0000000000000000 RDI=0000000000000000 RBP=0000000000000000 RSP=00007ffc12345678
RIP=0000000000401000 RFL=00000202 [-------] CPL=3 II=0 A20=1 SMM=0 HLT=0
CR0=80050033 CR2=0000000000000000 CR3=0000000000001000 CR4=00750eb0
EFER=0000000000000d01
"""


class FakeRam:
    """A few pages of RAM with page tables in them."""

    def __init__(self, pages=64):
        self.data = np.zeros(pages * PAGE, dtype=np.uint8)
        self.ranges = ((0, pages * PAGE),)
        self._free = 0x2000

    def array(self, gpa, n):
        return self.data[gpa : gpa + n]

    def read(self, gpa, n):
        if gpa + n > len(self.data):
            raise BadInput("a hole")
        return self.data[gpa : gpa + n].tobytes()

    def page(self):
        self._free += PAGE
        return self._free - PAGE

    def word(self, at, value=None):
        if value is not None:
            self.data[at : at + 8] = np.frombuffer(struct.pack("<Q", value), dtype=np.uint8)
        return int.from_bytes(self.data[at : at + 8].tobytes(), "little")

    def map(self, va, pa=None):
        """Map a page at *va*; where it is."""
        table = 0x1000
        for level in (4, 3, 2):
            slot = table + (va >> (12 + 9 * (level - 1)) & 511) * 8
            if not self.word(slot):
                self.word(slot, self.page() | PRESENT | WRITABLE)
            table = self.word(slot) & ~0xFFF
        pa = self.page() if pa is None else pa
        self.word(table + (va >> 12 & 511) * 8, pa | PRESENT | WRITABLE)
        return pa


class FakeMachine:
    def __init__(self, ram, told):
        self.ram, self.halted = ram, 0
        self.qmp = SimpleNamespace(hmp=lambda line: self.tell(line, told))

    @contextmanager
    def stopped(self):
        self.halted += 1
        yield
        self.halted -= 1

    def tell(self, line, told):
        assert self.halted, "registers of a running guest belong to no one moment"
        assert line == "info registers -a"
        return told


@pytest.fixture
def scene(tmp_path, ko):
    """A task's stack that an interrupt's stack leads back to, and code with calls in it."""
    ram = FakeRam()
    code = ram.map(TEXT)
    ram.data[code + 0x110 - 5] = 0xE8  # call rel32 before inner+0x10
    ram.data[code + 0x190 - 2 : code + 0x190] = (0xFF, 0xD0)  # call *%rax before outer+0x10
    module = ram.map(MODULE)
    ram.data[module + 4 - 3 : module + 4] = (0xFF, 0x50, 0x08)  # call *8(%rax)
    task = ram.map(STACK + 0x3000)
    for at, word in {
        0xF00: TEXT + 0x110,
        0xF10: TEXT + 0x120,  # into code, but behind no call
        0xF20: TEXT + 0x190,
        0xF28: TEXT + 0x20000,  # data
        0xF30: MODULE + 4,
        0xF40: 42,
    }.items():
        ram.word(task + at, word)
    irq = ram.map(IRQ_STACK + 0x3000)
    ram.word(irq + 0xFE0, TEXT + 0x110)
    ram.word(irq + 0xFF8, STACK + 0x3F08)
    return ram, Symbols.of(FakeGuest(tmp_path, ko))


def told(rsp, rip=TEXT + 0x111, rbx=0, cpl=0, rfl=0x202):
    return REGISTERS.format(rsp=rsp, rip=rip, rbx=rbx, cpl=cpl, rfl=rfl)


def test_registers_of_every_vcpu():
    first, second = read_registers(told(STACK, rbx=7))
    assert first[0] == 0
    assert first[1]["rbx"] == 7
    assert first[1]["r8"] == 0xFFFFFFFF82B25E20
    assert first[1]["gs"] == 0xFFFF88801F400000
    assert first[1]["cr3"] == 0x1000
    assert second[0] == 1
    assert second[1]["cpl"] == 3
    assert list(read_registers("")) == list(read_registers("CPU#0\nsilence\n")) == []


def test_a_vcpu_with_names(scene):
    ram, symbols = scene
    machine = FakeMachine(ram, told(STACK + 0x3EF8, rbx=TEXT + 0x20000, rfl=0x2))
    first, second = backtraces(machine, symbols)
    assert machine.halted == 0
    assert (first.index, first.user, first.halted, first.interrupts) == (0, False, True, False)
    assert first.rip.place == "inner+0x11/0x80"
    assert [frame.symbol for frame in first.frames] == ["inner", "outer", "there"]
    assert [frame.module for frame in first.frames] == ["", "", "iobmd"]
    assert not any(frame.sure or frame.exact for frame in first.frames)
    assert first.names["rbx"] == "jiffies_64+0x0/0x100"
    assert (second.index, second.user, second.interrupts) == (1, True, True)
    assert second.frames == ()
    text = first.render()
    assert text.splitlines()[0] == "vCPU 0: in the kernel, halted, interrupts off"
    assert "  at  inner+0x11/0x80" in text
    assert "      ? outer+0x10/0xe80" in text
    assert "rbx is jiffies_64" in text
    assert "in user mode" in second.render()


def test_an_interrupts_stack_leads_to_the_one_it_broke_into(scene):
    ram, symbols = scene
    memory = KernelMemory(ram, {"cr3": 0x1000, "cr4": 0, "efer": 0x800})
    assert return_addresses(memory, IRQ_STACK + 0x3F00, symbols) == [TEXT + 0x110, TEXT + 0x190, MODULE + 4]


@pytest.mark.parametrize("rsp", [0, 8, STACK, STACK + 0x3EF9, 0x7FFC_1234_5678, (1 << 64) - 8])
def test_stacks_that_are_none(scene, rsp):
    ram, symbols = scene
    memory = KernelMemory(ram, {"cr3": 0x1000, "cr4": 0, "efer": 0x800})
    assert return_addresses(memory, rsp, symbols) == []


def test_page_tables_that_lead_nowhere(scene):
    ram, symbols = scene
    machine = FakeMachine(ram, told(STACK + 0x3EF8).replace("CR3=0000000000001000", "CR3=0000000000fff000"))
    assert [vcpu.frames for vcpu in backtraces(machine, symbols)] == [(), ()]
    ram.map(STACK + 0x3000, pa=0x100 * PAGE)  # a page of no RAM
    assert backtraces(FakeMachine(ram, told(STACK + 0x3EF8)), symbols)[0].frames == ()


def test_without_symbols_numbers_stay(scene):
    ram, _ = scene
    first, _ = backtraces(FakeMachine(ram, told(STACK + 0x3EF8)))
    assert first.rip.place == f"{TEXT + 0x111:#x}"
    assert (first.frames, first.names) == ((), {})

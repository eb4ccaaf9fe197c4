# SPDX-License-Identifier: MIT
"""Where the vCPUs of a guest are, read from outside: registers with names, and their kernel stacks.

Nothing of it needs the guest's help; it works on a kernel that is long dead.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from harness.errors import BadInput
from harness.forensics.parse import Sources
from harness.forensics.splat import Frame
from harness.forensics.symbols import Symbols
from harness.oracle.paging import PAGE, Tables, kernel_root, walk
from harness.oracle.recall import Ram
from harness.vm import Machine

_KERNEL_HALF: Final = 0xFFFF_8000_0000_0000
_CPU: Final = re.compile(r"^CPU#(\d+)\s*$", re.MULTILINE)
#: QEMU's target/i386/cpu-dump.c:x86_cpu_dump_state.
_REGISTER: Final = re.compile(
    r"\b(R(?:[A-D]X|[SD]I|[BS]P|\d{1,2}|IP|FL)|CR[0-4]|EFER|CPL|HLT)\s*=\s*([0-9a-f]+)"
)
_SEGMENT_BASE: Final = re.compile(r"^(FS|GS) =[0-9a-f]{4} ([0-9a-f]{16}) ", re.MULTILINE)
_INTERRUPTS: Final = 1 << 9
_LA57: Final = 1 << 12
_NXE: Final = 1 << 11
#: THREAD_SIZE and IRQ_STACK_SIZE of x86-64; stacks are aligned to it (arch/x86/include/asm/page_64_types.h).
_STACK: Final = 16 * 1024
#: An interrupt's stack begins with where the interrupted one had come to (asm/irq_stack.h).
_STACKS_MAX: Final = 4
_FRAMES_MAX: Final = 64
_SHOWN_FRAMES: Final = 24
_GENERAL: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))


@dataclass(frozen=True)
class Vcpu:
    """One vCPU at one moment.

    Attributes:
        index: QEMU's number of it.
        user: it runs a program, not the kernel.
        halted: it sleeps until an interrupt.
        interrupts: it takes interrupts.
        rip: the instruction it is at.
        frames: return addresses on its kernel stack, innermost first.  Found by looking at every word, so
            some are left from earlier calls: all are marked as not sure.
        registers: by lower-case name, with ``rfl``, ``cr0`` to ``cr4``, ``efer``, ``fs`` and ``gs``.
        names: for those registers that point to something of the kernel that has a name.
    """

    index: int
    user: bool
    halted: bool
    interrupts: bool
    rip: Frame
    frames: tuple[Frame, ...]
    registers: Mapping[str, int]
    names: Mapping[str, str]

    def render(self) -> str:
        """Lines for a report, without a line break at the end."""
        state = ["in user mode" if self.user else "in the kernel"]
        state += ["halted"] if self.halted else []
        state += [f"interrupts {'on' if self.interrupts else 'off'}"]
        lines = [f"vCPU {self.index}: {', '.join(state)}", f"  at  {self.rip}"]
        lines += [f"      {frame}" for frame in self.frames[:_SHOWN_FRAMES]]
        if len(self.frames) > _SHOWN_FRAMES:
            lines.append(f"      ... and {len(self.frames) - _SHOWN_FRAMES} more")
        for start in range(0, len(_GENERAL), 4):
            names = [name for name in _GENERAL[start : start + 4] if name in self.registers]
            lines.append("  " + "  ".join(f"{name:>3} {self.registers[name]:016x}" for name in names))
        lines += [f"  {name:>3} is {text}" for name, text in self.names.items()]
        return "\n".join(lines)


def backtraces(
    machine: Machine, symbols: Symbols | None = None, *, lines: Sources | None = None
) -> tuple[Vcpu, ...]:
    """What every vCPU of a machine is at; the guest stands still meanwhile.

    Args:
        machine: QEMU must answer, its guest need not.
        symbols: names for addresses; None: they stay numbers, and stacks are not searched.
        lines: gives frames of modules their source lines.

    Raises:
        MachineFailure: QEMU does not answer, or has ended.
    """
    with machine.stopped():
        found = []
        for index, registers in read_registers(machine.qmp.hmp("info registers -a")):
            memory = None if symbols is None else KernelMemory(machine.ram, registers)
            found.append(_vcpu(index, registers, symbols, memory, lines))
    return tuple(found)


def read_registers(told: str) -> Iterator[tuple[int, dict[str, int]]]:
    """Number and registers of every vCPU in what ``info registers -a`` printed."""
    parts = _CPU.split(told)
    for index, text in zip(parts[1::2], parts[2::2], strict=True):
        registers = {name.lower(): int(value, 16) for name, value in _REGISTER.findall(text)}
        registers |= {name.lower(): int(value, 16) for name, value in _SEGMENT_BASE.findall(text)}
        if {"rip", "rsp", "cr3"} <= registers.keys():
            yield int(index), registers


class KernelMemory:
    """A vCPU's view of the kernel half of memory, through its page tables."""

    def __init__(self, ram: Ram, registers: Mapping[str, int]) -> None:
        self._ram = ram
        self._tables = tables = Tables(ram)
        self._pages: dict[int, bytes | None] = {}
        self._root = kernel_root(tables, registers["cr3"])
        self._levels = 5 if registers.get("cr4", 0) & _LA57 else 4
        self._no_execute = bool(registers.get("efer", 0) & _NXE)

    def page(self, address: int) -> bytes | None:
        """The page an address lies in, or None where nothing or no RAM is mapped."""
        base = address & ~(PAGE - 1)
        if base not in self._pages:
            self._pages[base] = self._read_page(base)
        return self._pages[base]

    def read(self, address: int, size: int) -> bytes:
        """Bytes from an address, fewer where the mapping ends."""
        parts = b""
        while len(parts) < size:
            page = self.page(address + len(parts))
            if page is None:
                break
            at = (address + len(parts)) & (PAGE - 1)
            parts += page[at : at + size - len(parts)]
        return parts

    def _read_page(self, base: int) -> bytes | None:
        found = walk(self._tables, self._root, self._levels, base, no_execute=self._no_execute)
        if not found.mapped:
            return None
        try:
            return self._ram.read(found.pa + base - found.base, PAGE)
        except BadInput:
            return None


def _vcpu(
    index: int,
    registers: dict[str, int],
    symbols: Symbols | None,
    memory: KernelMemory | None,
    lines: Sources | None,
) -> Vcpu:
    user = registers.get("cpl", 0) == 3
    rip = registers["rip"]
    frame = Frame(f"{rip:#x}", exact=True)
    frames: list[Frame] = []
    names: dict[str, str] = {}
    if symbols is not None and not user:
        frame = symbols.frame(rip)
        if memory is not None:
            frames = [
                symbols.frame(address, sure=False, exact=False)
                for address in return_addresses(memory, registers["rsp"], symbols)
            ]
        for name in _GENERAL:
            place = symbols.frame(registers.get(name, 0))
            if place.size:
                names[name] = place.place
    if lines is not None:
        frame = replace(frame, source=lines.source(frame, exact=True))
        frames = [replace(item, source=lines.source(item, exact=False)) for item in frames]
    return Vcpu(
        index=index,
        user=user,
        halted=bool(registers.get("hlt")),
        interrupts=bool(registers.get("rfl", 0) & _INTERRUPTS),
        rip=frame,
        frames=tuple(frames),
        registers=registers,
        names=names,
    )


def return_addresses(memory: KernelMemory, rsp: int, symbols: Symbols) -> list[int]:
    """Words on a kernel stack that point behind a call instruction, innermost first."""
    found: list[int] = []
    for _ in range(_STACKS_MAX):
        if rsp < _KERNEL_HALF or rsp & 7:
            break
        words = _stack_words(memory, rsp)
        found += [word for word in words if symbols.is_code(word - 1) and _after_call(memory, word)]
        before = words[-1] if words else 0
        same = before & ~(_STACK - 1) == rsp & ~(_STACK - 1)
        if len(found) >= _FRAMES_MAX or same or before < _KERNEL_HALF or memory.page(before) is None:
            break
        rsp = before
    return found[:_FRAMES_MAX]


def _stack_words(memory: KernelMemory, rsp: int) -> list[int]:
    data = memory.read(rsp, (rsp | (_STACK - 1)) + 1 - rsp)
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data) - 7, 8)]


def _after_call(memory: KernelMemory, address: int) -> bool:
    """Whether the bytes before an address may be a call: E8 rel32, or FF /2 of 2 to 7 bytes (SDM Vol. 2A)."""
    within = min(7, address & (PAGE - 1))
    code = memory.read(address - 7, 7)
    if len(code) < 7:  # nothing is mapped before this page
        code = bytes(7 - within) + memory.read(address - within, within)
    if len(code) < 7:
        return False
    return code[2] == 0xE8 or any(code[7 - n] == 0xFF and code[8 - n] >> 3 & 7 == 2 for n in (2, 3, 4, 6, 7))

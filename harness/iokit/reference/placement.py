# SPDX-License-Identifier: MIT
"""Where a factory has to put a buffer, or why it has to refuse: the written contract in Python.

Nothing in here looks at the module or at a guest.  Each rule names its clause.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from harness.iokit import constants as k

PAGE = 4096
_WORD = 1 << 64
_LOW_MEMORY = (1 << 32) - 1
# A pageable buffer in the kernel's map of x86 (facts: size limits).
_KERNEL_PAGEABLE_MAX = 512 << 20

_MODES = ("WB", "UC_MINUS", "WT", "WB", "WC", "WB", "UC_MINUS", "WC")
"""Memory type by cache mode, three bits (clauses F01 to F06, F15)."""


class Factory(Enum):
    """Which factory is called; the value is the method's name in `harness.iokit.IOKit`."""

    WITH_OPTIONS = "withOptions"
    IN_TASK = "inTaskWithOptions"
    PHYSICAL_MASK = "inTaskWithPhysicalMask"
    INIT = "initWithPhysicalMask"
    CAPACITY = "withCapacity"
    BYTES = "withBytes"
    COPY = "withCopy"
    GUARD_PAGES = "inTaskWithGuardPages"
    CREATE = "Create"


class Role(Enum):
    """The ``task_t``: the kernel's, NULL, or the calling process."""

    KERNEL = "KERNEL"
    NULL = "NULL"
    USER = "CURRENT"


class Verdict(Enum):
    """What a factory has to answer."""

    MADE = "a descriptor"
    NULL = "NULL"
    EITHER = "a descriptor, or NULL where memory of that kind has run out"


@dataclass(frozen=True)
class Call:
    """A factory call.

    Attributes:
        factory: which one.
        options: IOOptionBits; the direction for withCapacity and withBytes.
        capacity: bytes.
        alignment: bytes; counts for the factories that have the argument.
        mask: physical mask; counts for the factories that have the argument.
        task: counts for the factories that have the argument.
        contiguous: withCapacity's and withBytes's last argument.
    """

    factory: Factory
    options: int
    capacity: int
    alignment: int = 1
    mask: int = 0
    task: Role = Role.KERNEL
    contiguous: bool = False


@dataclass(frozen=True)
class Limits:
    """The machine.

    Attributes:
        memory: bytes of RAM.
        top: one past the highest physical address of RAM.
        run: bytes of the longest physically contiguous block the kernel gives.
        plenty: bytes that can be had as long as nobody hoards memory.
        types: memory types the CPU's PAT can express, by name.
    """

    memory: int
    top: int
    run: int = 4 << 20
    plenty: int = 8 << 20
    types: frozenset[str] = frozenset({"WB", "WC", "UC_MINUS", "WT"})


@dataclass(frozen=True)
class Placement:
    """What the contract says about a call.

    Attributes:
        verdict: what the factory answers.
        clause: the rule that decided.
        capacity: what getCapacity returns.
        address_bits: bits that are clear in the buffer's address (clauses C01 to C10).
        page_bits: bits that are clear in the physical address of its first page (clauses C08, C09, D10).
        mask: bits a physical address may have, None for any (clauses D09 to D18).
        contiguous: one physical run (clauses C07, D01).
        pageable: not wired.
        purgeable: setPurgeable works.
        mapped: has an address in its task.
        role: the task.
        direction: three bits (clause H04).
        memory_type: None where the contract gives none.
    """

    verdict: Verdict
    clause: str
    capacity: int = 0
    address_bits: int = 0
    page_bits: int = 0
    mask: int | None = None
    contiguous: bool = False
    pageable: bool = False
    purgeable: bool = False
    mapped: bool = True
    role: Role = Role.KERNEL
    direction: int = 0
    memory_type: str | None = "WB"


def place(call: Call, limits: Limits) -> Placement:
    """Judge a factory call before it is made.

    Args:
        call: the call.
        limits: the machine it is made on.

    Returns:
        What has to come out of it.
    """
    want = _wants(call)
    refusal = _refusal(call, want, limits)
    if refusal:
        return Placement(Verdict.NULL, refusal)
    if want.pageable:
        return _pageable(call, want, limits)
    return _wired(call, want, limits)


@dataclass(frozen=True)
class _Wants:
    """A call after the steps that only rewrite it."""

    options: int
    alignment: int
    size: int
    mask: int | None
    contiguous: bool
    pageable: bool
    role: Role


def _wants(call: Call) -> _Wants:
    """Reduce the factories to initWithPhysicalMask, and take its first steps."""
    options, alignment, role, mask = call.options, call.alignment, call.task, call.mask
    match call.factory:
        case Factory.WITH_OPTIONS:
            role, mask = Role.KERNEL, 0  # A02
        case Factory.IN_TASK:
            mask = 0
        case Factory.PHYSICAL_MASK | Factory.COPY:
            alignment = 1
            mask = mask if call.factory is Factory.PHYSICAL_MASK else 0
        case Factory.CAPACITY | Factory.BYTES:
            role, mask = Role.KERNEL, 0
            options |= k.kIOMemoryPhysicallyContiguous if call.contiguous else 0
            alignment = call.capacity if call.contiguous else 1  # D08
            if call.factory is Factory.BYTES:
                alignment = power_of_two(min(call.capacity, PAGE))  # G06
        case Factory.GUARD_PAGES:
            alignment, mask = PAGE, 0
        case Factory.CREATE:
            role, mask = Role.KERNEL, 0
            options |= k.kIOMemoryKernelUserShared | k.kIOMemoryThreadSafe  # K05
        case Factory.INIT:
            pass
    masked = mask if mask and alignment <= 1 else None  # D11, D17
    if masked:
        alignment = max(masked & -masked, PAGE)  # D10, D20
    if options & (k.kIOMemorySharingTypeMask | k.kIOMapCacheMask | k.kIOMemoryClearEncrypt):
        alignment = max(alignment, PAGE)  # C12, C13
    size = _pages(call.capacity) if alignment >= PAGE else call.capacity  # C06
    asked = options & (k.kIOMemoryPhysicallyContiguous | k.kIOMemoryHostPhysicallyContiguous)
    return _Wants(
        options, alignment, size, masked, bool(asked) or alignment > PAGE,  # C07
        bool(options & k.kIOMemoryPageable), role,
    )  # fmt: skip


def _refusal(call: Call, want: _Wants, limits: Limits) -> str:
    """The clause that makes this call fail whatever the machine has, or ``""``."""
    unmapped_wired = want.role is Role.NULL and call.factory in (Factory.PHYSICAL_MASK, Factory.INIT)
    in_a_process = want.role is not Role.KERNEL and not want.pageable
    guarded = call.factory is Factory.GUARD_PAGES
    rules = (
        ("A05", call.capacity == 0),
        ("K02", call.factory is Factory.CREATE and bool(call.options & ~0x3)),
        ("A07", want.size >= _WORD),
        ("A08", want.size + want.alignment >= _WORD and (want.size + want.alignment) % _WORD < call.capacity),
        ("G09", call.factory is Factory.COPY and (not want.pageable or want.role is Role.NULL)),
        ("A09", in_a_process and not unmapped_wired),  # A10 is the exception
        ("2.6", guarded and (want.pageable or want.contiguous)),
        ("E18", want.pageable and want.role is not Role.NULL and bool(want.options & k.kIOMapPrefault)),
        ("2.3", want.pageable and want.role is Role.KERNEL and want.size > _KERNEL_PAGEABLE_MAX),
        ("A06", call.capacity >= _WORD // 2),
        ("D01", not want.pageable and want.contiguous and want.size > limits.memory),
        ("C11", not want.pageable and want.alignment > limits.memory),
        ("A17", not want.pageable and want.size > limits.memory),
        ("D09", not want.pageable and want.mask is not None and want.mask < PAGE and want.mask < want.size),
    )
    return next((clause for clause, broken in rules if broken), "")


def _pageable(call: Call, want: _Wants, limits: Limits) -> Placement:
    mode = want.options >> k.kIOMapCacheShift & 0xF
    known = mode < len(_MODES)
    memory_type = _MODES[mode] if known else None  # the mapping's fourth bit: contract 1.8
    impossible = known and memory_type not in limits.types
    return Placement(
        Verdict.MADE if want.size <= limits.plenty and not impossible else Verdict.EITHER,
        "E02",
        capacity=call.capacity,
        address_bits=0 if want.role is Role.NULL else PAGE - 1,  # C14
        pageable=True,
        purgeable=bool(want.options & k.kIOMemoryPurgeable),  # E05
        mapped=want.role is not Role.NULL,  # A11
        role=want.role,
        direction=want.options & k.kIOMemoryDirectionMask,
        memory_type=memory_type,
    )


def _wired(call: Call, want: _Wants, limits: Limits) -> Placement:
    memory_type = _MODES[want.options >> k.kIOMapCacheShift & 7]  # F15
    if memory_type not in limits.types:
        return Placement(Verdict.NULL, "F04")
    scarce = (
        (want.mask is not None and _constrains(want.mask, limits))
        or (want.contiguous and want.size > limits.run // 16)
        or want.alignment > limits.run // 16
        or want.size > limits.plenty
    )  # fmt: skip
    raw = want.alignment - 1 if want.alignment > 1 else 0
    bits = raw if want.contiguous else power_of_two(want.alignment) - 1  # C10, C04, C05
    low = want.contiguous and not want.mask and 2040 < want.size <= PAGE and want.alignment <= PAGE
    return Placement(
        Verdict.EITHER if scarce else Verdict.MADE,
        "A01",
        capacity=want.size if call.factory is Factory.GUARD_PAGES else call.capacity,
        address_bits=bits if want.role is not Role.NULL else 0,
        page_bits=(raw >> 12) << 12 if want.alignment > PAGE else 0,
        # D09, D12, D14: the documented side; D21: one page, contiguous, no mask
        mask=(want.mask | PAGE - 1) if want.mask else _LOW_MEMORY if low else None,
        contiguous=want.contiguous,
        mapped=want.role is not Role.NULL,  # A10
        role=want.role,
        direction=want.options & k.kIOMemoryDirectionMask,
        memory_type=memory_type,
    )


def _constrains(mask: int, limits: Limits) -> bool:
    """Whether some page of RAM has a bit that is not in the mask."""
    reach = (1 << (limits.top - 1).bit_length()) - 1
    return bool(reach & ~(mask | PAGE - 1))


def power_of_two(number: int) -> int:
    """Round up to a power of two; 1 for 0 and 1."""
    return 1 << max(number - 1, 0).bit_length()


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE

# SPDX-License-Identifier: MIT
"""The placement rules, told a second time with Python's unbounded integers.

Follows the contract's description of initWithPhysicalMask (clauses A05-A12, A16, A17, C01-C15,
D04-D21 with and without a mapper, E18, F01-F06, F15, G09) and knows nothing of the C code. Every 64-bit wrap
is written out where it is meant.
"""

import errno
from dataclasses import dataclass

PAGE = 4096
MIB = 1 << 20
GIB = 1 << 30
TOP = 1 << 64
ANY = TOP - 1

PHYSICALLY_CONTIGUOUS = 0x10
PAGEABLE = 0x20
PURGEABLE = 0x40
HOST_CONTIGUOUS = 0x80
MAPPER_NONE = 0x800
SHARED = 0x10000
THREAD_SAFE = 0x100000
CLEAR_ENCRYPT = 0x200000
PREFAULT = 0x10000000

NULL_TASK, KERNEL_TASK, CURRENT_TASK = range(3)
WITH_OPTIONS, IN_TASK, WITH_CAPACITY, WITH_BYTES, TAGGED, WITH_MASK, INIT_MASK, COPY, GUARD, CREATE = range(
    10
)
WB, WC, UC_MINUS, WT = range(4)
WIRED, ON_DEMAND = range(2)
PLAIN, GUARDED, UNMAPPED = range(3)

TYPE_OF_MODE = {1: UC_MINUS, 2: WT, 4: WC, 6: UC_MINUS, 7: WC}


@dataclass(frozen=True)
class Limits:
    memory: int = 8 * GIB
    top: int = 10 * GIB
    run: int = 4 * MIB
    wired: int = 2 * GIB
    pageable: int = (1 << 63) - PAGE
    mapper: int = 0


@dataclass(frozen=True)
class Request:
    capacity: int
    alignment: int = 1
    mask: int = 0
    factory: int = WITH_OPTIONS
    options: int = 3
    task: int = KERNEL_TASK


@dataclass(frozen=True)
class Plan:
    capacity: int
    storage: int
    alignment: int = 1
    mask: int = ANY
    kind: int = WIRED
    mapping: int = PLAIN
    contiguous: bool = False
    memory_type: int = WB
    io_bits: int = 0
    packed: bool = False


@dataclass(frozen=True)
class Refused:
    code: int


def up_to(unit, n):
    return -(-n // unit) * unit


def power_at_least(n):
    return 1 << max(n - 1, 0).bit_length()


def allowed_bits(mask, top):
    """The set of address bits pages may have, among those any byte of RAM has; None where all of them."""
    lowest = next(bit for bit in range(64) if mask >> bit & 1)
    ram = range((top - 1).bit_length())
    allowed = {bit for bit in ram if bit < lowest or bit < 12 or mask >> bit & 1}
    return None if len(allowed) == len(ram) else allowed


def rules(ask, limits):  # noqa: PLR0911, PLR0912 - one return per rule
    """What `iobmd_place` has to answer."""
    if ask.capacity == 0:
        return Refused(errno.EINVAL)
    mapped = bool(limits.mapper) and not ask.options & MAPPER_NONE
    io_bits = 64 if mapped else 0
    align, bits, highest = ask.alignment, None, None
    if ask.mask and ask.alignment <= 1:
        lowest = ask.mask & -ask.mask
        align, highest = max(lowest, PAGE), ask.mask | lowest - 1
        if mapped:
            io_bits = max(highest.bit_length(), 12)
        else:
            bits = allowed_bits(ask.mask, limits.top)
    if ask.options & (0xF0000 | 0xF00 | CLEAR_ENCRYPT):
        align = max(align, PAGE)
    size = up_to(PAGE, ask.capacity) if align >= PAGE else ask.capacity
    if size >= TOP or (size + align) % TOP < ask.capacity:
        return Refused(errno.EOVERFLOW)
    for_devices = ask.options & PHYSICALLY_CONTIGUOUS and not mapped
    contiguous = bool(for_devices or ask.options & HOST_CONTIGUOUS) or align > PAGE
    pageable = bool(ask.options & PAGEABLE)
    guarded = ask.factory == GUARD
    unmapped = ask.factory in (WITH_MASK, INIT_MASK) and ask.task == NULL_TASK
    if ask.factory == COPY and (not pageable or ask.task == NULL_TASK):
        return Refused(errno.EINVAL)
    if ask.task != KERNEL_TASK and not pageable and not unmapped:
        return Refused(errno.EINVAL)
    if guarded and (pageable or contiguous):
        return Refused(errno.EINVAL)

    memory_type = TYPE_OF_MODE.get((ask.options >> 8) & 7, WB)
    mapping = GUARDED if guarded else UNMAPPED if ask.task == NULL_TASK else PLAIN
    pages = up_to(PAGE, size)
    if pageable:
        if ask.options & PREFAULT and ask.task != NULL_TASK:
            return Refused(errno.EINVAL)
        if ask.capacity > min(limits.pageable, 512 * MIB if ask.task == KERNEL_TASK else TOP):
            return Refused(errno.ENOMEM)
        return Plan(ask.capacity, pages, PAGE, ANY, ON_DEMAND, mapping, False, memory_type, io_bits)

    capacity = size if guarded else ask.capacity
    power = power_at_least(align)
    if contiguous and highest is None and align <= PAGE and size <= PAGE < 2 * size + 16:
        bits = set(range(32))
    mask = ANY if bits is None else sum(1 << bit for bit in bits)
    side_effect = bits is not None and highest is not None and 4 * GIB <= highest < limits.top - 1
    if contiguous or side_effect:
        gap = 64 if bits is None else min(set(range(64)) - bits)
        if max(pages, power) > limits.run or size > 1 << gap:
            return Refused(errno.ENOMEM)
        return Plan(capacity, max(pages, power), power, mask, WIRED, mapping, True, memory_type, io_bits)
    if mapped and mapping == PLAIN and align < PAGE and size + align <= PAGE - 64:
        at_least_a_slot = max(power, 64)
        return Plan(
            capacity, up_to(64, size), at_least_a_slot, ANY, WIRED, PLAIN, False, memory_type, 64, True
        )
    room = TOP if bits is None else PAGE << sum(bit >= 12 for bit in bits)
    if size > min(limits.wired, limits.memory) or pages > room:
        return Refused(errno.ENOMEM)
    return Plan(capacity, pages, power, mask, WIRED, mapping, False, memory_type, io_bits)

# SPDX-License-Identifier: MIT
"""Memory types on x86: IA32_PAT, the MTRRs, and what the two make together.

Everything here is arithmetic on register values; nothing knows where they came from.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import combinations
from types import MappingProxyType

from harness.oracle.errors import OracleError, ReservedType

PAT_RESET = 0x0007040600070406
"""IA32_PAT after reset: WB, WT, UC-, UC, twice (Intel SDM Vol. 3A, "Programming the PAT")."""

_PHYSICAL_BITS = 52  # architectural limit of a physical address
_PHYSICAL_MASK = (1 << _PHYSICAL_BITS) - 1
_PAGE_MASK = 0xFFF
_MTRR_VALID = 1 << 11
_MTRR_ENABLED = 1 << 11
_MTRR_FIXED_ENABLED = 1 << 10
_MAX_MASK_HOLES = 8


class MemoryType(Enum):
    """A memory type by the name the Intel SDM gives it."""

    UC = "UC"
    WC = "WC"
    WT = "WT"
    WP = "WP"
    WB = "WB"
    UC_MINUS = "UC-"
    """Uncached unless an MTRR says WC; never the result of the combination."""


_UC, _WC, _WT = MemoryType.UC, MemoryType.WC, MemoryType.WT
_WP, _WB, _UCM = MemoryType.WP, MemoryType.WB, MemoryType.UC_MINUS

PAT_ENCODINGS: Mapping[int, MemoryType] = MappingProxyType({0: _UC, 1: _WC, 4: _WT, 5: _WP, 6: _WB, 7: _UCM})
"""Memory types in IA32_PAT; 2, 3 and everything above 7 are reserved (SDM Vol. 3A, "IA32_PAT MSR")."""

MTRR_ENCODINGS: Mapping[int, MemoryType] = MappingProxyType({0: _UC, 1: _WC, 4: _WT, 5: _WP, 6: _WB})
"""Memory types in MTRRs: as in the PAT, without UC- (SDM Vol. 3A, "Memory Types That Can Be Encoded in
MTRRs")."""


def _row(mtrr: MemoryType, **by_pat: MemoryType) -> dict[tuple[MemoryType, MemoryType], MemoryType]:
    return {(mtrr, MemoryType[pat]): effective for pat, effective in by_pat.items()}


EFFECTIVE: Mapping[tuple[MemoryType, MemoryType], MemoryType] = MappingProxyType(
    _row(_UC, UC=_UC, UC_MINUS=_UC, WC=_WC, WT=_UC, WB=_UC, WP=_UC)
    | _row(_WC, UC=_UC, UC_MINUS=_WC, WC=_WC, WT=_UC, WB=_WC, WP=_UC)
    | _row(_WT, UC=_UC, UC_MINUS=_UC, WC=_WC, WT=_WT, WB=_WT, WP=_WP)
    | _row(_WB, UC=_UC, UC_MINUS=_UC, WC=_WC, WT=_WT, WB=_WB, WP=_WP)
    | _row(_WP, UC=_UC, UC_MINUS=_WC, WC=_WC, WT=_WT, WB=_WP, WP=_WP)
)
"""(MTRR type, PAT type) -> effective type.

Intel SDM Vol. 3A, table 12-7 "Effective Page-Level Memory Types" (11-7 in older editions). AMD agrees in
the column that matters for RAM (MTRR type WB). TCG models no caches: this says what a processor would do,
not what QEMU does.
"""


def decode_pat(value: int) -> tuple[MemoryType, ...]:
    """Return the memory types of the eight slots of IA32_PAT.

    Args:
        value: the 64-bit register; slot *n* is byte *n*.

    Raises:
        ReservedType: a slot holds an encoding that ``wrmsr`` refuses on real processors.
    """
    return tuple(
        _decode(PAT_ENCODINGS, value >> 8 * slot & 0xFF, f"slot {slot} of IA32_PAT {value:#018x}")
        for slot in range(8)
    )


def _decode(encodings: Mapping[int, MemoryType], code: int, where: str) -> MemoryType:
    try:
        return encodings[code]
    except KeyError:
        raise ReservedType(
            f"reserved memory type encoding {code:#x} in {where}",
            hint="an emulated processor stores what a real one refuses with #GP: whoever wrote it is wrong",
        ) from None


@dataclass(frozen=True)
class _VariableRange:
    """One enabled variable-range MTRR: `base` and `mask` without their low control bits."""

    base: int
    mask: int
    type: MemoryType

    def covers(self, pa: int) -> bool:
        return pa & self.mask == self.base & self.mask

    def edges(self) -> Iterable[int]:
        """Return every physical address at which matching starts or stops."""
        if self.mask == 0:
            return (0,)
        unit = self.mask & -self.mask
        holes = [1 << bit for bit in range(unit.bit_length(), _PHYSICAL_BITS) if not self.mask >> bit & 1]
        if len(holes) > _MAX_MASK_HOLES:
            raise OracleError(
                f"variable MTRR mask {self.mask:#x} has {len(holes)} holes: no firmware or kernel writes that"
            )
        starts = [
            (self.base & self.mask) + sum(chosen)
            for count in range(len(holes) + 1)
            for chosen in combinations(holes, count)
        ]
        return [edge for start in starts for edge in (start, start + unit)]


@dataclass(frozen=True)
class MtrrMap:
    """The MTRRs of one vCPU as a map of the physical address space.

    Attributes:
        starts: first byte of each segment, rising, the first one 0; the last segment is open-ended.
        types: memory type of each segment.
    """

    starts: tuple[int, ...]
    types: tuple[MemoryType, ...]

    def __hash__(self) -> int:
        return hash(self.starts)  # equal maps have equal starts; enumeration members take long to hash

    @classmethod
    def from_registers(
        cls, def_type: int, fixed: Sequence[int], variable: Sequence[tuple[int, int]]
    ) -> "MtrrMap":
        """Work out the map from the registers (SDM Vol. 3A, "Memory Type Range Registers").

        Rules: E clear makes everything UC. Fixed ranges rule the first MiB when FE is set, whatever the
        variable ones say. Where variable ranges overlap UC wins, WT beats WB, and any other mixture
        (undefined by the SDM) counts as UC, as Linux has it
        (arch/x86/kernel/cpu/mtrr/generic.c:check_type_overlap). A mask is read as if it had every bit above
        its highest one, because masks reach up to MAXPHYADDR.

        Args:
            def_type: IA32_MTRR_DEF_TYPE.
            fixed: the 11 fixed-range registers: 64 KiB, twice 16 KiB, eight times 4 KiB granules.
            variable: (PHYSBASE, PHYSMASK) pairs.

        Raises:
            ReservedType: a range in use has an undefined type.
            OracleError: a mask is so ragged that it cannot be a range.
        """
        if not def_type & _MTRR_ENABLED:
            return cls((0,), (_UC,))
        default = _decode(MTRR_ENCODINGS, def_type & 0xFF, f"IA32_MTRR_DEF_TYPE {def_type:#x}")
        ranges = [_variable_range(base, mask) for base, mask in variable if mask & _MTRR_VALID]
        low = _fixed_segments(fixed) if def_type & _MTRR_FIXED_ENABLED else {}
        edges = {0, *low, *(edge for entry in ranges for edge in entry.edges())}
        if low:
            edges = {edge for edge in edges if edge >= 1 << 20 or edge in low} | {1 << 20}
        segments: list[tuple[int, MemoryType]] = []
        for edge in sorted(edges):
            kind = low[edge] if edge in low else _overlap([r.type for r in ranges if r.covers(edge)], default)
            if not segments or segments[-1][1] is not kind:
                segments.append((edge, kind))
        return cls(tuple(start for start, _ in segments), tuple(kind for _, kind in segments))

    def at(self, pa: int) -> MemoryType:
        """Return the MTRR type of the byte at physical address *pa*."""
        return self.types[bisect_right(self.starts, pa) - 1]

    def over(self, start: int, length: int) -> tuple[MemoryType, ...]:
        """Return the distinct MTRR types met in *length* bytes from *start*, in address order."""
        first = bisect_right(self.starts, start) - 1
        last = bisect_right(self.starts, start + max(length, 1) - 1)
        return tuple(dict.fromkeys(self.types[first:last]))


def _variable_range(base: int, mask: int) -> _VariableRange:
    kind = _decode(MTRR_ENCODINGS, base & 0xFF, f"variable MTRR base {base:#x}")
    address_bits = mask & _PHYSICAL_MASK & ~_PAGE_MASK
    above = ~((1 << address_bits.bit_length()) - 1) & _PHYSICAL_MASK if address_bits else 0
    return _VariableRange(base & _PHYSICAL_MASK & ~_PAGE_MASK, address_bits | above, kind)


def _fixed_segments(fixed: Sequence[int]) -> dict[int, MemoryType]:
    granules = [0x10000] * 8 + [0x4000] * 16 + [0x1000] * 64
    segments: dict[int, MemoryType] = {}
    start = 0
    for number, granule in enumerate(granules):
        code = fixed[number // 8] >> 8 * (number % 8) & 0xFF
        segments[start] = _decode(MTRR_ENCODINGS, code, f"fixed MTRR for {start:#x}")
        start += granule
    return segments


def _overlap(types: Sequence[MemoryType], default: MemoryType) -> MemoryType:
    met = set(types)
    if not met:
        return default
    if len(met) == 1:
        return met.pop()
    return _WT if met == {_WT, _WB} else _UC


@dataclass(frozen=True)
class TypeRules:
    """How one vCPU types memory: its PAT, its MTRRs and CR0.CD.

    Attributes:
        pat: memory types of the eight PAT slots.
        mtrr: the MTRR map.
        cache_disabled: CR0.CD is set. The processor then takes no new lines in, so every type counts as UC
            (SDM Vol. 3A, "Cache Control Registers and Bits").
    """

    pat: tuple[MemoryType, ...]
    mtrr: MtrrMap
    cache_disabled: bool = False

    def effective(self, mtrr: MemoryType, pat: MemoryType) -> MemoryType:
        """Return what a page of PAT type *pat* in memory of MTRR type *mtrr* really is (see `EFFECTIVE`)."""
        return _UC if self.cache_disabled else EFFECTIVE[mtrr, pat]

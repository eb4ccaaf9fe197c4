# SPDX-License-Identifier: MIT
"""The registers of one vCPU that decide how it sees memory."""

from dataclasses import dataclass
from functools import lru_cache

from harness.oracle.errors import NotLongMode
from harness.oracle.memtype import MtrrMap, TypeRules, decode_pat

_CR0_PG = 1 << 31
_CR0_CD = 1 << 30
_CR4_PAE = 1 << 5
_CR4_LA57 = 1 << 12
_EFER_LMA = 1 << 10
_EFER_NXE = 1 << 11


@dataclass(frozen=True)
class CpuState:
    """Register values of one vCPU, raw.

    Attributes:
        index: QEMU's number of the vCPU.
        cr0: control register 0.
        cr3: control register 3, with PCID and KPTI bits as they were.
        cr4: control register 4.
        efer: IA32_EFER.
        pat: IA32_PAT.
        mtrr_def_type: IA32_MTRR_DEF_TYPE.
        mtrr_fixed: the 11 fixed-range MTRRs, lowest addresses first.
        mtrr_var: eight (PHYSBASE, PHYSMASK) pairs.
    """

    index: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    pat: int
    mtrr_def_type: int
    mtrr_fixed: tuple[int, ...]
    mtrr_var: tuple[tuple[int, int], ...]

    @property
    def paging(self) -> bool:
        """Whether CR0.PG is set. A vCPU that was never started translates nothing."""
        return bool(self.cr0 & _CR0_PG)

    @property
    def no_execute(self) -> bool:
        """Whether EFER.NXE gives bit 63 of an entry its meaning."""
        return bool(self.efer & _EFER_NXE)

    @property
    def levels(self) -> int:
        """Levels of page tables in use: 4, or 5 with CR4.LA57 (SDM Vol. 3A, "Paging Modes and Control Bits").

        Raises:
            NotLongMode: the vCPU is not paging in 64-bit mode.
        """
        if not (self.paging and self.cr4 & _CR4_PAE and self.efer & _EFER_LMA):
            raise NotLongMode(
                f"vCPU {self.index} is not paging in 64-bit mode",
                observed=f"cr0={self.cr0:#x} cr4={self.cr4:#x} efer={self.efer:#x}",
                hint="freeze the guest after the kernel has started, and use a 64-bit kernel",
            )
        return 5 if self.cr4 & _CR4_LA57 else 4

    def type_rules(self) -> TypeRules:
        """Return how this vCPU types memory.

        Raises:
            ReservedType: the PAT or an MTRR in use holds a reserved encoding.
        """
        cache_disabled = bool(self.cr0 & _CR0_CD)
        return _type_rules(self.pat, self.mtrr_def_type, self.mtrr_fixed, self.mtrr_var, cache_disabled)


@lru_cache(maxsize=64)  # the same values at every capture
def _type_rules(
    pat: int,
    def_type: int,
    fixed: tuple[int, ...],
    variable: tuple[tuple[int, int], ...],
    cache_disabled: bool,
) -> TypeRules:
    return TypeRules(decode_pat(pat), MtrrMap.from_registers(def_type, fixed, variable), cache_disabled)

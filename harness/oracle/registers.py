# SPDX-License-Identifier: MIT
"""vCPU registers out of QEMU's monitor, which has the control registers and EFER, and no PAT and no MTRRs.

Format: QEMU target/i386/cpu-dump.c:x86_cpu_dump_state.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from harness.oracle.cpu import CpuState
from harness.oracle.errors import StreamError

_BLOCK: Final = re.compile(r"^CPU#(\d+)", re.MULTILINE)
_FIELDS: Final = {
    name: re.compile(rf"\b{name.upper()}=([0-9a-f]+)") for name in ("cr0", "cr3", "cr4", "efer")
}


def updated(cpus: Sequence[CpuState], text: str) -> tuple[CpuState, ...]:
    """Return vCPUs of an earlier moment with the control registers and EFER of another.

    Args:
        cpus: every vCPU, with the PAT and MTRRs it keeps.
        text: what ``info registers -a`` printed.

    Raises:
        StreamError: *text* tells of other vCPUs, or lacks a register.
    """
    pieces = _BLOCK.split(text)[1:]  # number, text, number, text, ...
    told = {int(number): block for number, block in zip(pieces[::2], pieces[1::2], strict=True)}
    if sorted(told) != [cpu.index for cpu in cpus]:
        raise StreamError(
            "the monitor and the last capture tell of different vCPUs",
            observed=f"monitor: {sorted(told)}, capture: {[cpu.index for cpu in cpus]}",
        )
    return tuple(_with(cpu, _registers(told[cpu.index], cpu.index)) for cpu in cpus)


def same_types(before: Sequence[CpuState], after: Sequence[CpuState]) -> bool:
    """Return whether every vCPU has the PAT and the MTRRs it had."""

    def of(cpus: Sequence[CpuState]) -> list[tuple[object, ...]]:
        return [(cpu.index, cpu.pat, cpu.mtrr_def_type, cpu.mtrr_fixed, cpu.mtrr_var) for cpu in cpus]

    return of(before) == of(after)


def _with(cpu: CpuState, now: dict[str, int]) -> CpuState:
    return replace(cpu, cr0=now["cr0"], cr3=now["cr3"], cr4=now["cr4"], efer=now["efer"])


def _registers(block: str, index: int) -> dict[str, int]:
    found = {name: pattern.search(block) for name, pattern in _FIELDS.items()}
    values = {name: int(match[1], 16) for name, match in found.items() if match is not None}
    if len(values) < len(_FIELDS):
        missing = ", ".join(name.upper() for name in _FIELDS if name not in values)
        raise StreamError(f"the monitor does not tell vCPU {index}'s {missing}", observed=block[:200])
    return values

# SPDX-License-Identifier: MIT
"""The kernel's direct map of all RAM, found without asking the kernel where it is.

Every page of RAM is mapped there at one constant distance from its physical address; under KASLR only the
distance changes (arch/x86/mm/kaslr.c moves it in steps of 1 GiB). So among the leaves of the kernel half
the bytes of RAM are counted per distance, and the distance that covers most is the direct map. Three things
keep that honest: the distance has to be a multiple of 1 GiB; leaves in the last 2 GiB of addresses do not
count, because there the kernel's image and its modules live (Documentation/arch/x86/x86_64/mm.rst); and a
run that covers less than 1 MiB is no direct map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.oracle.aliases import LeafTable, PhysRange
from harness.oracle.errors import OracleError

_KERNEL_HALF = np.uint64(1 << 63)
_IMAGE_WINDOW = np.uint64(0xFFFF_FFFF_8000_0000)
_STEP = np.uint64(1 << 30)
_LEAST = 1 << 20


@dataclass(frozen=True)
class DirectMap:
    """Where all RAM is mapped.

    Attributes:
        base: virtual address of physical address 0.
        coverage: bytes of RAM mapped there.
    """

    base: int
    coverage: int


def find_direct_map(leaves: LeafTable, ram: Sequence[PhysRange]) -> DirectMap:
    """Return the direct map.

    Args:
        leaves: every leaf there is.
        ram: the machine's RAM.

    Raises:
        OracleError: no run of leaves looks like one.
    """
    base = leaves.va - leaves.pa  # wraps below zero for leaves of another kind; the modulus keeps them apart
    kernel = leaves.va >= _KERNEL_HALF
    eligible = kernel & (leaves.va < _IMAGE_WINDOW) & (base % _STEP == 0)
    bases, group = np.unique(base[eligible], return_inverse=True)
    covered = np.bincount(group, weights=ram_bytes(leaves, ram)[eligible], minlength=1)
    best = int(np.argmax(covered)) if len(bases) else 0
    if not len(bases) or covered[best] < _LEAST:
        raise OracleError(
            "no direct map of RAM in these page tables",
            observed=f"{np.count_nonzero(kernel)} leaves in the kernel half, {len(bases)} possible bases",
            hint="freeze the guest after the kernel has started",
        )
    return DirectMap(int(bases[best]), int(covered[best]))


def ram_bytes(leaves: LeafTable, ram: Sequence[PhysRange]) -> NDArray[np.float64]:
    """Return for each leaf how many bytes of RAM it maps."""
    total = np.zeros(len(leaves))
    for item in ram:
        start = np.maximum(leaves.pa, np.uint64(item.start))
        end = np.minimum(leaves.pa + leaves.size, np.uint64(item.end))
        total += np.where(end > start, end - start, 0)
    return total


def odd_leaves(leaves: LeafTable, direct: DirectMap, ram: Sequence[PhysRange]) -> LeafTable:
    """Return the direct map's leaves over RAM whose PAT index is not 0."""
    odd = leaves.take((leaves.pat != 0) & (leaves.va >= _KERNEL_HALF) & (leaves.va < _IMAGE_WINDOW))
    mine = (odd.va - odd.pa == np.uint64(direct.base)) & (ram_bytes(odd, ram) > 0)
    return odd.take(mine)

# SPDX-License-Identifier: MIT
"""What the module believes about one descriptor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.images import Layouts
from harness.iokit.handle import Handle


@dataclass(frozen=True)
class Description:
    """The module's account of a descriptor: a claim, to be compared with evidence.

    Attributes:
        kernel_address: kernel virtual address of the first byte, 0 if it has none.
        user_address: address of the first byte in the process it was created in, 0 if it was in none.
        storage: bytes behind the buffer, whole pages.
        memory_type: ``WB``, ``WC``, ``UC_MINUS`` or ``WT``, as the module read its page tables; ``OTHER``
            when they disagree, or when no page is held.
        storage_kind: ``RUN`` for one physical run, ``CHUNKS`` for several under one mapping, ``PAGEABLE``.
        chunks: number of separate allocations.
        prepared: prepare() calls without their complete().
        alignment: bytes, what the placement decided on.
        mask: the physical mask the placement used, 0 for none.
        refused_lengths: setLength() calls beyond the capacity, ignored and counted (clause B05).
        held: pages of pageable storage that cannot be paged out now.
        kernel_tag: kernTag, 16 bits (clause A16).
        user_tag: userTag, 16 bits.
        mappings: IOMemoryMap objects that exist now.
        areas: user-space areas that show the buffer now.
        guard: bytes that fault in front of the buffer, and as many behind it.
    """

    kernel_address: int
    user_address: int
    storage: int
    memory_type: str
    storage_kind: str
    chunks: int
    prepared: int
    alignment: int
    mask: int
    refused_lengths: int
    held: int
    kernel_tag: int
    user_tag: int
    mappings: int
    areas: int
    guard: int

    @classmethod
    def of(cls, row: np.void) -> Description:
        """The account in one row of `descriptions`."""
        return cls(**{name: row[name].item() for name in cls.__dataclass_fields__})


def descriptions(layouts: Layouts, records: NDArray[Any], made: NDArray[np.bool_]) -> NDArray[Any]:
    """Accounts of many descriptors, as a structured array with the fields of `Description`.

    Args:
        layouts: of the module.
        records: its ``iobmd_description`` structures.
        made: which of them mean anything; the others have empty names.
    """
    names = {
        "memory_type": _names(layouts.enum("iobmd_memory_type"), "IOBMD_TYPE_"),
        "storage_kind": _names(layouts.enum("iobmd_storage"), "IOBMD_STORAGE_"),
    }
    fields = [
        (name, names[name].dtype if name in names else records.dtype[name])
        for name in Description.__dataclass_fields__
    ]
    rows = np.zeros(len(records), fields)
    for name in Description.__dataclass_fields__:
        rows[name] = np.where(made, names[name][records[name]], "") if name in names else records[name]
    return rows


def _names(enum: Mapping[str, int], prefix: str) -> NDArray[np.str_]:
    """An enumeration's names without their prefix, by value."""
    names = [""] * (max(enum.values()) + 1)
    for name, value in enum.items():
        names[value] = name.removeprefix(prefix)
    return np.array(names)


def read_description(handle: Handle) -> Description:
    """Ask the module for its `Description` of the descriptor behind *handle*."""
    number = handle.call("DESCRIBE", "iobmd_description")
    types = {value: name for name, value in handle.layouts.enum("iobmd_memory_type").items()}
    kinds = {value: name for name, value in handle.layouts.enum("iobmd_storage").items()}
    number["memory_type"] = types[number["memory_type"]].removeprefix("IOBMD_TYPE_")
    number["storage_kind"] = kinds[number["storage_kind"]].removeprefix("IOBMD_STORAGE_")
    return Description(**{name: number[name] for name in Description.__dataclass_fields__})

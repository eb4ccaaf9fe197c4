# SPDX-License-Identifier: MIT
"""Arguments of a batch: one value for every row, or one each."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput

Numbers = int | Sequence[int] | NDArray[Any]
"""What an argument of a batch takes: one integer for all, or a sequence or array with one per row."""


def spread(name: str, value: Numbers, rows: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An argument as an array with one unsigned integer per row.

    Args:
        name: what to call it in errors.
        value: as the caller gave it.
        rows: of the batch.
        dtype: of the structure's field.

    Raises:
        BadInput: no integers, neither one nor as many as rows, or one with more bits than Apple's argument.
    """
    given = value if isinstance(value, np.ndarray) else _integers(name, value)
    if given.dtype.kind not in "iubO":
        raise BadInput(f"{name} takes integers", observed=f"an array of {given.dtype}")
    if given.shape not in {(), (rows,)}:
        raise BadInput(
            f"{name} takes one value for all, or one for each of {rows}",
            observed=f"an array of shape {given.shape}",
        )
    low, high = int(given.min()), int(given.max())
    if low < 0 or high > int(np.iinfo(dtype).max):
        wrong = low if low < 0 else high
        raise BadInput(f"{name} is {8 * dtype.itemsize} bits, unsigned", observed=f"{wrong:#x}")
    return np.broadcast_to(given.astype(dtype), (rows,))


def _integers(name: str, value: int | Sequence[int]) -> NDArray[Any]:
    """As Python's integers: NumPy would make floats of some that need all 64 bits."""
    try:
        if hasattr(value, "__index__"):
            return np.array(operator.index(value), dtype=object)
        return np.array([operator.index(one) for one in value], dtype=object)
    except TypeError as error:
        raise BadInput(f"{name} takes integers", observed=f"{type(value).__name__}: {error}") from error

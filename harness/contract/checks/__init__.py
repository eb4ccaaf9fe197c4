# SPDX-License-Identifier: MIT
"""The checks, one module per group of clauses; importing this package registers them all."""

from harness.contract.checks import (  # noqa: F401 - imported for what they register
    alignment,
    caching,
    contents,
    contiguity,
    creation,
    length,
    physical,
    transfer,
    wiring,
)

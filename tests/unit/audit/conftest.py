# SPDX-License-Identifier: MIT
"""The ledger's layouts, from its header alone."""

import subprocess
from pathlib import Path

import pytest

from harness.images import Layouts

HEADER = Path(__file__).resolve().parents[3] / "kext_shim" / "ledger" / "dma_ledger_abi.h"


@pytest.fixture(scope="session")
def layouts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ledger")
    source = folder / "abi.c"
    source.write_text(f'#include "{HEADER}"\n')
    argv = ["gcc", "-g", "-c", "-fno-eliminate-unused-debug-types", "-o", str(folder / "abi.o"), str(source)]
    subprocess.run(argv, check=True, timeout=60)
    return Layouts.from_elf(folder / "abi.o")

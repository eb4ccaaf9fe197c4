# SPDX-License-Identifier: MIT
"""The ledger's layouts, from its header alone; and a module of a few functions, compiled here."""

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


def _compiled(folder, *flags):
    built, here = folder / "ring.ko", Path(__file__).parent
    argv = ["gcc", "-O2", "-fno-pic", "-fcf-protection=none", *flags, "-c", "-o", str(built)]
    subprocess.run([*argv, f"-I{here}", str(here / "ring.c")], check=True, timeout=60)
    return built


@pytest.fixture(scope="session")
def ring(tmp_path_factory):
    """With debug information."""
    return _compiled(tmp_path_factory.mktemp("ring"), "-g")


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """Without."""
    return _compiled(tmp_path_factory.mktemp("bare"))

# SPDX-License-Identifier: MIT
"""Loads the fakes, which lie beside the tests and in no package."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def load_fakes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("contract_fakes", Path(__file__).parent / "fakes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

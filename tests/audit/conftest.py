# SPDX-License-Identifier: MIT
"""Loads what the tests here share, which lies beside them and in no package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"audit_{name}", Path(__file__).parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


_load("drivers")
Stage = _load("stage").Stage


@pytest.fixture(scope="module")
def stage():
    """Where drivers of the gallery are shown, one guest at a time."""
    theatre = Stage()
    try:
        yield theatre
    finally:
        theatre.close()

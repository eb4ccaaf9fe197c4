# SPDX-License-Identifier: MIT
"""The ledger, and the module whose calls it is tested with, built for the session's kernel."""

from pathlib import Path

import pytest

from harness.audit import build_ledger
from harness.images import SilentProgress, build_module


@pytest.fixture(scope="module")
def ledger_build(guest_image):
    return build_ledger(guest_image.kernel, SilentProgress())


@pytest.fixture(scope="module")
def streaming(guest_image):
    source = Path(__file__).with_name("streaming")
    return build_module(guest_image.kernel, source, SilentProgress(), name="streaming").ko.read_bytes()

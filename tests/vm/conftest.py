# SPDX-License-Identifier: MIT
"""What the ledger's tests need, built for the session's kernel; and rewinds of guests of any age."""

from pathlib import Path

import pytest

from harness.audit import build_ledger
from harness.images import SilentProgress, build_module
from harness.link import origin


@pytest.fixture(scope="module")
def ledger_build(guest_image):
    return build_ledger(guest_image.kernel, SilentProgress())


@pytest.fixture(scope="module")
def streaming(guest_image):
    source = Path(__file__).with_name("streaming")
    return build_module(guest_image.kernel, source, SilentProgress(), name="streaming").ko.read_bytes()


@pytest.fixture
def rewinds_at_any_age(monkeypatch):
    """Lets a test say by which way its own guest is restored, however long a busy host took until then."""
    monkeypatch.setattr(origin, "REWIND_SECONDS_MAX", 300.0)

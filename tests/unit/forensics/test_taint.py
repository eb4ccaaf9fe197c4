# SPDX-License-Identifier: MIT
from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.forensics import Taint, splats, taint_diff
from harness.forensics.taint import FAULTS

# kernel/panic.c:taint_flags, lowest bit first; 6.12 prints the letter with the flag's name.
LETTERS = "PFSRMBUDAWCIOELKXTNJ"


def test_values_of_real_guests():
    fresh = Taint.read(b"12288\n")
    assert fresh == Taint.OOT_MODULE | Taint.UNSIGNED_MODULE
    assert not fresh.faults
    assert taint_diff(fresh, 12288 | 512) == ("WARN (the kernel issued a warning)",)
    assert taint_diff(12288 | 512, 12288) == ()
    assert Taint.read("4736").faults == Taint.DIE | Taint.WARN


def test_the_names_are_the_kernels():
    """Since 6.10 the kernel spells them out: ``Tainted: [W]=WARN, [O]=OOT_MODULE, [E]=UNSIGNED_MODULE``."""
    told = "[W]=WARN, [O]=OOT_MODULE, [E]=UNSIGNED_MODULE, [D]=DIE, [B]=BAD_PAGE, [L]=SOFTLOCKUP"
    for letter, name in re.findall(r"\[(\w)\]=(\w+)", told):
        assert Taint[name] == 1 << LETTERS.index(letter)


def test_a_bit_of_the_future():
    assert taint_diff(0, 1 << 40) == ("bit 40",)


def test_what_is_no_value():
    with pytest.raises(ValueError, match="invalid literal"):
        Taint.read(b"tainted")


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1))
def test_the_difference_is_what_appeared(before, after):
    assert len(taint_diff(before, after)) == (after & ~before).bit_count()
    assert len(Taint(after).names) == after.bit_count()
    assert int(Taint(after).faults) == after & int(FAULTS)


def test_splats_taint():
    assert splats("Tainted: [W]=WARN\n") == ()

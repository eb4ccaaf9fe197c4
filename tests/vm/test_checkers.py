# SPDX-License-Identifier: MIT
"""What a kernel's checkers find fails the test that did it: KASAN, UBSAN, lockdep, the DMA API's debugging.

The injector's words are harmless: a kernel without the checker says nothing to them, and no test fails.
Which checkers there are is in the kernel's configuration; ``--kernel VMLINUZ --modules DIR --headers DIR``
takes one that has them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET  # what it reads was written a moment ago
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.images import SilentProgress, build_module
from harness.kconfig import options_on

INJECTOR = Path(__file__).parents[1] / "faults" / "injector"


@dataclass(frozen=True)
class Misdeed:
    """A word to the injector, and what is said of it.

    Attributes:
        word: the word.
        checker: the option of a kernel that minds.
        title: pattern of the report's first line as it is shown: its kind and the kernel's words.
        also: patterns of further lines.
    """

    word: str
    checker: str
    title: str
    also: tuple[str, ...]


def frame(function):
    """A frame of the injector with its place in the source, on a stack of a report as it is shown."""
    return rf"^      {function}(?:\.cold)?\+0x\w+/0x\w+ \[iobmd_faults\]  .*\biobmd_faults\.c:\d+"


MISDEEDS = (
    Misdeed(
        "use-after-free",
        "KASAN",
        r"KASAN finding: BUG: KASAN: (slab-)?use-after-free in do_use_after_free\+",
        tuple(
            rf"{beginning}(\n      .*)*?\n{frame('do_use_after_free')[1:]}"
            for beginning in (r"^  on  CPU \d, .*", r"^  Allocated by task \d+:", r"^  Freed by task \d+:")
        ),
    ),
    Misdeed(
        "out-of-bounds",
        "KASAN",
        r"KASAN finding: BUG: KASAN: slab-out-of-bounds in do_out_of_bounds\+",
        (frame("do_out_of_bounds"), r"^  Allocated by task \d+:$"),
    ),
    Misdeed(
        "shift",
        "UBSAN_SHIFT",
        r"undefined behaviour: UBSAN: shift-out-of-bounds in iobmd_faults\.c:\d+:",
        (frame("do_shift"), r"shift exponent 40 is too large"),
    ),
    Misdeed(
        "index",
        "UBSAN_BOUNDS",
        r"undefined behaviour: UBSAN: array-index-out-of-bounds in iobmd_faults\.c:\d+:",
        (frame("do_index"), r"index 4 is out of range for type 'int ?\[4\]'"),
    ),
    Misdeed(
        "lock-order",
        "PROVE_LOCKING",
        r"lock validator finding: WARNING: possible circular locking dependency detected",
        (frame("lock_both"), r"-> #1 \(second\)", r"-> #0 \(first\)"),
    ),
    Misdeed(
        "lock-interrupt",
        "PROVE_LOCKING",
        r"lock validator finding: WARNING: inconsistent lock state",
        (frame("lock_in_interrupt"), r"\{IN-HARDIRQ-W\} -> \{HARDIRQ-ON-W\} usage"),
    ),
    Misdeed(
        "sleep-locked",
        "DEBUG_ATOMIC_SLEEP",
        r"kernel bug: BUG: sleeping function called from invalid context at ",
        (frame("do_sleep_locked"), r"in_atomic\(\): 1"),
    ),
    Misdeed(
        "unmap-half",
        "DMA_API_DEBUG",
        r"DMA API misuse: WARNING( at kernel/dma/debug\.c:\d+)? in check_unmap: DMA-API: iobmd-faults "
        r"iobmd-faults: device driver frees DMA memory with different size",
        (frame("do_unmap_half"), r"\[map size=1024 bytes\] \[unmap size=512 bytes\]"),
    ),
)

SESSION = """
import contextlib
from pathlib import Path

import pytest
from harness.link import GuestOSError


@pytest.mark.parametrize("word", {words!r})
def test_misdeed(guest, word):
    if b"iobmd_faults" not in guest.read_file("/proc/modules"):  # a complaint of before restores the guest
        guest.load_module(Path({ko!r}).read_bytes())
    with contextlib.suppress(GuestOSError):  # no KFENCE; it would mind now and then
        guest.write_file("/sys/module/kfence/parameters/sample_interval", b"0")
    guest.write_file("/dev/iobmd-faults", word.encode())


def test_after(guest, iobmd):
    assert guest.link.ping(b"well again") == b"well again"
"""


@pytest.fixture(scope="module")
def carried_out(guest_image, pytestconfig, tmp_path_factory):
    """Do every misdeed in a session of its own; its folder, and what the report says of each test."""
    folder = tmp_path_factory.mktemp("checkers")
    ko = build_module(guest_image.kernel, INJECTOR, SilentProgress(), name="iobmd_faults").ko_debug
    words = [misdeed.word for misdeed in MISDEEDS]
    (folder / "test_mine.py").write_text(SESSION.format(words=words, ko=str(ko)))
    option = pytestconfig.option
    argv = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-W", "error",
            "--junitxml", "junit.xml", f"--kernel={option.kernel}", "--accel", option.accel]  # fmt: skip
    for name in ("modules", "headers"):  # pytest takes the folder for one of tests when it stands by itself
        argv += [f"--{name}={getattr(option, name)}"] if getattr(option, name) else []
    names = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**names, "NO_COLOR": "1"}
    done = subprocess.run(
        argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    print(done.stdout, done.stderr)
    cases = {case.get("name"): case for case in ET.parse(folder / "junit.xml").iter("testcase")}  # noqa: S314
    return folder, cases


@pytest.fixture(scope="module")
def checkers(guest_image):
    """Options of the guest's kernel that are on."""
    on = options_on(guest_image.kernel.headers / ".config")
    assert on
    return on


@pytest.mark.parametrize("misdeed", MISDEEDS, ids=lambda misdeed: misdeed.word)
def test_what_a_checker_finds_is_the_tests_that_did_it(carried_out, checkers, misdeed):
    folder, cases = carried_out
    case = cases[f"test_misdeed[{misdeed.word}]"]
    of = {entry.get("name"): entry.get("value") for entry in case.iter("property")}
    if f"CONFIG_{misdeed.checker}" not in checkers:
        assert (case.find("failure"), of.get("failure-kind")) == (None, None)
        return
    assert case.find("failure") is not None
    assert of["failure-kind"] == "kernel-tainted"
    (kept,) = (folder / "results/latest").glob(f"*{misdeed.word}*")
    told = (kept / "splats.txt").read_text()
    for pattern in (f"^{misdeed.title}", *misdeed.also):
        assert re.search(pattern, told, re.MULTILINE), f"{pattern}\n{told}"
    assert told.count("fingerprint") == 1, told


def test_no_other_test_is_blamed(carried_out):
    _, cases = carried_out
    assert len(cases) == len(MISDEEDS) + 1
    assert cases["test_after"].find("failure") is None
    assert cases["test_after"].find("error") is None

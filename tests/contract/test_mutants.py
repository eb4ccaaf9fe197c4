# SPDX-License-Identifier: MIT
"""The tests are tested: a module with a mistake has to be noticed by the checks of the clauses it breaks."""

import contextlib
import errno
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import harness.contract.checks  # noqa: F401 - registers the checks
from harness.contract import ClauseResult, Verdict, catalogue, judge
from harness.contract.engine import CHECKS
from harness.errors import HarnessError
from harness.images import GuestImage, SilentProgress, source_root
from harness.iokit import IOKit
from harness.link import Guest, GuestOptions, GuestOSError
from harness.oracle import Oracle

mutation = sys.modules["contract_mutation"]
MUTANTS = mutation.load()
MODULE = "iobmd"

# Mistakes that cannot be made in the module, since the host makes the call: how a check sees it, patched.
HOST_MISTAKES: Mapping[str, tuple[str, ...]] = {"alignment-left-out-is-a-large-page": ("A03",)}


class Stable:
    """A guest for mutants; replaced when one of them leaves traces."""

    def __init__(self, image: GuestImage) -> None:
        self._image = image
        self._guest: Guest | None = None

    def guest(self) -> Guest:
        """Return a guest without the module, boot it first if need be."""
        if self._guest is None:
            guest = Guest(self._image, GuestOptions())
            guest.__enter__()
            self._guest = guest
            guest.unload_module(MODULE)
        return self._guest

    def discard(self) -> None:
        """End the guest."""
        guest, self._guest = self._guest, None
        if guest is not None:
            guest.__exit__(None, None, None)


@pytest.fixture(scope="module")
def modules(guest_image: GuestImage) -> Mapping[str, Path]:
    return dict(mutation.build(guest_image.kernel, MUTANTS))


@pytest.fixture(scope="module")
def stable(guest_image: GuestImage) -> Iterator[Stable]:
    made = Stable(guest_image)
    try:
        yield made
    finally:
        made.discard()


def code(mutant: Any, modules: Mapping[str, Path]) -> bytes:
    """Return the module's file; a stale mutant fails here, with its reason."""
    mutation.mutated(mutant, source_root() / "kext_shim")
    return modules[mutant.name].read_bytes()


def verdicts(guest: Guest, clauses: tuple[str, ...]) -> list[ClauseResult]:
    with IOKit(guest) as iokit:
        chosen = catalogue().select(*clauses)
        return list(judge(guest, iokit, Oracle(guest.machine), chosen, SilentProgress()).results)


def unload(guest: Guest, name: str) -> None:
    """Unload a module; the kernel may close a file of it a moment after its last user did (delayed_fput)."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return guest.unload_module(name)
        except GuestOSError as error:
            if error.errno not in {errno.EAGAIN, errno.EBUSY} or time.monotonic() > deadline:
                raise


def expect_broken(results: list[ClauseResult]) -> None:
    survived = [
        f"{r.clause.id} is {r.verdict.value}: {r.observed}"
        for r in results
        if r.verdict is not Verdict.BROKEN
    ]
    assert not survived


@pytest.mark.parametrize("mutant", [m for m in MUTANTS if not m.alone], ids=lambda m: m.name)
def test_the_mistake_is_noticed(mutant: Any, modules: Mapping[str, Path], stable: Stable) -> None:
    guest = stable.guest()
    try:
        guest.load_module(code(mutant, modules))
        expect_broken(verdicts(guest, mutant.breaks))
        unload(guest, modules[mutant.name].stem)
        with Oracle(guest.machine).frozen() as view:
            assert view.direct_map_anomalies() == (), "this mutant poisons its guest; say so"
    except BaseException:
        with contextlib.suppress(HarnessError):
            stable.discard()
        raise


LASTING = [(mutant, clause) for mutant in MUTANTS if mutant.alone for clause in mutant.breaks]


@pytest.mark.parametrize(("mutant", "clause"), LASTING, ids=[f"{m.name}-{clause}" for m, clause in LASTING])
def test_the_lasting_mistake_is_noticed(
    mutant: Any, clause: str, modules: Mapping[str, Path], guest_image: GuestImage
) -> None:
    """One clause per guest: a check must not find what the check before it left behind."""
    options = GuestOptions(memory_mib=mutant.memory or 512, devices=mutant.devices, cmdline=mutant.cmdline)
    with Guest(guest_image, options) as guest:
        guest.unload_module(MODULE)
        guest.load_module(code(mutant, modules))
        expect_broken(verdicts(guest, (clause,)))


def test_a_default_on_the_host_is_noticed(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IOKit.withOptions, "__defaults__", (2 << 20,))
    expect_broken(verdicts(guest, HOST_MISTAKES["alignment-left-out-is-a-large-page"]))


def test_every_check_has_a_mutant() -> None:
    noticed = {clause for mutant in MUTANTS for clause in mutant.breaks}
    noticed |= {clause for clauses in HOST_MISTAKES.values() for clause in clauses}
    assert set(CHECKS) - noticed == set()
    assert noticed - set(CHECKS) == set()


def test_mutants_fit_the_sources() -> None:
    names = {mutant.name for mutant in MUTANTS}
    assert len(names) == len(MUTANTS)
    for mutant in MUTANTS:
        texts = mutation.mutated(mutant, source_root() / "kext_shim")
        assert texts, mutant.name


@pytest.mark.parametrize("found", ["never", "twice"])
def test_a_stale_mutant_fails_loudly(found: str, tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("x\n" if found == "never" else "one one\n")
    stale = mutation.Mutant("stale", (mutation.Edit("a.c", "one", "two"),), ("A01",))
    with pytest.raises(mutation.StaleMutant, match=r"stale: a\.c"):
        mutation.mutated(stale, tmp_path)

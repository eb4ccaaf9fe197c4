# SPDX-License-Identifier: MIT
"""Calls of a kernel function, counted by the kernel's own tracer (Documentation/trace/kprobetrace.rst).

For what leaves no trace in memory: an emulated processor has no caches, a flush changes nothing there.  That
the kernel went through its flushing code is seen here; the module under judgement has no part in that.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from harness.contract.case import Case
from harness.link import GuestOSError
from harness.link.syscalls import cstring

_MOUNT, _UMOUNT2 = 165, 166  # arch/x86/entry/syscalls/syscall_64.tbl
_ROOT = "/sys/kernel/tracing"
_EVENT = f"{_ROOT}/events/iobmd/flush"
# arch/x86/mm/pat/set_memory.c: static void cpa_flush(struct cpa_data *data, int cache)
_PROBE = b"p:iobmd/flush cpa_flush cache=%si:s32\n"
_HIT = re.compile(r"flush: \(cpa_flush\S*\) cache=(-?\d+)")


class Flushes:
    """The calls of cpa_flush, which ends every change of memory types, that were told to flush caches.

    Args:
        case: the check.
    """

    def __init__(self, case: Case) -> None:
        self._case = case

    def count(self) -> int:
        """Return how many there were since the last call of this."""
        text = self._case.guest.read_file(f"{_ROOT}/trace").decode(errors="replace")
        self._case.guest.write_file(f"{_ROOT}/trace", b"")  # opened with O_TRUNC, which empties it
        return sum(int(cache) != 0 for cache in _HIT.findall(text))


@contextmanager
def flushes(case: Case) -> Iterator[Flushes | None]:
    """Count cache flushes while the block runs.

    Yields:
        The counter, or None with a note on a kernel that cannot trace this.
    """
    guest = case.guest
    guest.syscall(_MOUNT, cstring("tracefs"), cstring(_ROOT), cstring("tracefs"), 0, 0, what="mount tracefs")
    try:
        try:
            guest.write_file(f"{_ROOT}/kprobe_events", _PROBE)
            guest.write_file(f"{_EVENT}/enable", b"1\n")
        except GuestOSError as error:
            case.note(f"this kernel cannot trace cpa_flush: {error.summary}")
            yield None
            return
        try:
            yield Flushes(case)
        finally:
            guest.write_file(f"{_EVENT}/enable", b"0\n")
            guest.write_file(f"{_ROOT}/kprobe_events", b"")
            guest.write_file(f"{_ROOT}/trace", b"")
    finally:
        with contextlib.suppress(GuestOSError):
            guest.syscall(_UMOUNT2, cstring(_ROOT), 0, what="umount tracefs")

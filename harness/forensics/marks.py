# SPDX-License-Identifier: MIT
"""Lines of ours in the kernel's log, and the kernel's taint flags, in one trip to the guest."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Final

import numpy as np

from harness.forensics.taint import Taint
from harness.link import GuestOSError, Nr

if TYPE_CHECKING:
    from harness.link import Guest
    from harness.vm import Console

_KMSG: Final = "/dev/kmsg"
_TAINTED: Final = "/proc/sys/kernel/tainted"
_TAINTED_BYTES: Final = 32
#: KERN_WARNING: the least that reaches the console of a guest booted with loglevel=5.
_LEVEL: Final = 4
_TEXT_MAX: Final = 120
#: kernel/printk/printk.c: devkmsg_write takes as many bytes, with a level, and makes one record of them.
_RECORD: Final = np.dtype(f"S{_TEXT_MAX + 8}")


class Marks:
    """Writes marks into the log of one guest.

    The two files stay open in the guest, so that a mark is one trip; after a restore they are opened again.

    Args:
        guest: its agent answers.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._generation = -1
        self._kmsg = self._tainted = -1

    def put(self, text: str, timeout: float) -> Taint:
        """Write a line into the kernel's log and read the taint flags before it.

        On a console that shows warnings, everything the kernel has said before is there before this line.

        Args:
            text: one line of ASCII; a longer one than 120 characters is cut.
            timeout: seconds.

        Raises:
            GuestFailure: the guest does not answer, or is dead.
            GuestOSError: it has no room for two more open files.
        """
        try:
            return self._put(text, timeout)
        except GuestOSError as error:
            if error.errno != errno.EBADF:
                raise
            self._generation = -1  # somebody closed what was not theirs
            return self._put(text, timeout)

    def _put(self, text: str, timeout: float) -> Taint:
        guest = self._guest
        if self._generation != guest.generation:
            self._kmsg = guest.open(_KMSG, os.O_WRONLY)
            self._tainted = guest.open(_TAINTED, os.O_RDONLY)
            self._generation = guest.generation
        # A record without a line break is held back: the next one may continue it.
        line = f"<{_LEVEL}>{plain(text)}\n".encode()
        trip = guest.batch(1)
        flags = trip.outputs(np.dtype(f"S{_TAINTED_BYTES}"))
        said = trip.inputs(np.array([line], dtype=_RECORD))
        read = trip.call(Nr.PREAD64, self._tainted, flags, _TAINTED_BYTES, 0, what=f"read {_TAINTED}")
        wrote = trip.call(Nr.WRITE, self._kmsg, said, len(line), what=f"write {_KMSG}")
        trip.run(timeout=timeout)
        trip.check(read)
        trip.check(wrote)
        return Taint.read(bytes(flags.records[0]).strip() or b"0")


def plain(text: str) -> str:
    """What a mark makes of a text: printable ASCII, not too long; the end tells tests apart."""
    clean = "".join(char if " " <= char <= "~" else "?" for char in text)
    return clean if len(clean) <= _TEXT_MAX else f"{clean[: _TEXT_MAX // 2 - 2]}..{clean[-_TEXT_MAX // 2 :]}"


def arrived(console: Console, text: str, since: int, seconds: float) -> int | None:
    """Wait until a mark is in the console's log.

    Args:
        console: of the guest.
        text: of the mark.
        since: byte of the log to look from on.
        seconds: how long at most.

    Returns:
        The byte where its line begins, or None if it did not come: the guest may have been told to say less
        (``dmesg -n 1``).
    """
    wanted = plain(text).encode()
    end = time.monotonic() + seconds
    while True:
        size = console.mark()
        said = console.raw(since)
        at = said.find(wanted)
        if at >= 0:
            return since + said.rfind(b"\n", 0, at) + 1
        left = end - time.monotonic()
        if left <= 0 or console.ended:
            return None
        console.wait_output(left, since=size)

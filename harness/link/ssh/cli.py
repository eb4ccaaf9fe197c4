# SPDX-License-Identifier: MIT
"""``iobmd ssh``: one visit to a guest."""

import os
import sys
from collections.abc import Sequence

from harness.errors import BadInput
from harness.link.guest import Guest
from harness.vm import QemuDied

Pairs = tuple[tuple[str, str], ...]


def pairs(words: Sequence[str], option: str) -> Pairs:
    """Split ``FROM:TO`` words.

    Raises:
        BadInput: one has no colon, or nothing beside it.
    """
    split = tuple((source, target) for source, _, target in (word.partition(":") for word in words))
    for word, (source, target) in zip(words, split, strict=True):
        if not source or not target:
            raise BadInput(f"{option} {word}: two paths with a colon between are wanted",
                           hint=f"for example {option} ./file:/tmp/file")  # fmt: skip
    return split


def visit(guest: Guest, words: Sequence[str], put: Pairs, get: Pairs) -> int:
    """Copy files in, run a command or a shell on this process's standard streams, copy files out.

    Args:
        guest: booted.
        words: the command; none for a login shell.
        put: files to copy into the guest first.
        get: files to copy out of it afterwards.

    Returns:
        The exit status for this process.

    Raises:
        BadInput: a file cannot be read or written here.
        GuestOSError: a file cannot be read or written in the guest.
        GuestFailure: the guest died otherwise than by an orderly end.
    """
    ssh = guest.ssh
    for local, remote in put:
        ssh.put(local, remote)
    words = words[1:] if words[:1] == ["--"] else words
    # As ssh does: the words are joined, and quoting is the guest's shell's business.
    command = " ".join(words) or None
    if command is None and os.isatty(0):
        print(f"{guest.hello.release}, {guest.machine.describe()}; exit or Ctrl-D leaves and ends the guest",
              file=sys.stderr, flush=True)  # fmt: skip
    try:
        status = ssh.interact(command)
    except QemuDied as gone:
        if gone.status != 0 or get:
            raise
        print(f"the guest has ended: {gone.observed}", file=sys.stderr)
        return 0
    for remote, local in get:
        ssh.get(remote, local)
    return status

# SPDX-License-Identifier: MIT
"""The console peer: commands typed at a shell on the serial port, their end seen by pexpect."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pexpect
from pexpect.fdpexpect import fdspawn

from harness.errors import GuestFailure
from harness.vm import MachineSpec, choose_accelerator, find_qemu
from harness.vm.process import spawn
from harness.vm.qemu import Wires, compose
from harness.vm.ram import ram_file

_BOOT_SECONDS = 60.0
_REPLY_SECONDS = 30.0
_PROMPT = b"iobmd:/# "  # guest/shell.c


class Shell:
    """A prompt on a serial console.

    Args:
        console: the host end of the serial port.
    """

    def __init__(self, console: socket.socket) -> None:
        self._child: Any = fdspawn(console.fileno(), timeout=_REPLY_SECONDS, use_poll=True)
        self._child.delaybeforesend = None  # its defaults wait 50 ms before each command
        self._child.delayafterread = None  # and 0.1 ms after each piece of output: the peer at its best
        self._expect(_BOOT_SECONDS)

    def run(self, command: str) -> None:
        """Type a command and wait for the next prompt.

        Raises:
            GuestFailure: it did not come.
        """
        self._child.send(f"{command}\r")
        self._expect(_REPLY_SECONDS)

    def _expect(self, seconds: float) -> None:
        try:
            self._child.expect_exact(_PROMPT, timeout=seconds)
        except pexpect.ExceptionPexpect as error:
            said = (self._child.before or b"").decode(errors="replace")
            raise GuestFailure("no prompt on the serial console", observed=said[-300:]) from error


@contextmanager
def booted(spec: MachineSpec) -> Iterator[Shell]:
    """Boot a guest whose serial port nobody else reads.

    Args:
        spec: a machine whose image has busybox and whose command line says ``iobmd.shell``.
    """
    accelerator = choose_accelerator(spec).name
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="iobmd-bench-"))
        ram = stack.enter_context(ram_file(spec))
        ours: dict[str, socket.socket] = {}
        with ExitStack() as theirs:
            fds = {}
            for role in ("console", "qmp", *spec.ports):
                ours[role], remote = socket.socketpair()
                stack.callback(ours[role].close)
                fds[role] = theirs.enter_context(remote).fileno()
            ports = {name: fds[name] for name in spec.ports}
            wires = Wires(ram=ram, console=fds["console"], qmp=fds["qmp"], ports=ports)
            argv = compose(find_qemu(), spec, accelerator, wires)
            process = spawn(argv, pass_fds=wires.all(), log=Path(folder) / "qemu.log")
            stack.callback(process.end)
        yield Shell(ours["console"])

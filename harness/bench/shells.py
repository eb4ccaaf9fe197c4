# SPDX-License-Identifier: MIT
"""One request to the agent, against the other ways to make a guest do something."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median

from harness.bench import guest_agent, serial
from harness.bench.lab import Lab
from harness.bench.rounds import Measure, Side, timings_of
from harness.errors import GuestFailure
from harness.link import Guest

_ROUNDS = 15
_PINGS = 50
_COMMANDS = 5
_SECONDS = 30.0


def bench_shells(lab: Lab) -> None:
    """Measure an empty request beside SSH, a shell on the console, and qemu-guest-agent."""
    options = dataclasses.replace(lab.machine, ports=(guest_agent.PORT_NAME,))
    with Guest(lab.image, options) as guest:
        ping = _side("ping", _PINGS, lambda _: guest.link.ping)
        agent = _side("qemu-guest-agent", _PINGS, lambda _: guest_agent.GuestAgent(guest, lab.progress).ping)
        secure = _side("ssh", _COMMANDS, lambda _: _by_ssh(guest))
        console = _side("console", _COMMANDS, lambda stack: _by_console(lab, stack))
        for peer, against, goal in (
            (secure, "paramiko runs `true` over the SSH port", 1 / 20),
            (console, "pexpect runs `true` on the serial console", 1 / 20),
            (agent, "guest-ping of qemu-guest-agent in the same guest", 1.0),
        ):
            ours, theirs = ping.series("each"), peer.series("each")
            lab.board.row("empty request", "us", ours, peer=theirs, against=against, goal=goal)
        lab.measure("Other ways in", (ping, secure, console, agent), _ROUNDS)


def _side(name: str, count: int, prepare: Callable[[ExitStack], Callable[[], object]]) -> Side:
    def measured(stack: ExitStack) -> Measure:
        call = prepare(stack)
        return lambda: {"each": median(timings_of(call, count))}

    return Side(name, measured, count)


def _by_ssh(guest: Guest) -> Callable[[], None]:
    import paramiko  # noqa: PLC0415 - takes a fifth of a second, and only this peer wants it

    transport = guest.ssh.transport

    def run() -> None:
        try:
            with transport.open_session(timeout=_SECONDS) as channel:
                channel.exec_command("true")
                ended = channel.status_event.wait(_SECONDS)
                status = channel.exit_status if ended else None
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise GuestFailure("the SSH session broke", observed=str(error)) from error
        if status != 0:
            raise GuestFailure("`true` did not succeed over SSH", observed=f"exit status {status}")

    return run


def _by_console(lab: Lab, stack: ExitStack) -> Callable[[], None]:
    with Guest(lab.shell_image, lab.shell_machine) as once:
        spec = once.machine.spec
    shell = stack.enter_context(serial.booted(spec))
    return lambda: shell.run("true")

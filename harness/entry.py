# SPDX-License-Identifier: MIT
"""The first thing ``iobmd`` executes: what can go wrong before and after `harness.cli` has its say.

Ctrl-C in the third of a second in which the rest is imported is to end as quietly as later.  So nothing is
imported here that the interpreter has not loaded already: `_signal` is what `signal` wraps into enums.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing itself is one of the modules that take time
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from types import FrameType
else:
    import _signal as signal

_INTERRUPTED = 128 + signal.SIGINT
#: FailureKind.HOST_EXHAUSTED, for when `harness.errors` cannot be read either.
_UNLOADABLE = 18
#: What an orderly end may take; it takes some 0.1 s.
_ORDERLY_SECONDS = 3.0


def main() -> None:
    """Run ``iobmd`` and end this process with its exit code."""
    interruptible = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
    if interruptible:
        signal.signal(signal.SIGINT, _leave_at_once)
    _have_standard_streams()
    try:
        from harness import cli  # noqa: PLC0415  after the handler is in place
    except (OSError, MemoryError) as error:  # not even a file of ours can be read
        sys.stderr.write(f"iobmd: cannot be loaded: {error or 'no memory'}\n")
        sys.exit(_UNLOADABLE)
    code = _INTERRUPTED
    try:
        try:
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) == signal.SIG_DFL:
                    signal.signal(number, _unwind)
            if interruptible:
                signal.signal(signal.SIGINT, _interrupt)
            code = cli.main()
        except SystemExit as leaving:  # argparse, or _unwind
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left that could be interrupted
    except KeyboardInterrupt:  # a second one while the first was dealt with, or one in these lines
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(_flushed(code, cli.exit_code_of))


def _leave_at_once(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _in_order_or_else(code: int) -> None:
    """Leave the end in order so much time; a signal may have come where it breaks what that needs."""
    signal.signal(signal.SIGALRM, lambda *_: os._exit(code))  # QEMU goes with us, whatever happens
    signal.setitimer(signal.ITIMER_REAL, _ORDERLY_SECONDS)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    _in_order_or_else(128 + number)
    raise KeyboardInterrupt


def _unwind(number: int, _frame: FrameType | None) -> None:
    """End in order: every machine is ended, every private folder is removed.  The next signal just kills."""
    signal.signal(number, signal.SIG_DFL)
    _in_order_or_else(128 + number)
    raise SystemExit(128 + number)


def _have_standard_streams() -> None:
    """Where a stream is closed, nothing else may get its number: what is printed would go there."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest free number
        os.set_inheritable(fd, True)
    os.close(fd)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  it lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def _flushed(code: int, code_of: Callable[[OSError], int]) -> int:
    """Write out what is buffered, here, where an error can still be told; the exit code then."""
    said = ""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(1)  # the reader has had enough; what was found out stays true
    except OSError as error:
        _silence(1)
        code = code or code_of(error)
        said = f"iobmd: standard output cannot be written: {error.strerror}\n"
    try:
        sys.stderr.write(said)
        sys.stderr.flush()
    except OSError:
        _silence(2)
    return code


def _silence(stream: int) -> None:
    """Let the interpreter's own flush at the end find something to write to."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)

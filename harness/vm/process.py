# SPDX-License-Identifier: MIT
"""Starting a process that cannot outlive us, and ending it for certain."""

import contextlib
import os
import queue
import select
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Final

from harness.errors import HostLacks, exhaustion
from harness.vm.errors import QemuStuck, Scene, describe_status

#: Seconds that each step of the ladder quit -> SIGTERM -> SIGKILL may take.
GRACE_SECONDS: Final = 2.0
_KILL_SECONDS: Final = 10.0
#: In which proc(5) counts; fixed on x86 (include/asm-generic/param.h).
_USER_HZ: Final = 100
_PF_EXITING: Final = 4  # include/linux/sched.h; part of proc(5)'s flags

#: The parent may die after the fork and before prctl(PR_SET_PDEATHSIG) took effect. Then nobody is left to
#: deliver the signal, but the parent pid has changed: look at it once the signal is armed.
_STILL_PARENT: Final = 'test "$PPID" = "$0" && exec "$@"'


def guarded(argv: Sequence[str]) -> list[str]:
    """The command line that runs ``argv`` and lets the kernel kill it the moment this process is gone.

    Raises:
        HostLacks: ``setpriv`` is missing.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise HostLacks(
            "the program 'setpriv' is missing",
            tried="looking for it in PATH: it ties QEMU's life to this process",
            hint="install util-linux 2.33 or later (apt-get install util-linux)",
        )
    # execve keeps the death signal and the pid, so the shell and setpriv leave nothing of themselves.
    return [setpriv, "--pdeathsig", "KILL", "/bin/sh", "-c", _STILL_PARENT, str(os.getpid()), *argv]


def process_stat(pid: int) -> tuple[str, float]:
    """What proc(5) says of a process: its state's letter, and the processor time it has used, in seconds.

    Returns:
        ``("", 0.0)`` when there is none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / _USER_HZ


def is_exiting(pid: int) -> bool:
    """Whether a process is on its way out of the kernel; its files close before it can be reaped."""
    try:
        flags = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6]
    except OSError:
        return True
    return bool(int(flags) & _PF_EXITING)


class Process:
    """A child process with exactly one owner."""

    def __init__(self, popen: "subprocess.Popen[bytes]") -> None:
        self._popen = popen
        self._lock = threading.Lock()
        self._pidfd = -1
        with contextlib.suppress(OSError):  # a seccomp profile may forbid it; wait() then polls
            self._pidfd = os.pidfd_open(popen.pid)

    @property
    def pid(self) -> int:
        """The process id; it stays reserved until the process was reaped."""
        return self._popen.pid

    def status(self) -> int | None:
        """None while it runs; afterwards the exit code, or the negated signal number. Never blocks."""
        with self._lock:
            return self._popen.poll()

    def wait(self, seconds: float) -> int | None:
        """Waits for the end, at most ``seconds``; returns like `status`."""
        status = self.status()
        if status is not None or seconds <= 0:
            return status
        if self._pidfd >= 0:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            poller.poll(seconds * 1000)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(seconds)
        return self.status()

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal; a process that has ended already is no error."""
        with self._lock:
            self._popen.send_signal(number)

    def end(self, ask: Callable[[], None] | None = None, grace: float = GRACE_SECONDS) -> int:
        """Ends the process and reaps it: ask, SIGTERM, SIGKILL. Idempotent.

        Args:
            ask: requests a clean end; its exceptions are ignored, for the next step does not depend on it.
            grace: seconds to wait after asking, and again after SIGTERM.

        Returns:
            The wait status, as from `status`.

        Raises:
            QemuStuck: it is still there seconds after SIGKILL.
        """
        try:
            status = self.status()
            if status is None and ask is not None:
                with contextlib.suppress(Exception):
                    ask()
                    status = self.wait(grace)
            if status is None:
                self.signal(signal.SIGTERM)
                status = self.wait(grace)
        finally:  # also when the user presses Ctrl-C in the middle of the above
            status = self._kill()
        return status

    def _kill(self) -> int:
        if self.status() is None:
            self.signal(signal.SIGKILL)
        status = self.wait(_KILL_SECONDS)
        if status is None:
            raise QemuStuck(
                f"process {self.pid} does not end",
                scene=Scene(
                    argv=tuple(map(str, self._popen.args)) if isinstance(self._popen.args, list) else ()
                ),
                tried=f"SIGKILL, then waiting {_KILL_SECONDS:.0f} s",
                hint=f"see cat /proc/{self.pid}/stack; the host kernel is holding it",
            )
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return status

    def __repr__(self) -> str:
        status = self.status()
        return f"<Process {self.pid} {'running' if status is None else describe_status(status)}>"


def spawn(argv: Sequence[str], *, pass_fds: Sequence[int], log: Path) -> Process:
    """Starts a program that dies with us.

    It gets a session of its own: Ctrl-C at the terminal reaches only this process, which then ends it in
    order.

    Args:
        argv: program and arguments.
        pass_fds: descriptors it inherits, under the same numbers.
        log: file for its standard output and error; its standard input is empty.

    Raises:
        HostLacks: it cannot be started; a HostExhausted where that is for lack of something.
    """
    command = guarded(argv)
    with log.open("ab") as output:
        future = _SPAWNER.submit(command, tuple(pass_fds), output)
        try:
            return future.result()
        except OSError as err:
            lack = exhaustion(err, f"starting {argv[0]}", forking=True)
            raise lack or HostLacks(f"cannot start {argv[0]}", observed=str(err)) from err
        except BaseException:
            # Interrupted while the other thread forks: whatever it started must not stay.
            future.add_done_callback(_discard)
            raise


def _discard(future: "Future[Process]") -> None:
    if future.exception() is None:
        future.result().end(grace=0)


class _Spawner:
    """One thread that forks for everybody and never ends before the process does.

    Linux sends the parent-death signal when the *thread* that forked ends, not the process (prctl(2)): a
    machine started from a short-lived worker thread would be killed with that thread.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[list[str], tuple[int, ...], IO[bytes], Future[Process]]] = (
            queue.SimpleQueue()
        )
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, command: list[str], fds: tuple[int, ...], output: IO[bytes]) -> "Future[Process]":
        with self._lock:
            if self._thread is None:
                # A daemon: it sleeps in the queue until the interpreter is gone.
                self._thread = threading.Thread(target=self._serve, name="iobmd-spawner", daemon=True)
                self._thread.start()
        future: Future[Process] = Future()
        self._jobs.put((command, fds, output, future))
        return future

    def _serve(self) -> None:
        while True:
            command, fds, output, future = self._jobs.get()
            try:
                popen = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    close_fds=True,
                    pass_fds=fds,
                    start_new_session=True,
                )
                future.set_result(Process(popen))
            except BaseException as err:
                future.set_exception(err)
            # The frame must not keep the last machine's objects alive until the next one starts.
            del command, fds, output, future


_SPAWNER: Final = _Spawner()

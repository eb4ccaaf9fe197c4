# SPDX-License-Identifier: MIT
"""Running other people's programs: argv lists, a clean environment, a deadline, errors that quote them."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import HarnessError, HostLacks, named_exhaustion
from harness.images.paths import cache_root
from harness.images.store import no_space

TAIL = 40
"""Lines of a failed program's output that an error carries."""

_PASSED_ON = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE")
NO_SPACE_TEXTS = ("No space left on device", "enough free space", "Disk quota exceeded")
"""What programs print in the C locale when the disk is full: strerror(3), and apt-get before a download."""


class ProgramFailed(HarnessError):
    """A program that was started did not do its job (exit code 2).

    Attributes:
        output: everything it printed.
    """

    def __init__(self, summary: str, *, tried: str, observed: str, hint: str, output: str) -> None:
        super().__init__(
            summary, tried=tried, observed=observed, hint=hint, evidence=output.splitlines()[-TAIL:]
        )
        self.output = output


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which no CFLAGS, MAKEFLAGS or locale of the caller's changes a build."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"} | dict(extra or {})


def need(program: str, package: str) -> str:
    """Return the full path of a program.

    Raises:
        HostLacks: it is not installed; the hint names the Debian package.
    """
    found = shutil.which(program)
    if found is None:
        raise HostLacks(
            f"the program {program} is not installed",
            tried=f"looked for {program} in PATH",
            hint=f"apt-get install {package}, or run images/bootstrap, which installs all that is needed",
        )
    return found


def run(
    argv: Sequence[str],
    *,
    doing: str,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str = "",
    pass_fds: Sequence[int] = (),
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; stdout and stderr are kept together.

    Args:
        argv: program and arguments.
        doing: what this is for, in the words of an error message.
        timeout: seconds after which it and its children are killed.
        cwd: where to run it.
        env: the environment; `clean_environment` by default.
        hint: what to type when it fails.
        pass_fds: descriptors it inherits.
        check: raise when it exits with anything but 0.

    Raises:
        ProgramFailed: it exited with another code than 0, or ran into the deadline.
        HostLacks: it is not installed, or the disk is full.
    """
    process = start(argv, cwd=cwd, env=env, pass_fds=pass_fds)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(process)
        output, _ = process.communicate()
        raise ProgramFailed(
            f"{argv[0]} did not finish within {timeout:.0f} s",
            tried=" ".join(argv),
            observed="killed at the deadline",
            hint=hint,
            output=output,
        ) from None
    except BaseException:
        kill_group(process)
        process.communicate()
        raise
    if check:
        raise_for(process.returncode, argv, output, doing=doing, hint=hint)
    return subprocess.CompletedProcess(list(argv), process.returncode, output, "")


def start(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[str]:
    """Start a program in a group of its own that dies with this process."""
    leash = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    try:
        with named_exhaustion(" ".join(argv), forking=True):
            return subprocess.Popen(
                [*leash, *argv],
                cwd=cwd,
                env=dict(env) if env is not None else clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                pass_fds=pass_fds,
            )
    except FileNotFoundError:
        raise HostLacks(
            f"the program {argv[0]} is not installed", tried=" ".join(argv), hint="run images/bootstrap"
        ) from None


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a program started by `start` together with its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def raise_for(code: int, argv: Sequence[str], output: str, *, doing: str, hint: str) -> None:
    """Raise what an exit code means, or return for 0.

    Raises:
        ProgramFailed: any code but 0.
        HostLacks: the output says that the disk is full.
    """
    if code == 0:
        return
    complaint = next((line for line in output.splitlines() if any(t in line for t in NO_SPACE_TEXTS)), None)
    if complaint is not None:
        raise no_space(cache_root(), doing, complaint.strip())
    observed = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
    raise ProgramFailed(f"{doing} failed", tried=" ".join(argv), observed=observed, hint=hint, output=output)

# SPDX-License-Identifier: MIT
"""What is done with a driver while it is audited: a script in the guest, or Python on the host."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.audit.errors import ExerciseFailed
from harness.audit.traffic import exercise as traffic
from harness.errors import BadInput, HarnessError

if TYPE_CHECKING:
    from harness.audit.run import AuditRun

SCRIPT_SECONDS = 300.0
"""What a script may take, times the machine's scale of deadlines."""

TRAFFIC = "traffic"
"""The exercise that uses every disk and network of the machine, and compares every byte at the far end."""

_IN_GUEST = "/tmp/exercise"  # noqa: S108  the guest's, which nobody else uses
_SHOWN = 12


@dataclass(frozen=True)
class Exercise:
    """Something to do with a driver.

    Attributes:
        name: for the report.
        act: does it.
    """

    name: str
    act: Callable[[AuditRun], object]

    def __call__(self, run: AuditRun) -> None:
        """Do it, and have the report say so.

        Raises:
            ExerciseFailed: it was not done to its end, and the guest is alive.
            GuestFailure: the guest died of it.
        """
        run.exercised = ", then ".join(filter(None, (run.exercised, self.name)))
        try:
            self.act(run)
        except HarnessError:
            raise
        except Exception as error:
            raise _failed(self.name, error) from error


def exercise_of(word: str) -> Exercise:
    """Return the exercise a word means.

    Args:
        word: ``traffic``, or path of a Python file with ``def exercise(run)``, or of a script for the guest's
            ``sh``.

    Raises:
        BadInput: there is no such file, or it has no such function.
    """
    if word == TRAFFIC:
        return Exercise(
            "traffic through its disks and networks", lambda run: traffic(run.guest, meanwhile=run.look)
        )
    file = Path(word)
    if not file.is_file():
        raise BadInput(
            f"there is no exercise {word}",
            hint=f"name a script for the guest's sh, a Python file with def exercise(run), or {TRAFFIC}",
        )
    if file.suffix == ".py":
        return Exercise(f"{word}, exercise(run)", _function(file))
    return Exercise(f"{word}, by the guest's sh", lambda run: _script(run, file))


def _function(file: Path) -> Callable[[AuditRun], object]:
    spec = importlib.util.spec_from_file_location(f"iobmd_exercise_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise BadInput(f"{file} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))  # as for `python FILE`: it may import its neighbours
    try:
        spec.loader.exec_module(module)
    except HarnessError:
        raise
    except Exception as error:
        raise BadInput(
            f"{file} cannot be loaded", observed=f"{type(error).__name__}: {error}", evidence=_trace(error)
        ) from error
    finally:
        sys.path.pop(0)
    found = getattr(module, "exercise", None)
    if not callable(found):
        raise BadInput(
            f"{file} has no function exercise", hint="def exercise(run): run.sh('...')  # run is an AuditRun"
        )
    function: Callable[[AuditRun], object] = found
    return function


def _script(run: AuditRun, file: Path) -> None:
    shell, scale = run.guest.ssh, run.guest.deadlines.scale
    shell.put(file, _IN_GUEST)
    done = shell.run(["sh", _IN_GUEST, run.name], timeout=SCRIPT_SECONDS * scale)
    if done.status:
        said = (done.stdout + done.stderr).decode(errors="replace").splitlines()
        raise ExerciseFailed(
            f"the exercise {file} failed",
            tried=f"sh {file.name} {run.name}, in the guest",
            observed=f"exit status {done.status}",
            hint="the guest's shell is busybox's; set -x in the script shows how far it came",
            evidence=said[-_SHOWN:],
        )


def _failed(name: str, error: Exception) -> ExerciseFailed:
    return ExerciseFailed(
        f"the exercise {name} failed",
        observed=f"{type(error).__name__}: {error}",
        evidence=_trace(error),
    )


def _trace(error: Exception) -> list[str]:
    lines = "".join(traceback.format_exception(error, limit=-3)).splitlines()
    return lines[-_SHOWN:]

# SPDX-License-Identifier: MIT
"""A mistake of the harness's own: kept in a file, told in a paragraph."""

import contextlib
import os
import platform
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

from harness.errors import HarnessBug, HarnessError
from harness.images import cache_root

_KEPT: Final = 20


def report_bug(error: BaseException, argv: Sequence[str]) -> HarnessBug:
    """Write down what is needed to understand *error*; return what to tell about it.

    The report goes to ``bugs`` in the cache, or to the temporary folder where that cannot be written; where
    neither can, the traceback is in the evidence instead.

    Args:
        error: what reached the top.
        argv: the words after ``iobmd``.
    """
    trace = traceback.format_exception(error)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f"{Path(frame.filename).name}:{frame.lineno}, in {frame.name}" for frame in last)
    command = shlex.join(("iobmd", *argv))
    head = (
        f"command: {command}",
        f"iobmd {version('iobmd')}, Python {platform.python_version()}, {platform.platform()}",
        f"program: {sys.executable}, process {os.getpid()}",
        "",
    )
    file = _keep("\n".join(head) + "\n" + "".join(trace))
    said = str(error).partition("\n")[0]
    told = HarnessBug(
        f"this is a mistake in iobmd itself: {type(error).__name__}" + (f": {said}" if said else ""),
        tried=command,
        observed=where,
        hint=f"report it, and send {file} along" if file else "report it with the lines below",
        evidence=() if file else "".join(trace).splitlines(),
    )
    told.__cause__ = error
    return told


def _keep(text: str) -> Path | None:
    name = f"bug-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for folder in _folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, errors="backslashreplace")
            for old in sorted(folder.glob("bug-*.txt"))[:-_KEPT]:
                old.unlink(missing_ok=True)
            return folder / name
    return None


def _folders() -> Iterator[Path]:
    with contextlib.suppress(HarnessError, OSError, RuntimeError):  # no home, or a path that cannot be
        yield cache_root() / "bugs"
    with contextlib.suppress(OSError):  # nowhere to write at all
        yield Path(tempfile.gettempdir()) / f"iobmd-bugs-{os.getuid()}"

# SPDX-License-Identifier: MIT
"""Running one failed test again: what its results folder says about it, and whether that can still be had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import xxhash

from harness.errors import BadInput, HarnessError
from harness.images import Kernel, Progress, SilentProgress, prepare_kernel
from harness.options import MachineOptions

RECORD: Final = "repro.json"
FORMAT: Final = 1
_GONE: Final = (4, 5)  # pytest.ExitCode.USAGE_ERROR and NO_TESTS_COLLECTED


@dataclass(frozen=True)
class KernelFiles:
    """The kernel a test ran on.

    Attributes:
        name: as it was asked for: a recipe, or a vmlinuz.
        release: as ``uname -r`` says it.
        vmlinuz: its file.
        modules: its ``lib/modules/<release>``.
        headers: its build tree.
        digest: of the vmlinuz.
    """

    name: str
    release: str
    vmlinuz: str
    modules: str
    headers: str
    digest: str

    @classmethod
    def of(cls, name: str, kernel: Kernel) -> Self:
        """Return the description of a kernel that was prepared.

        Raises:
            OSError: its file cannot be read any more.
        """
        vmlinuz, modules, headers = map(str, (kernel.vmlinuz, kernel.modules, kernel.headers))
        return cls(name, kernel.release, vmlinuz, modules, headers, digest(kernel.vmlinuz))


@dataclass(frozen=True)
class Record:
    """How to run a test again.

    Attributes:
        test: its id as pytest takes it.
        root: the folder to start pytest in.
        kernel: it ran on.
        machine: pytest's words for kernel and machine.
        settings: further words: plugins, ini values, seeds.
        environment: variables that decide how a test goes; None: it was not set.
        failure: the kind's word, or ``""``.
    """

    test: str
    root: str
    kernel: KernelFiles
    machine: tuple[str, ...]
    settings: tuple[str, ...] = ()
    environment: Mapping[str, str | None] = field(default_factory=dict)
    failure: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what `load` reads."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the record of a results folder.

        Raises:
            BadInput: it is none, or its record is damaged or of another version.
        """
        if not folder.is_dir():
            raise BadInput(f"there is no folder {folder}", hint=_HINT)
        file = folder / RECORD
        try:
            values = json.loads(file.read_text())
            found = values.pop("format")
            if found != FORMAT:
                raise BadInput(
                    f"{file} was written by another version of iobmd",
                    observed=f"format {found}, not {FORMAT}",
                    hint="repeat.sh beside it has the command as it was",
                )
            values["kernel"] = KernelFiles(**values["kernel"])
            for name in ("machine", "settings"):
                values[name] = tuple(values[name])
            return cls(**values)
        except FileNotFoundError as error:
            inside = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{RECORD}"))[:5])
            inside = f"; folders in it that have one: {inside}" if inside else ""
            raise BadInput(
                f"{folder} is not the results folder of a failed test",
                observed=f"it has no {RECORD}{inside}",
                hint=_HINT,
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{file} cannot be read", observed=f"{type(error).__name__}: {error}") from error


_HINT: Final = "iobmd repro results/latest/TEST; pytest prints the folder beside every failure"


def digest(file: Path) -> str:
    """Return what tells one kernel's file from another's."""
    return xxhash.xxh3_128_hexdigest(file.read_bytes())


def run(folder: Path, progress: Progress | None = None) -> int:
    """Run the test of a results folder again, on the same kernel and machine, with the same seeds.

    Args:
        folder: of the test, as pytest printed it.
        progress: told what is looked for.

    Returns:
        What pytest exits with.

    Raises:
        BadInput: the folder, the kernel or the test cannot be had.
    """
    record = Record.load(folder)
    root = Path(record.root)
    file = root / record.test.partition("::")[0]
    if not file.is_file():
        raise BadInput(
            f"the test is gone: there is no file {file}",
            tried=f"to run {record.test} again",
            hint="check out the sources it was run with",
        )
    machine = kernel_words(record, progress or SilentProgress())
    argv = [sys.executable, "-m", "pytest", record.test, *machine, *record.settings]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    for name, value in record.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    status = subprocess.run(argv, cwd=root, env=environment, check=False).returncode
    if status in _GONE:
        raise BadInput(
            f"the test is gone: pytest does not find {record.test}",
            observed=f"its exit code is {status}; what it said is above",
            hint="check out the sources it was run with",
        )
    return status


def kernel_words(record: Record, progress: Progress) -> Sequence[str]:
    """Return pytest's words for the very kernel of a record.

    Raises:
        BadInput: it is neither what its name stands for today, nor in the cache.
    """
    then, words = record.kernel, list(record.machine)
    now = _what_it_is_today(then, words, progress)
    if now == then.digest:
        return words
    files = (Path(then.vmlinuz), Path(then.modules), Path(then.headers))
    asked = words[words.index("--kernel") + 1]
    if asked == then.name and all(path.exists() for path in files) and digest(files[0]) == then.digest:
        parts = zip(("--kernel", "--modules", "--headers"), files, strict=True)
        return [*(word for name, path in parts for word in (name, str(path))), *_without_kernel(words)]
    raise BadInput(
        f"the kernel {then.release} that the test ran on is gone",
        tried=f"to find {then.vmlinuz}",
        observed=now if now.startswith("(") else f"{then.name} is another kernel by now",
        hint="repeat.sh in the folder runs the test on the one there is",
    )


def _what_it_is_today(then: KernelFiles, words: Sequence[str], progress: Progress) -> str:
    """The digest of the kernel that its name stands for, or why there is none, in parentheses."""
    modules, headers = (
        Path(words[words.index(name) + 1]) if name in words else None for name in ("--modules", "--headers")
    )
    try:
        options = MachineOptions(kernel=then.name, modules=modules, headers=headers)
        return digest(prepare_kernel(options.selector, progress).vmlinuz)
    except (HarnessError, OSError) as error:
        return f"({getattr(error, 'summary', error)})"


def _without_kernel(words: Sequence[str]) -> list[str]:
    """The words but for those that name a kernel or its parts; each of them takes the word after it."""
    named = {at + n for at, word in enumerate(words) for n in (0, 1)
             if word in ("--kernel", "--modules", "--headers")}  # fmt: skip
    return [word for at, word in enumerate(words) if at not in named]

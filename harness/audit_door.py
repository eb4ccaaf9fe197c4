# SPDX-License-Identifier: MIT
"""``iobmd audit``: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from harness.audit import AuditResult, AuditRun, Exercise, exercise_of, kind_of, rule, rules
from harness.audit.exercises import TRAFFIC
from harness.audit.result import exit_code
from harness.auditing import Equipment, audit_guest, failures_of, keep_evidence, prepared
from harness.errors import BadInput, FailureKind, GuestFailure
from harness.images import Progress, RichProgress, load_recipes, prepare_kernel
from harness.machines import ALL, find_machine, fitting, machines_named
from harness.options import MachineOptions, add_options, from_namespace, prepare
from harness.report import (
    audits_to_json,
    check_writable,
    print_audit,
    print_rule,
    print_rules,
    report_console,
    write_text,
)

NOTHING: Final = "none"

_ABOUT: Final = """\
Watches a driver that nobody changed: every buffer and mapping it gets from the kernel's DMA API is recorded
in the guest, looked at from outside, and judged by the rules that `iobmd audit --list-rules` lists.  The
driver is loaded, used by an exercise, unloaded; each finding names rule, line and evidence."""

_EPILOG: Final = f"""\
what PATH is:
  ./mydriver       a folder with a Kbuild or Makefile: it is built for each kernel
  ./mydriver.ko    a module that is built already, for exactly that kernel
  e1000e           a module of the kernel's own, with what it depends on

what --device takes (repeat it for several):
  nvme, ahci, virtio-blk      an empty disk of 64 MiB behind that controller
  e1000e, virtio-net          a network card on a network of its own that leads nowhere
  edu,dma_mask=0xffffffff     anything else is a -device value of QEMU's

what --exercise takes (repeat it; they come in that order):
  FILE             a script for the guest's shell, busybox sh; its first argument is the driver's name
  FILE.py          Python on this host: def exercise(run): run.sh("dd if=/dev/nvme0n1 of=/dev/null count=64")
  {TRAFFIC}          reads and writes all disks and networks, and compares every byte at the far end;
                   it is what happens by itself with such a --device
  {NOTHING}             only load and unload

exit codes:
  0 nothing found; 1 something found; 14 nothing found, but the kernel itself complained;
  12, 13, ... the guest died under the driver (what was found until then is printed); `iobmd --help` has all

examples:
  iobmd audit ./mydriver                                    builds it, loads it, unloads it, reports
  iobmd audit e1000e --device e1000e --kernel debian-6.1    a driver of the kernel's, with traffic
  iobmd audit ./mydriver --device edu --exercise use.sh     with a device, and something to do
  iobmd audit ./mydriver --machine intel-iommu              behind an IOMMU, which stops stray transfers
  iobmd audit ./mydriver --kernel debian-6.1-cloud,debian-6.12-cloud --json audit.json
  iobmd audit --rule leak-on-remove                         what a rule wants, and why

in pytest: with audit.module("./mydriver", devices=["edu"]) as run: ...; assert run.findings == []
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``iobmd audit``, the machine's among them."""
    parser.description = _ABOUT
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "path",
        metavar="PATH",
        nargs="?",
        help="the driver: a folder, a .ko, or the name of a kernel's module",
    )
    add("--device", metavar="NAME", action="append", default=[], help="a device for the machine; see below")
    add(
        "--exercise",
        metavar="WHAT",
        action="append",
        default=[],
        help="what to do with the driver; see below",
    )
    add("--params", metavar="WORDS", default="", help="the driver's module parameters: 'debug=1 ring=64'")
    add("--module", metavar="NAME", default="", help="which of a folder's modules, where it builds several")
    add("--load", metavar="NAME", action="append", default=[],
        help="load this module of the kernel's first, although the driver does not depend on it")  # fmt: skip
    add("--json", metavar="FILE", type=Path, help="write all of it to FILE, too")
    add("--results", metavar="DIR", type=Path, default=Path("results"),
        help="where a guest that died leaves its console and QEMU's log; default %(default)s")  # fmt: skip
    add("-v", "--verbose", action="store_true",
        help="print every place that made a buffer, and call stacks")  # fmt: skip
    add("--list-rules", action="store_true", help="list the rules and end")
    add("--rule", metavar="RULE", action="append", default=[], help="say all about a rule and end")
    add_options(add)
    add("--refresh", action="store_true", help="look for a newer version of the recipes' kernels first")
    parser.set_defaults(run=main)


def main(arguments: argparse.Namespace) -> int:
    """Audit on every kernel and machine that was asked for; returns the exit code.

    Raises:
        BadInput: something that was asked for is not there, said before anything is downloaded.
        HarnessError: the audit could not even begin.
        KeyboardInterrupt: Ctrl-C; what was found until then is printed.
    """
    if arguments.list_rules or arguments.rule:
        return _explain(arguments)
    if not arguments.path:
        raise BadInput("which driver?", hint="iobmd audit ./mydriver; iobmd audit --help has more")
    kind_of(arguments.path)
    if arguments.json:
        check_writable(arguments.json)
    equipment = Equipment(tuple(arguments.device))
    exercises = _exercises(arguments.exercise, equipment)
    wanted = list(_wanted(arguments))
    job = _Job(arguments, equipment, exercises, RichProgress())
    results: list[AuditResult] = []
    try:
        for options in wanted:
            result = job.on(options)
            results += [result] if result is not None else []
    finally:
        if arguments.json and results:
            write_text(audits_to_json(results), arguments.json)
    if not results:
        raise BadInput(
            f"there is no kernel and machine to audit {arguments.path} on",
            hint="the lines above say why each was left out",
        )
    if len(results) > 1:
        _compare(results)
    return exit_code(results)


def _explain(arguments: argparse.Namespace) -> int:
    console = report_console()
    named = [rule(name) for name in arguments.rule]
    for one in named:
        print_rule(one, console)
    if arguments.list_rules:
        print_rules(rules().values(), console)
    return 0


def _exercises(words: Sequence[str], equipment: Equipment) -> tuple[Exercise, ...]:
    if NOTHING in words and len(words) > 1:
        raise BadInput(f"--exercise {NOTHING} and something to do", hint="leave one of them out")
    if not words:
        usual = equipment.exercise
        return (usual,) if usual is not None else ()
    return tuple(exercise_of(word) for word in words if word != NOTHING)


def _wanted(arguments: argparse.Namespace) -> Iterator[MachineOptions]:
    """Yield every kernel with every machine; what does not exist is said before the first is prepared."""
    names = list(load_recipes()) if arguments.kernel == ALL else arguments.kernel.split(",")
    for name in filter(None, (name.strip() for name in names)):
        for machine in machines_named(arguments.machine):
            chosen = copy(arguments)
            chosen.kernel, chosen.machine = name, machine.name
            yield from_namespace(chosen)


@dataclass(frozen=True)
class _Job:
    """What is the same on every kernel and machine."""

    arguments: argparse.Namespace
    equipment: Equipment
    exercises: tuple[Exercise, ...]
    progress: Progress

    def on(self, options: MachineOptions) -> AuditResult | None:
        """Audit on one kernel and machine, print the report; None where the kernel cannot run on it.

        Raises:
            HarnessError: it could not begin.
            KeyboardInterrupt: after what was found until then was printed.
        """
        kernel = prepare_kernel(options.selector, self.progress, refresh=options.refresh)
        _, left_out = fitting([find_machine(options.machine)], kernel, asked=self.arguments.machine)
        if left_out:
            self.progress.note(f"left out: {left_out[0]}")
            return None
        image = prepare(replace(options, refresh=False), self.progress)
        try:
            subject, ledger = prepared(
                self.arguments.path,
                image,
                self.equipment,
                self.progress,
                module=self.arguments.module,
                also=self.arguments.load,
            )
        except BadInput as error:
            if self.arguments.kernel != ALL:
                raise
            self.progress.note(f"left out: {error.summary}")
            return None
        asked = ", ".join(filter(None, (options.machine, str(self.equipment))))
        with audit_guest(options, image, self.equipment, self.progress) as guest:
            run = AuditRun(guest, subject, ledger, params=self.arguments.params, asked=asked)
            try:
                self._exercise(run)
            finally:
                if run.begun:
                    print_audit(run.result(), verbose=self.arguments.verbose)
            if run.begun and isinstance(run.failure, GuestFailure):
                kept = keep_evidence(run, self.arguments.results, audits_to_json([run.result()]))
                self.progress.note(f"\niobmd: {kept}")
        if run.failure is not None:
            if not run.begun:
                raise run.failure
            self.progress.note(f"\niobmd: {run.failure}")
        return run.result()

    def _exercise(self, run: AuditRun) -> None:
        title = f"Auditing {run.name} on {run.guest.hello.release}"
        with self.progress.task(title) as task, failures_of(run), run:
            for exercise in self.exercises:
                task.update(exercise.name)
                exercise(run)


def _compare(results: Sequence[AuditResult]) -> None:
    """Say in a line for each how several audits ended."""
    console = report_console()
    console.print()
    for result in results:
        count = len(result.findings)
        end = f"{count} finding{'' if count == 1 else 's'}" if count else "no findings"
        if result.failure is not None:
            end += f", {result.failure.kind.word}"
        elif result.complaints and not result.findings:
            end += f", {FailureKind.KERNEL_TAINTED.word}"
        console.print(f"{result.provenance.release}  {result.asked}: {end}", soft_wrap=True)

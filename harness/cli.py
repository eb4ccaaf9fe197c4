# SPDX-License-Identifier: MIT
"""The console door: ``iobmd check``, ``audit``, ``clauses``, ``machines``, ``boot``, ``ssh``, ``bench``, ...

The exit code says what kind of failure it was: 0 all well, the others are `harness.errors.FailureKind`.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from harness import attach, audit_door, doctor, repro
from harness.bench import door as bench
from harness.bug import report_bug
from harness.contract.catalogue import catalogue
from harness.contract.engine import all_checks, judge
from harness.contract.model import Clause, ClauseResult, Judgement, Verdict
from harness.errors import FailureKind, GuestFailure, HarnessError, exhaustion, interruption
from harness.forensics import diagnosed
from harness.history import last_verdicts, remember
from harness.images import Progress, RichProgress, prepare_kernel
from harness.iokit import IOKit
from harness.machines import MACHINES, NamedMachine, find_machine, fitting, machines_named
from harness.options import MachineOptions, add_options, from_namespace, make_guest, prepare
from harness.oracle import Oracle
from harness.report import (
    Proof,
    check_writable,
    print_clauses,
    print_judgement,
    print_machines,
    report_console,
    write_json,
    write_machines,
)
from harness.vm import QemuDied

#: What a shell shows for a program that SIGPIPE ended: somebody closed our standard output.
_READER_GONE = 141

_EPILOG = """\
exit codes:
{codes}

examples:
  iobmd check                              judge the default kernel
  iobmd check --kernel debian-6.12-cloud   another one
  iobmd check --group C -v                 one group, with all the evidence
  iobmd check --kernel ./vmlinuz --modules ./lib/modules/6.9.0 --headers ./linux
  iobmd audit ./mydriver                   judge the DMA buffers of a driver, unchanged
  iobmd audit e1000e --device e1000e --kernel debian-6.1
  iobmd clauses F04                        what F04 promises, who says so, how it is decided
  iobmd boot                               look around in a guest (Ctrl-] leaves)
  iobmd bench rpc start                    how fast, beside peers measured in the same run
  iobmd bench boot                         where the milliseconds of a boot go
  iobmd ssh dmesg                          one command in a guest, its output and exit status
  iobmd repro results/latest/TEST          one failed test again
  iobmd check --machine all                on every machine there is; `iobmd machines` lists them
  iobmd doctor                             what this host can do, what is missing
"""


_SSH = """\
Boots a guest and opens a shell in it, or runs one command with its output, input and exit status, as ssh
does.  The connection runs over a virtio-serial port: no network, no TCP port; both ends check each other's
key.  The guest ends when the shell or the command does."""

_SSH_EXAMPLES = """\
exit codes: the command's; 255: a signal ended it; otherwise as `iobmd --help` lists them

examples:
  iobmd ssh                                      look around; exit or Ctrl-D leaves
  iobmd ssh cat /proc/iomem                      one command
  iobmd ssh --cpus 2 'dmesg | grep -i smp'       quotes make it the guest's pipe
  iobmd ssh --put ./probe:/tmp/probe /tmp/probe -v
  iobmd ssh --get /tmp/log:./log 'dmesg > /tmp/log'
"""


class _PatientConsole(Console):
    def on_broken_pipe(self) -> None:
        """Print no more, but live on: the exit code stays that of what was found out."""
        with contextlib.suppress(SystemExit):
            super().on_broken_pipe()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors of the harness are printed, not raised.

    Args:
        argv: the words after ``iobmd``; those of the process if None.
    """
    words = sys.argv[1:] if argv is None else argv
    try:
        arguments = _parser().parse_args(words)
        return int(arguments.run(arguments))
    except BrokenPipeError:
        return _READER_GONE
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        stopped = interruption(error)
        if isinstance(stopped, KeyboardInterrupt):
            return _interrupted()
        if stopped is not None:  # what came up while everything was ended is of no interest
            raise stopped from None
        named = error if isinstance(error, HarnessError) else exhaustion(error, "running iobmd")
        if named is None or named.kind is FailureKind.HARNESS_BUG:
            named = report_bug(error, words)
        _tell(str(named), alarming=True)
        return named.exit_code


def _interrupted() -> int:
    _tell("interrupted; nothing is left running")
    return FailureKind.INTERRUPTED.exit_code


def exit_code_of(error: BaseException) -> int:
    """Return what ``iobmd`` exits with for an error that is no HarnessError."""
    named = exhaustion(error, "running iobmd")
    return (named.kind if named is not None else FailureKind.NOT_DONE).exit_code


def exit_codes() -> str:
    """Return the table of exit codes for ``--help``, from `FailureKind` itself."""
    rows = [("0", "", "all well"), *((str(one.exit_code), one.word, one.meaning) for one in FailureKind)]
    return "\n".join(f"  {code:>3}  {word:20} {meaning}" for code, word, meaning in rows)


def _tell(text: str, *, alarming: bool = False) -> None:
    errors = _PatientConsole(stderr=True, highlight=False)
    style = "red" if alarming and errors.is_terminal else None
    with contextlib.suppress(OSError):  # nobody listens: the exit code says it all the same
        errors.print(f"iobmd: {text}", markup=False, soft_wrap=True, style=style)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="iobmd",
        description="Boots a real Linux kernel, creates DMA buffers in it as IOBufferMemoryDescriptor\n"
        "documents them, and judges every claim by evidence taken from outside the guest.",
        epilog=_EPILOG.format(codes=exit_codes()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('iobmd')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    check = commands.add_parser("check", help="judge the contract's clauses on a kernel, print a table")
    check.add_argument("--group", metavar="GROUP|CLAUSE", action="append", default=[],
                       help="only this group or clause (C, C08, ...); may be repeated")  # fmt: skip
    check.add_argument("--json", metavar="FILE", type=Path, help="write verdicts and evidence to FILE, too")
    check.add_argument("-v", "--verbose", action="store_true", help="print the evidence of every clause")
    check.set_defaults(run=_check)

    audit_door.add_arguments(
        commands.add_parser("audit", help="judge the DMA buffers of any driver, unchanged")
    )

    boot = commands.add_parser("boot", help="a shell on the serial console of a guest")
    boot.set_defaults(run=_boot)

    shell = commands.add_parser("ssh", help="a shell, or one command, in a guest, over SSH without a network",
                                description=_SSH, epilog=_SSH_EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    shell.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER,
                       help="what to run, with its arguments; a login shell by default; "
                       "options of iobmd come before it")  # fmt: skip
    shell.add_argument("--put", metavar="LOCAL:REMOTE", action="append", default=[],
                       help="copy a file into the guest first; may be repeated")  # fmt: skip
    shell.add_argument("--get", metavar="REMOTE:LOCAL", action="append", default=[],
                       help="copy a file out of the guest afterwards; may be repeated")  # fmt: skip
    shell.set_defaults(run=_ssh)

    for command in (check, boot, shell):
        add_options(command.add_argument)
        command.add_argument("--refresh", action="store_true",
                             help="look for a newer version of the recipe's kernel first")  # fmt: skip

    again = commands.add_parser(
        "repro", help="run one failed test again, on the same kernel, machine and seeds"
    )
    again.add_argument("folder", metavar="RESULTS_DIR", type=Path,
                       help="what pytest printed beside the failure: results/latest/TEST")  # fmt: skip
    again.set_defaults(run=lambda found: repro.run(found.folder, RichProgress()))

    bench.add_arguments(commands.add_parser("bench", help="how fast it is, beside its peers"))

    kept = commands.add_parser("attach", help="look at a guest that pytest --keep-vm keeps")
    kept.add_argument("socket", metavar="SOCKET", type=Path, help="what pytest printed")
    kept.add_argument("words", metavar="WORD", nargs="*",
                      help=f"{', '.join(attach.WORDS)}; after qmp its command, and arguments as JSON; "
                      "a shell by default")  # fmt: skip
    kept.set_defaults(run=lambda found: attach.attach(found.socket, found.words))

    explain = commands.add_parser("clauses", help="what a clause promises, who says so, how it is decided")
    explain.add_argument(
        "names", metavar="GROUP|CLAUSE", nargs="*", help="C, C08, ...; all of them by default"
    )
    explain.set_defaults(run=_clauses)

    named = commands.add_parser("machines", help="the machines that --machine names")
    named.set_defaults(run=_machines)

    host = commands.add_parser("doctor", help="what this host can do and what is missing")
    host.set_defaults(run=lambda _: doctor.run(_PatientConsole(highlight=False)))
    return parser


def _check(arguments: argparse.Namespace) -> int:
    clauses = catalogue().select(*arguments.group)
    if arguments.json:
        check_writable(arguments.json)
    progress = RichProgress()
    wanted = [_on(arguments, machine) for machine in machines_named(arguments.machine)]
    if len(wanted) == 1:
        return _check_one(arguments, wanted[0], clauses, progress)
    return _check_several(arguments, wanted, clauses, progress)


def _on(arguments: argparse.Namespace, machine: NamedMachine) -> MachineOptions:
    return from_namespace(argparse.Namespace(**vars(arguments) | {"machine": machine.name}))


def _check_one(
    arguments: argparse.Namespace, options: MachineOptions, clauses: tuple[Clause, ...], progress: Progress
) -> int:
    judgement = _judged(options, clauses, progress)
    asked = frozenset(clause.id for clause in clauses)
    print_judgement(judgement, verbose=arguments.verbose, asked=asked)
    if arguments.json:
        write_json(judgement, arguments.json)
    return 1 if judgement.count(Verdict.BROKEN) else 0


def _check_several(
    arguments: argparse.Namespace,
    wanted: list[MachineOptions],
    clauses: tuple[Clause, ...],
    progress: Progress,
) -> int:
    kernel = prepare_kernel(wanted[0].selector, progress, refresh=arguments.refresh)
    machines = [find_machine(options.machine) for options in wanted]
    able, left_out = fitting(machines, kernel, asked=arguments.machine)
    judgements = {}
    for options in wanted:
        if find_machine(options.machine) in able:
            progress.note(f"on {options.machine}: {find_machine(options.machine).about}")
            judgements[options.machine] = _judged(replace(options, refresh=False), clauses, progress)
    print_machines(judgements, left_out, verbose=arguments.verbose)
    if arguments.json:
        write_machines(judgements, left_out, arguments.json)
    return 1 if any(judgement.count(Verdict.BROKEN) for judgement in judgements.values()) else 0


def _judged(options: MachineOptions, clauses: tuple[Clause, ...], progress: Progress) -> Judgement:
    """Judge on one machine; what was decided before a guest died is told."""
    image = prepare(options, progress)
    decided: list[ClauseResult] = []
    try:
        with make_guest(options, image, progress) as booted, diagnosed(booted), IOKit(booted) as iokit:
            judgement = judge(booted, iokit, Oracle(booted.machine), clauses, progress, into=decided)
    except GuestFailure:
        if decided:
            last = decided[-1].clause.id
            progress.note(f"{len(decided)} of {len(clauses)} clauses were judged before, the last was {last}")
        raise
    remember(judgement)
    return judgement.covering(catalogue().values(), "not asked for in this run")


def _machines(_: argparse.Namespace) -> int:
    console = _PatientConsole(highlight=False)
    for machine in MACHINES.values():
        console.print(f"{machine.name:<18}{machine.about}", markup=False, soft_wrap=True)
        console.print(f"{'':<18}{machine.describe()}", markup=False, soft_wrap=True, style="dim")
        if machine.drivers:
            needs = ", ".join(machine.drivers)
            console.print(f"{'':<18}only for kernels that have {needs}", soft_wrap=True, style="dim")
    return 0


def _clauses(arguments: argparse.Namespace) -> int:
    clauses = catalogue().select(*arguments.names)
    last = {name: f"{one.verdict} on {one.release}, {one.when}" for name, one in last_verdicts().items()}
    proofs = {
        name: Proof(
            check=found.name.removeprefix("harness.contract.checks."),
            how=found.run.__doc__ or "",
            outside=found.outside,
            last=last.get(name, ""),
        )
        for name, found in all_checks().items()
    }
    print_clauses(clauses, proofs, report_console())
    return 0


def _boot(arguments: argparse.Namespace) -> int:
    options = from_namespace(arguments)
    image = prepare(options, RichProgress(), with_shell=True)
    with make_guest(options, image, with_shell=True) as booted:
        print(
            f"{booted.hello.release}, {booted.machine.describe()}; Ctrl-] leaves and ends the guest",
            flush=True,
        )
        booted.machine.console.interact()
        try:
            booted.machine.check()
        except QemuDied as gone:
            if gone.status != 0:
                raise
            print(f"the guest has ended: {gone.observed}")
    return 0


def _ssh(arguments: argparse.Namespace) -> int:
    from harness.link.ssh.cli import pairs, visit  # noqa: PLC0415 - paramiko is for those who ask for it

    put, get = pairs(arguments.put, "--put"), pairs(arguments.get, "--get")
    options = from_namespace(arguments)
    progress = RichProgress()
    image = prepare(options, progress)
    image.ssh_payload(progress)
    with make_guest(options, image) as booted, diagnosed(booted):
        return visit(booted, arguments.command, put, get)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: MIT
"""``iobmd bench``: its arguments, and what it does with them."""

import argparse
from pathlib import Path
from typing import Final

from harness.bench.board import Board
from harness.bench.lab import Lab, default_options
from harness.bench.show import show
from harness.bench.suite import BENCHES, run, select
from harness.errors import BadInput
from harness.images import RichProgress
from harness.options import add_options, from_namespace
from harness.report import check_writable, report_console

_ABOUT: Final = """\
Measures this project beside what it is compared with: by turns, in one run, on one kernel and machine.
Medians, spread and ratios are printed, and whether a goal was reached; nothing fails for being slow.
Ctrl-C ends the run and shows what was measured until then."""
_INTERRUPTED: Final = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``iobmd bench``, the machine's among them; its defaults are the benches' own."""
    parser.description = _ABOUT
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    benches = [f"  {one.name:10}{one.about}{'' if one.usual else ' (*)'}" for one in BENCHES.values()]
    parser.epilog = "\n".join(("benches; (*) runs only when it is named:", *benches))
    add = parser.add_argument
    add("names", metavar="NAME", nargs="*", help="benches of the list below; by default all without a (*)")
    add("--json", metavar="FILE", type=Path, help="write every single value to FILE, too")
    add("--rounds", metavar="N", type=int, help="measure N times; by default as often as each bench needs")
    add_options(add)
    usual = default_options()
    parser.set_defaults(kernel=usual.kernel, accel=usual.accel.value, run=main)


def main(arguments: argparse.Namespace) -> int:
    """Run the benches that were named; returns the exit code.

    Raises:
        BadInput: no such bench, no rounds, or a file that cannot be written.
        HarnessError: our own side cannot run at all; what was measured before is shown first.
    """
    benches = select(arguments.names)
    if arguments.rounds is not None and arguments.rounds < 1:
        raise BadInput(f"--rounds {arguments.rounds} measures nothing", hint="1 or more")
    if arguments.json:
        check_writable(arguments.json)
    board = Board()
    try:
        run(benches, Lab(from_namespace(arguments), board, RichProgress(), arguments.rounds))
    finally:
        show(board, report_console())
        if arguments.json:
            board.write(arguments.json)
    return _INTERRUPTED if board.interrupted else 0

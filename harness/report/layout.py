# SPDX-License-Identifier: MIT
"""Lines that fit a terminal without losing a character: hanging indents, aligned columns, safe text.

rich's own tables pad every line and cut what is too wide: the one is noise in a pipe, the other loses
addresses in a narrow window.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

_LEAST_ROOM = 16


@dataclass(frozen=True)
class Page:
    """Where lines go and how wide they may be.

    Attributes:
        console: what is printed to.
        width: columns to fill at most; a word that is wider is folded, never cut.
    """

    console: Console
    width: int

    def line(self, text: Text) -> None:
        """Print *text* as it stands, without trailing blanks."""
        text.rstrip()
        self.console.print(text, soft_wrap=True)

    def hang(self, lead: Text, body: str, style: str = "") -> None:
        """Print *body* behind *lead*, with its further lines indented as far as *lead* is wide."""
        room = max(self.width - lead.cell_len, _LEAST_ROOM)
        margin = Text(" " * lead.cell_len)
        wrapped = Text(self.safe(body), style=style).wrap(self.console, room, overflow="fold")
        for number, line in enumerate(wrapped or [Text()]):
            self.line(Text.assemble(margin if number else lead, line))

    def columns(self, indent: int, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print *rows* below *head*, aligned; where that is too wide, each row as ``head value, ...``."""
        widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
        if indent + sum(widths) + 2 * (len(head) - 1) > self.width:
            for row in rows:
                pairs = ", ".join(f"{name} {cell}" for name, cell in zip(head, row, strict=True))
                self.hang(Text(" " * indent + "- "), pairs)
            return
        for style, row in (("dim", head), *(("", row) for row in rows)):
            cells = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.line(Text.assemble(" " * indent, (self.safe(cells), style)))

    def safe(self, text: str) -> str:
        """Return *text* with what a terminal would obey, and what it cannot show, written as escapes."""
        shown = "".join(
            char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode("ascii")
            for char in text
        )
        encoding = self.console.encoding or "ascii"
        return shown.encode(encoding, "backslashreplace").decode(encoding)

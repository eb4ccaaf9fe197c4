# SPDX-License-Identifier: MIT
"""Where in the sources a call of the DMA API came from, and which driver made it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.audit.calls import DOORS, FUNCTIONS, HELPERS
from harness.audit.code import CodeText, ModuleCode
from harness.audit.events import Event, Kind
from harness.audit.ledger import NAME as LEDGER
from harness.audit.texts import Sources
from harness.errors import BadInput
from harness.forensics import Frame, SourceLine, Symbols
from harness.images.modules import ModuleTree, canonical

if TYPE_CHECKING:
    from harness.link import Guest

_MOVES: Final = frozenset({Kind.MODULE_COMING, Kind.MODULE_GOING})
_PAGE: Final = 4096  # what the kernel rounds a module's text up to
_PERHAPS: Final = 3
_THUNK: Final = "__x86_indirect_thunk"  # calls what is in a register (arch/x86/lib/retpoline.S)
DRIVER_BYTES: Final = 15
"""Of a driver's name in a record: ``struct dma_ledger_record`` has room for no more."""


@dataclass(frozen=True)
class Site:
    """A place in a driver, or as near to it as the stack leads.

    Attributes:
        module: whose code it is; ``""`` for the kernel itself.
        function: as the module's symbols call it, or the address where they do not; ``""`` where the module
            is not on the stack.
        offset: bytes into it, of the instruction after the call, or of the jump that was one; 0 where that is
            unknown.
        file: of the source, ``""`` where there is no debug information.
        line: number, from 1; 0 where it is unknown.
        inlined: the function the line is in, where the compiler has put it into `function`; else ``""``.
        perhaps: where the line is unknown because the call was the last thing a function did, and so became a
            jump: places of such jumps in the module, the first few.
        through: the first frame of another module, where it called for this one; else ``""``.
        text: the line itself, ``""`` where the source is not at hand.
        stack: every frame, the caller's first, for people.
    """

    module: str = ""
    function: str = ""
    offset: int = 0
    file: str = ""
    line: int = 0
    inlined: str = ""
    perhaps: tuple[str, ...] = ()
    through: str = ""
    text: str = ""
    stack: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        """``ring.c:41 in ring_probe+0x5a [ring]``, and as much of it as is known."""
        whose = f" [{self.module}]" if self.module else " in the kernel"
        where = f"{self.function}+{self.offset:#x}" if self.offset else self.function
        if self.inlined:
            where = f"{self.inlined}, inlined into {where}"
        if self.line:
            return f"{self.file}:{self.line} in {where}{whose}"
        if self.perhaps:
            inside = f" in {where}" if where else ""
            return f"line unknown{inside}{whose}, perhaps {' or '.join(self.perhaps)}"
        if where:
            return f"{where}{whose}"
        through = f", through {self.through}" if self.through else ""
        return f"line unknown{whose}{through}" if self.module else "unknown"


@dataclass(frozen=True)
class _Step:
    """A frame, with its lines from the innermost function out, and where its module's code is."""

    frame: Frame
    lines: tuple[SourceLine, ...] = ()
    text: CodeText | None = None
    at: int = 0

    @property
    def where(self) -> str:
        frame = self.frame
        where = f"{frame.symbol}+{frame.offset:#x}" if frame.size else frame.symbol
        return f"{where} [{frame.module}]" if frame.module else where

    def __str__(self) -> str:
        return f"{self.where}  {' < '.join(f'{one} {one.function}' for one in self.lines)}".rstrip()

    @property
    def line(self) -> SourceLine | None:
        """The innermost line that is not in one of the kernel's headers."""
        own = (one for one in self.lines if not one.file.startswith("include/"))
        return next(own, self.lines[0] if self.lines else None)

    def site(self, stack: tuple[str, ...]) -> Site:
        frame, line = self.frame, self.line
        if line is None:
            return Site(frame.module, frame.symbol, frame.offset, stack=stack)
        outer = self.lines[-1].function
        inlined = "" if line.function == outer else line.function
        return Site(frame.module, frame.symbol, frame.offset, line.file, line.line, inlined, stack=stack)


@dataclass(frozen=True)
class _Loaded:
    """Code of a module in the guest."""

    name: str
    base: int
    size: int
    init: bool


@dataclass(frozen=True)
class _Inside:
    """A function that has jumped instead of calling; without a name, any of its module."""

    name: str = ""
    text: CodeText | None = None
    start: int = 0
    end: int | None = None


class Sites:
    """Names for the return addresses in a ledger's events.

    `follow` has to see every event of the ledger, so that an address is looked up among the modules of its
    time.  What was found out about a stack is kept.

    A ledger that was told to write few frames (`Ledger`) may have cut a stack before the driver's: then the
    device's driver is named, without a line.
    """

    def __init__(
        self,
        files: Callable[[str], Path | None],
        kernel: Symbols | None = None,
        sources: Mapping[str, Path] | None = None,
    ) -> None:
        """Say where names come from.

        Args:
            files: gives the file of a module, by its name; None where there is none.
            kernel: names of the kernel's own functions; None: they stay addresses.
            sources: folders of modules' sources, by name, to show lines from.
        """
        self._sources = Sources(sources or {})
        self._files = files
        self._kernel = kernel
        self._codes: dict[str, ModuleCode | None] = {}
        self._needs: dict[str, frozenset[str]] = {}
        self._names: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self._since = [-1]
        self._maps: list[tuple[list[int], list[_Loaded]]] = [([], [])]
        self._steps: dict[tuple[int, _Loaded | None], _Step] = {}
        self._found: dict[object, Site] = {}

    @classmethod
    def of_guest(
        cls,
        guest: Guest,
        files: Mapping[str, Path] | None = None,
        sources: Mapping[str, Path] | None = None,
    ) -> Sites:
        """Make the sites of a guest that answers; it is asked for the kernel's symbols, and then never again.

        Args:
            guest: it answers.
            files: object files of modules by name, with debug information where there is any
                (`ModuleBuild.ko_debug`); iobmd's and those of the kernel's package are known.
            sources: as for a `Sites`.

        Raises:
            GuestFailure: it does not answer.
        """
        known = {"iobmd": guest.image.module.ko_debug, **(files or {})}
        tree = ModuleTree(guest.image.kernel.modules)
        return cls(lambda name: known.get(name) or tree.find(name), Symbols.of(guest), sources)

    def follow(self, events: Iterable[Event]) -> None:
        """Take the events that follow those taken before; of a violation's, only after this."""
        for event in events:
            if event.kind not in _MOVES:
                continue
            whose = _Loaded(event.module, event.virtual, event.size, event.init)
            now = [one for one in self._maps[-1][1] if one.base != whose.base]
            if event.kind is Kind.MODULE_COMING:
                now.append(whose)
                if not event.init:
                    self._sizes[event.module] = event.size
                self._names[canonical(event.module)[:DRIVER_BYTES]] = event.module
            now.sort(key=lambda one: one.base)
            # In this order: `of` may be asked by another thread meanwhile.
            self._maps.append(([one.base for one in now], now))
            self._since.append(event.number)

    def of(self, event: Event, modules: Collection[str] | None = None) -> Site:
        """Return where a call was made: the first frame of the driver's module.

        Where a call is the last thing a function does it is a jump, and that function is on no stack.  The
        site is then the jump, if only one in the function that was called last can be meant; else the line is
        unknown, and whose it is may be known by the device's driver alone.

        Args:
            event: a call.
            modules: whose calls are looked for; None: the driver's, as far as stack, dependencies of modules
                and the device tell.
        """
        epoch = bisect_right(self._since, event.number) - 1
        wanted = frozenset(modules) if modules is not None else None
        key = (event.stack, epoch, event.kind, event.driver, event.module, wanted)
        site = self._found.get(key)
        if site is None:
            steps = [self._step(address, epoch) for address in event.stack]
            steps = [step for step in steps if step.frame.module != LEDGER]  # its detours
            own = self._names.get(canonical(event.driver), "")
            site = self._found[key] = self._search(steps, own or event.module, event.kind.name, wanted)
        return site

    def at(self, frames: Iterable[Frame], driver: str = "", modules: Collection[str] | None = None) -> Site:
        """Return the site of a stack that the kernel has printed itself.

        Args:
            frames: innermost first.
            driver: the device's, as the kernel has it, or ``""``.
            modules: as for `of`.
        """
        steps = []
        for frame in frames:
            if frame.module == LEDGER:
                continue
            code = self.code(frame.module) if frame.module else None
            steps.append(_Step(frame, code.source(frame) if code is not None else ()))
        own = self._names.get(canonical(driver)[:DRIVER_BYTES], "")
        return self._search(steps, own, "", frozenset(modules) if modules is not None else None)

    def code(self, module: str) -> ModuleCode | None:
        """Return what a module's file says; None where there is none, or that of another build."""
        if module not in self._codes:
            self._codes[module] = self._read(module)
        return self._codes[module]

    def _read(self, module: str) -> ModuleCode | None:
        path, size = self._files(module), self._sizes.get(module)
        try:
            code = ModuleCode.read(path) if path is not None else None
        except (BadInput, OSError):  # a finding without a line is better than none
            return None
        if code is not None and size is not None and -(-size // _PAGE) != -(-len(code.text.image) // _PAGE):
            return None  # and one without a line is better than one with a wrong one
        return code

    def _search(self, steps: list[_Step], own: str, kind: str, wanted: frozenset[str] | None) -> Site:
        stack = tuple(str(step) for step in steps)
        frames = [step.frame for step in steps]
        door = next(
            (i for i, frame in enumerate(frames) if frame.symbol.partition(".")[0] in DOORS), len(frames)
        )
        module, at = self._attributed(frames, door, own, wanted)
        names = {*FUNCTIONS.get(kind, ()), *(frame.symbol for frame in frames[: door if at is None else at])}
        if at is None:
            through = next((step.where for step in steps[:door] if step.frame.module), "")
            return Site(module, perhaps=_lines_of(self._jumps(module, names)), through=through, stack=stack)
        inside = _jumped_from(steps[at], direct=at == 0)
        if inside is None:
            return self._shown(steps[at], stack)
        meant = list(self._jumps(module, names, inside))
        if len(meant) == 1 and inside.name:
            return self._shown(meant[0], stack)
        return Site(module, inside.name, perhaps=_lines_of(meant), stack=stack)

    def _shown(self, step: _Step, stack: tuple[str, ...]) -> Site:
        site = step.site(stack)
        text = self._sources.line(site.module, site.file, site.line)
        return replace(site, text=text) if text else site

    def _attributed(
        self, frames: list[Frame], door: int, own: str, wanted: frozenset[str] | None
    ) -> tuple[str, int | None]:
        """Return the module that made a call, and its first frame; None where that is not on the stack."""
        near = [frame.module for frame in frames[:door]]
        user = self._user(near, own)
        if wanted is not None and user not in wanted:
            at = next((i for i, module in enumerate(near) if module in wanted), None)
            if at is not None:
                return near[at], at
            user = own if own in wanted else user
        if user:
            return user, near.index(user) if user in near else None
        beyond = next((frame.module for frame in frames if frame.module), "")
        if own or beyond:
            return own or beyond, None
        # The driver may be built in: the first that is no helper of the DMA API's.
        at = next((i for i, frame in enumerate(frames) if not frame.symbol.startswith(HELPERS)), None)
        return "", at

    def _user(self, near: list[str], own: str) -> str:
        """Return whose call it is among the modules of a stack, ``""`` where there are none."""
        inner = next((module for module in near if module), "")
        if not inner:
            return ""
        # virtio_blk calls virtio_ring, which does not need it: the outermost that needs the inner one.
        user = [module for module in near if module and inner in self._needed(module)][-1]
        # libata maps the commands of ahci, which is not even on the stack.
        return own if own and user in self._needed(own) else user

    def _needed(self, module: str) -> frozenset[str]:
        """Return everything a module needs, and itself."""
        if module not in self._needs:
            self._needs[module] = frozenset({module})  # a circle ends here
            code = self.code(module)
            below = [self._needed(one) for one in (code.depends if code is not None else ())]
            self._needs[module] = frozenset({module}).union(*below)
        return self._needs[module]

    def _jumps(self, module: str, names: Collection[str], inside: _Inside | None = None) -> Iterator[_Step]:
        """Yield the places of a module, or of one function, where a call of these names became a jump."""
        code = self.code(module) if module else None
        if code is None:
            return
        for text in (code.text, code.init):
            if inside is not None and inside.text is not None and inside.text is not text:
                continue
            start, end = (inside.start, inside.end) if inside is not None else (0, None)
            for at in text.jumps(names, start, end):
                frame = code.frame(at, init=text is code.init, exact=True)
                if frame is not None:
                    yield _Step(frame, code.source(frame))

    def _step(self, address: int, epoch: int) -> _Step:
        bases, loaded = self._maps[epoch]
        at = bisect_right(bases, address - 1) - 1
        whose = loaded[at] if at >= 0 and address - 1 < loaded[at].base + loaded[at].size else None
        step = self._steps.get((address, whose))
        if step is None:
            step = self._in_module(address, whose) if whose is not None else self._in_kernel(address)
            self._steps[address, whose] = step
        return step

    def _in_module(self, address: int, whose: _Loaded) -> _Step:
        code, at = self.code(whose.name), address - whose.base
        frame = code.frame(at, init=whose.init) if code is not None else None
        if code is None or frame is None:
            return _Step(Frame(f"{address:#x}", module=whose.name))
        return _Step(frame, code.source(frame), code.init if whose.init else code.text, at)

    def _in_kernel(self, address: int) -> _Step:
        if self._kernel is None:
            return _Step(Frame(f"{address:#x}"))
        return _Step(self._kernel.frame(address, exact=False))


def _jumped_from(step: _Step, *, direct: bool) -> _Inside | None:
    """Return where the frame of a function is missing below this one; None where the call was made here.

    Args:
        step: the caller.
        direct: what was watched is what this frame has called, or has jumped to from what it has called.
    """
    if step.text is None:
        return None
    target = step.text.called(step.at)
    if isinstance(target, int):
        found = step.text.functions.find(target)
        if found is not None:
            name, offset, size, _ = found
            return _Inside(name, step.text, target - offset, target - offset + size)
    by_register = target is None or str(target).startswith(_THUNK)
    return _Inside() if direct and by_register else None


def _lines_of(steps: Iterable[_Step]) -> tuple[str, ...]:
    """Name the first few different lines, or functions where there is no debug information."""
    texts = (f"{s.line} in {s.line.function}" if s.line is not None else str(s) for s in steps)
    return tuple(islice(dict.fromkeys(texts), _PERHAPS))

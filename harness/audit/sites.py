# SPDX-License-Identifier: MIT
"""Where in the sources a call of the DMA API came from, and which driver made it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.audit.code import ModuleCode
from harness.audit.events import Event, Kind
from harness.errors import BadInput, HarnessError
from harness.forensics import Frame, SourceLine, Symbols
from harness.images.modules import ModuleTree, canonical

if TYPE_CHECKING:
    from harness.link import Guest

_MOVES: Final = frozenset({Kind.MODULE_COMING, Kind.MODULE_GOING})
DRIVER_BYTES: Final = 15
"""Of a driver's name in a record: ``struct dma_ledger_record`` has room for no more."""

#: Where the kernel enters a driver.  What lies beyond on a stack has not made the call: a module that unloads
#: itself, or somebody who was interrupted (drivers/base/{dd,devres,platform}.c, drivers/pci/pci-driver.c,
#: kernel/irq/handle.c, kernel/softirq.c, kernel/time/timer.c, arch/x86/entry/entry_64.S).
_DOORS: Final = frozenset(
    {
        *("really_probe", "call_driver_probe", "platform_probe", "local_pci_probe", "pci_device_probe"),
        *("platform_remove", "pci_device_remove", "device_remove", "device_release_driver_internal"),
        *("__device_release_driver", "device_unbind_cleanup", "driver_detach"),
        *("devm_action_release", "release_nodes", "devres_release_all", "devres_release_group"),
        *("__handle_irq_event_percpu", "handle_softirqs", "__do_softirq", "call_timer_fn"),
        *("asm_common_interrupt", "asm_sysvec_apic_timer_interrupt", "tasklet_action_common"),
        "do_one_initcall",
    }
)


@dataclass(frozen=True)
class Site:
    """A place in a driver, or as near to it as the stack leads.

    Attributes:
        module: whose code it is; ``""`` for the kernel itself.
        function: as the module's symbols call it, or the address where they do not; ``""`` where the module
            is not on the stack.
        offset: bytes into it, of the instruction after the call; 0 for an address.
        file: of the source, ``""`` where there is no debug information.
        line: number, from 1; 0 where it is unknown.
        inlined: the function the line is in, where the compiler has put it into `function`; else ``""``.
        stack: every frame, the caller's first, for people.
    """

    module: str = ""
    function: str = ""
    offset: int = 0
    file: str = ""
    line: int = 0
    inlined: str = ""
    stack: tuple[str, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        """``ring.c:41 in ring_probe+0x5a [ring]``, and as much of it as is known."""
        whose = f" [{self.module}]" if self.module else " in the kernel"
        if not self.function:
            return f"line unknown{whose}" if self.module else "unknown"
        where = f"{self.function}+{self.offset:#x}{whose}" if self.offset else f"{self.function}{whose}"
        if self.inlined:
            where = f"{self.inlined}, inlined into {where}"
        return f"{self.file}:{self.line} in {where}" if self.line else where


@dataclass(frozen=True)
class _Step:
    """A frame, with its lines from the innermost function out."""

    frame: Frame
    lines: tuple[SourceLine, ...] = ()

    def __str__(self) -> str:
        frame = self.frame
        where = f"{frame.symbol}+{frame.offset:#x}" if frame.size else frame.symbol
        where += f" [{frame.module}]" if frame.module else ""
        return f"{where}  {' < '.join(f'{one} {one.function}' for one in self.lines)}".rstrip()

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
        return Site(frame.module, frame.symbol, frame.offset, line.file, line.line, inlined, stack)


@dataclass(frozen=True)
class _Loaded:
    """Code of a module in the guest."""

    name: str
    base: int
    size: int
    init: bool


_Map = tuple[list[int], list[_Loaded]]


class Sites:
    """Names for the return addresses in a ledger's events.

    `follow` has to see every event of the ledger, so that an address is looked up among the modules of its
    time.  What was found out about a stack is kept.
    """

    def __init__(self, files: Callable[[str], Path | None], kernel: Symbols | None = None) -> None:
        """Say where names come from.

        Args:
            files: gives the file of a module, by its name; None where there is none.
            kernel: names of the kernel's own functions; None: they stay addresses.
        """
        self._files = files
        self._kernel = kernel
        self._codes: dict[str, ModuleCode | None] = {}
        self._needs: dict[str, frozenset[str]] = {}
        self._since = [-1]
        self._maps: list[_Map] = [([], [])]
        self._steps: dict[tuple[int, _Loaded | None], _Step] = {}
        self._found: dict[object, Site] = {}

    @classmethod
    def of_guest(cls, guest: Guest, files: Mapping[str, Path] | None = None) -> Sites:
        """Make the sites of a guest that answers; it is asked for the kernel's symbols, and then never again.

        Args:
            guest: it answers.
            files: object files of modules by name, with debug information where there is any
                (`ModuleBuild.ko_debug`); iobmd's and those of the kernel's package are known.

        Raises:
            GuestFailure: it does not answer.
        """
        known = {"iobmd": guest.image.module.ko_debug, **(files or {})}
        tree = ModuleTree(guest.image.kernel.modules)
        return cls(lambda name: known.get(name) or tree.find(name), Symbols.of(guest))

    def follow(self, events: Iterable[Event]) -> None:
        """Take the events that follow those taken before; of a violation's, only after this."""
        for event in events:
            if event.kind not in _MOVES:
                continue
            whose = _Loaded(event.module, event.virtual, event.size, event.init)
            _, loaded = self._maps[-1]
            now = [one for one in loaded if one.base != whose.base]
            if event.kind is Kind.MODULE_COMING:
                now.append(whose)
            now.sort(key=lambda one: one.base)
            self._since.append(event.number)
            self._maps.append(([one.base for one in now], now))

    def of(self, event: Event, modules: Collection[str] | None = None) -> Site:
        """Return where a call was made: the first frame of the driver's module.

        Where the driver has jumped into the kernel as the last thing a function of it did, it is on no stack:
        the site then has a module, by the device's driver, and no function.

        Args:
            event: a call.
            modules: whose calls are looked for; None: the driver's, as far as stack, dependencies of modules
                and the device tell.
        """
        epoch = bisect_right(self._since, event.number) - 1
        wanted = frozenset(modules) if modules is not None else None
        key = (event.stack, epoch, event.driver, wanted)
        site = self._found.get(key)
        if site is None:
            site = self._found[key] = self._search(event, epoch, wanted)
        return site

    def at(self, frame: Frame) -> Site:
        """Return the site of a frame that the kernel has printed itself."""
        code = self._code(frame.module) if frame.module else None
        step = _Step(frame, code.source(frame) if code is not None else ())
        return step.site((str(step),))

    def _search(self, event: Event, epoch: int, wanted: frozenset[str] | None) -> Site:
        steps = [self._step(address, epoch) for address in event.stack]
        stack = tuple(str(step) for step in steps)
        own = self._of_driver(event.driver, epoch)
        module, at = self._attributed([step.frame for step in steps], own, wanted)
        return steps[at].site(stack) if at is not None else Site(module, stack=stack)

    def _attributed(
        self, frames: list[Frame], own: str, wanted: frozenset[str] | None
    ) -> tuple[str, int | None]:
        """Return the module that made a call, and its first frame; None where that is not on the stack."""
        door = next((i for i, frame in enumerate(frames) if frame.symbol in _DOORS), len(frames))
        near = [frame.module for frame in frames[:door]]
        if wanted is not None:
            at = next((i for i, module in enumerate(near) if module in wanted), None)
            if at is not None:
                return near[at], at
            if own in wanted:
                return own, None
        inner = next((module for module in near if module), "")
        if not inner:
            beyond = next((frame.module for frame in frames if frame.module), "")
            if own or beyond:
                return own or beyond, None
            return "", 0 if frames else None
        # virtio_blk calls virtio_ring, which needs it for nothing: the outermost that needs the inner one.
        users = [module for module in near if module and inner in self._needed(module)]
        user = users[-1] if users else inner
        if own and user != own and user in self._needed(own):  # ahci, whose commands libata maps
            user = own
        return user, near.index(user) if user in near else None

    def _of_driver(self, driver: str, epoch: int) -> str:
        """Return the module of a device's driver, as far as its name tells; ``""`` where it does not."""
        name = canonical(driver)
        if not name:
            return ""
        names = (one.name for one in self._maps[epoch][1])
        return next((one for one in names if canonical(one)[:DRIVER_BYTES] == name), "")

    def _needed(self, module: str) -> frozenset[str]:
        """Return everything a module needs, and itself."""
        if module not in self._needs:
            self._needs[module] = frozenset({module})  # a circle ends here
            code = self._code(module)
            below = [self._needed(one) for one in (code.depends if code is not None else ())]
            self._needs[module] = frozenset({module}).union(*below)
        return self._needs[module]

    def _code(self, module: str) -> ModuleCode | None:
        if module not in self._codes:
            path = self._files(module)
            try:
                self._codes[module] = ModuleCode.read(path) if path is not None else None
            except (BadInput, OSError):  # a finding without a line is better than none
                self._codes[module] = None
        return self._codes[module]

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
        code = self._code(whose.name)
        frame = code.frame(address - whose.base, init=whose.init) if code is not None else None
        if code is None or frame is None:
            return _Step(Frame(f"{address:#x}", module=whose.name))
        return _Step(frame, code.source(frame))

    def _in_kernel(self, address: int) -> _Step:
        if self._kernel is None:
            return _Step(Frame(f"{address:#x}"))
        try:
            return _Step(self._kernel.frame(address, exact=False))
        except HarnessError:
            return _Step(Frame(f"{address:#x}"))

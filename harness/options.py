# SPDX-License-Identifier: MIT
"""What both doors ask for alike: which kernel, which machine, and how to get to a running guest."""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.deadlines import Deadlines
from harness.errors import BadInput
from harness.forensics import diagnose
from harness.images import (
    GuestImage,
    KernelSelector,
    Progress,
    default_recipe,
    find_recipe,
    load_recipes,
    prepare_guest,
    prepare_kernel,
)
from harness.link import Guest, GuestOptions
from harness.machines import ALL, USUAL, find_machine, fitting
from harness.vm import Accel, MachineSpec, SnapshotStore

DEFAULT_RECIPE = default_recipe()


@dataclass(frozen=True)
class MachineOptions:
    """A kernel and a machine, as typed.

    Attributes:
        kernel: a recipe's name, or the path of a vmlinuz (then with *modules* and *headers*).
        modules: the ``lib/modules/<release>`` folder that belongs to a vmlinuz.
        headers: the kernel's build tree, what ``make -C`` takes.
        machine: the name of one of `harness.machines.MACHINES`.
        memory_mib: guest RAM in MiB; None: what that machine has.
        cpus: virtual CPUs; None: as many as that machine has.
        accel: which accelerator to use.
        refresh: look for a newer version of the recipe's kernel first.
        snapshot: start from a snapshot where there is one, and make it where there is none.
        timeout_scale: what every deadline is multiplied by.
    """

    kernel: str = DEFAULT_RECIPE
    modules: Path | None = None
    headers: Path | None = None
    machine: str = USUAL.name
    memory_mib: int | None = None
    cpus: int | None = None
    accel: Accel = Accel.AUTO
    refresh: bool = False
    snapshot: bool = True
    timeout_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a machine that cannot be before a kernel is downloaded for it.

        Raises:
            BadInput: no such recipe or machine, parts of a kernel without the others, memory or CPUs outside
                of what a machine can have, or a scale that is none.
        """
        if not self.kernel:
            raise BadInput("--kernel is empty", hint=f"--kernel {DEFAULT_RECIPE}")
        if self.selector.recipe is not None:
            find_recipe(self.selector.recipe)
        nothing, guest = Path(), self.guest(with_shell=False)
        MachineSpec(kernel=nothing, initrd=nothing, memory_mib=guest.memory_mib, cpus=guest.cpus)
        Deadlines(scale=self.timeout_scale)

    @property
    def selector(self) -> KernelSelector:
        """What the images room is asked for: a recipe's name is one even where a file is called the same."""
        own = self.modules or self.headers or "/" in self.kernel or Path(self.kernel).is_file()
        if self.kernel in load_recipes() or not own:
            return KernelSelector(recipe=self.kernel, modules=self.modules, headers=self.headers)
        return KernelSelector(vmlinuz=Path(self.kernel), modules=self.modules, headers=self.headers)

    def guest(self, *, with_shell: bool) -> GuestOptions:
        """Return the machine to boot; with *with_shell* the agent also serves the console."""
        named = find_machine(self.machine).guest()
        return replace(
            named,
            memory_mib=named.memory_mib if self.memory_mib is None else self.memory_mib,
            cpus=named.cpus if self.cpus is None else self.cpus,
            accel=self.accel,
            timeout_scale=self.timeout_scale,
            cmdline=(*named.cmdline, "iobmd.shell") if with_shell else named.cmdline,
        )


def add_options(add: Callable[..., Any]) -> None:
    """Declare the options; *add* is ``add_argument`` of argparse or ``addoption`` of a pytest group."""
    add("--kernel", metavar="RECIPE|VMLINUZ", default=DEFAULT_RECIPE,
        help="a kernel recipe (`iobmd doctor` lists them), or the path of your own vmlinuz "
        "together with --modules and --headers; pytest takes several with commas between, or `all`; "
        "default %(default)s")  # fmt: skip
    add("--modules", metavar="DIR", type=Path, default=None,
        help="your kernel's lib/modules/<release> folder")  # fmt: skip
    add("--headers", metavar="DIR", type=Path, default=None,
        help="your kernel's build tree (what `make -C` takes)")  # fmt: skip
    add("--machine", metavar="NAME", default=USUAL.name,
        help=f"a machine by name (`iobmd machines` lists them); pytest and `iobmd check` take several with "
        f"commas between, or `{ALL}` for every one the kernel can run on; default %(default)s")  # fmt: skip
    add("--memory", metavar="MIB", type=int, default=None,
        help=f"guest RAM in MiB; default what the machine has, {USUAL.memory_mib} for most")  # fmt: skip
    add("--cpus", metavar="N", type=int, default=None, help="virtual CPUs; default what the machine has")
    add("--accel", choices=[accel.value for accel in Accel], default=Accel.AUTO.value,
        help="auto uses KVM only where a guest has answered under it; default %(default)s")  # fmt: skip
    add("--no-snapshot", action="store_true", default=False,
        help="boot every guest; without this it starts from the snapshot of one that has booted before, and "
        "makes one when there is none")  # fmt: skip
    add("--timeout-scale", metavar="FACTOR", type=float, default=1.0,
        help="multiply every deadline; they fit a guest's own boot already, so this is for a host that gets "
        "slower later; default %(default)s")  # fmt: skip


def from_namespace(values: Namespace) -> MachineOptions:
    """Return the options that `add_options` declared, as parsed."""
    return MachineOptions(
        kernel=values.kernel,
        modules=values.modules,
        headers=values.headers,
        machine=values.machine,
        memory_mib=values.memory,
        cpus=values.cpus,
        accel=Accel(values.accel),
        refresh=getattr(values, "refresh", False),
        snapshot=not values.no_snapshot,
        timeout_scale=values.timeout_scale,
    )


def prepare(options: MachineOptions, progress: Progress, *, with_shell: bool = False) -> GuestImage:
    """Fetch and build whatever a guest with *options* boots from; quick when it is all cached.

    Raises:
        BadInput: no such recipe, a custom kernel whose parts do not belong together, or one that lacks what
            the machine needs.
        HostLacks: no network and nothing cached, no space, or a missing program.
    """
    kernel = prepare_kernel(options.selector, progress, refresh=options.refresh)
    fitting([find_machine(options.machine)], kernel, asked=options.machine)
    return prepare_guest(kernel, progress, with_shell=with_shell)


def make_guest(
    options: MachineOptions, image: GuestImage, progress: Progress | None = None, *, with_shell: bool = False
) -> Guest:
    """Return the guest, not started yet: a context manager.

    Args:
        options: as typed.
        image: from `prepare`.
        progress: told when a snapshot is thrown away, and why.
        with_shell: the agent serves a shell on the console as well. Such a guest is booted: a snapshot would
            keep the boot from who wants to see it.
    """
    snapshots = SnapshotStore.default(progress) if options.snapshot and not with_shell else None
    return Guest(image, options.guest(with_shell=with_shell), snapshots, diagnose)

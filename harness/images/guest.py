# SPDX-License-Identifier: MIT
"""The initial RAM disk: agent, modules in load order, and on request a shell."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from harness.images import cpio
from harness.images.build import AgentBuild, ModuleBuild, build_agent, build_module
from harness.images.kernel import Kernel
from harness.images.layouts import Layouts
from harness.images.modcheck import check_module
from harness.images.modules import ModuleTree, canonical, module_bytes, unsigned
from harness.images.packages import applets, busybox, busybox_binary
from harness.images.paths import source_root
from harness.images.progress import Progress
from harness.images.ssh import SshPayload, ssh_payload
from harness.images.store import Store

CHANNEL = ("virtio_pci", "virtio_console")
"""What the agent needs to be reached; the modules these need come with them."""

IN_FRONT = ("virtio_iommu",)
"""What is loaded before that, where the kernel has it as a module.

In a machine with such an IOMMU the devices behind it are not probed until its driver is there
(drivers/acpi/viot.c: viot_dev_iommu_init), the agent's channel among them. In other machines it waits for a
device and does nothing.
"""


@dataclass(frozen=True)
class GuestImage:
    """All that one guest is booted from.

    Attributes:
        kernel: the kernel.
        module: the built iobmd.ko.
        agent: the built agent.
        initramfs: the cpio archive.
        layouts: the module's structures and enumerations.
        link_layouts: the agent's.
    """

    kernel: Kernel
    module: ModuleBuild
    agent: AgentBuild
    initramfs: Path
    layouts: Layouts
    link_layouts: Layouts

    def ssh_payload(self, progress: Progress) -> SshPayload:
        """What an SSH server in this guest is made of; see `harness.images.ssh.ssh_payload`."""
        return ssh_payload(progress)


def prepare_guest(
    kernel: Kernel, progress: Progress, *, with_shell: bool = False, module: ModuleBuild | None = None
) -> GuestImage:
    """Build what is missing and put an initial RAM disk together; everything is cached.

    Args:
        kernel: what will be booted.
        progress: hears of long steps.
        with_shell: add busybox, for a shell on the console.
        module: another module than the one built from ``kext_shim/``.

    Raises:
        BuildFailed: the module or the agent does not compile.
        ModuleMismatch: the kernel would refuse the module.
        BadInput: the kernel lacks virtio.
        HostLacks: a program, space or, for busybox the first time, the network is missing.
    """
    if module is None:
        module = build_module(kernel, source_root() / "kext_shim", progress)
    else:
        check_module(module.ko, kernel.release, kernel.modules, kernel.headers)
    agent = build_agent(progress)
    nodes = guest_nodes(kernel, module.ko.read_bytes(), agent.binary.read_bytes())
    if with_shell:
        nodes += _shell_nodes(progress)
    archive = cpio.write_archive(nodes)
    key = hashlib.sha256(archive).hexdigest()[:16]

    def build(folder: Path) -> None:
        (folder / "initramfs.cpio").write_bytes(archive)

    folder = Store.default().entry("initramfs", key, progress, build)
    return GuestImage(
        kernel=kernel,
        module=module,
        agent=agent,
        initramfs=folder / "initramfs.cpio",
        layouts=Layouts.from_elf(module.ko_debug),
        link_layouts=Layouts.from_elf(agent.debug),
    )


def guest_nodes(kernel: Kernel, ko: bytes, agent: bytes) -> list[cpio.Node]:
    """Return the files of a guest without a shell.

    ``/etc/iobmd/modules`` names what the agent loads, one path per line in load order.

    Raises:
        BadInput: the kernel lacks virtio.
    """
    nodes = [cpio.directory(name) for name in ("proc", "sys", "dev", "tmp", "run")]
    nodes.append(cpio.character_device("dev/console", 5, 1))
    nodes.append(cpio.regular("init", agent, 0o755))
    listed = []
    tree = ModuleTree(kernel.modules)
    for path in tree.load_order([*filter(tree.find, IN_FRONT), *CHANNEL]):
        name = f"lib/modules/{kernel.release}/{canonical(path.name)}.ko"
        # Checking six signatures takes an emulated guest 16 ms, and iobmd.ko has none that could be checked.
        nodes.append(cpio.regular(name, unsigned(module_bytes(path))))
        listed.append(f"/{name}\n")
    nodes.append(cpio.regular("lib/iobmd/iobmd.ko", ko))
    listed.append("/lib/iobmd/iobmd.ko\n")
    nodes.append(cpio.regular("etc/iobmd/modules", "".join(listed).encode()))
    return nodes


def _shell_nodes(progress: Progress) -> list[cpio.Node]:
    folder, _ = busybox(progress)
    links = [cpio.symlink(f"bin/{name}", "/bin/busybox") for name in applets(folder)]
    return [cpio.regular("bin/busybox", busybox_binary(folder).read_bytes(), 0o755), *links]

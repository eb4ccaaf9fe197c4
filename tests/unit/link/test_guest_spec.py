# SPDX-License-Identifier: MIT
"""The machine a guest asks for: its ports, and the kernel words that depend on who executes it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.link import Guest, GuestOptions

_IMAGE = SimpleNamespace(kernel=SimpleNamespace(boot_image=Path("vmlinux")), initramfs=Path("initramfs"))


@pytest.mark.parametrize(
    ("accelerator", "cpus", "without"),
    [("tcg", 1, True), ("tcg", 2, False), ("kvm", 1, False), ("", 1, False)],
)
def test_only_a_lone_emulated_cpu_does_without_its_local_timer(accelerator, cpus, without):
    spec = Guest(_IMAGE, GuestOptions(cpus=cpus))._spec(accelerator)
    assert ("nolapic_timer" in spec.cmdline) is without


def test_the_users_words_come_last_and_so_win():
    spec = Guest(_IMAGE, GuestOptions(cmdline=("loglevel=8",)))._spec("tcg")
    assert spec.cmdline[-1] == "loglevel=8"


@pytest.mark.parametrize("peer", [True, False])
def test_further_ports_come_behind_our_own(peer):
    ports = Guest(_IMAGE, GuestOptions(peer=peer, ports=("org.qemu.guest_agent.0",)))._spec().ports
    assert ports[0] == "org.iobmd.link"
    assert ports[-1] == "org.qemu.guest_agent.0"
    assert ("org.iobmd.peer" in ports) is peer

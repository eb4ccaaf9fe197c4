# SPDX-License-Identifier: MIT
"""Devices that come while the guest runs, among them one that lets nobody capture the machine's state."""

import dataclasses

import pytest

from harness.errors import BadInput
from harness.images import GuestImage
from harness.iokit import IOKit
from harness.iokit.constants import kIODirectionInOut, kIOMapWriteCombineCache
from harness.link import Guest, GuestOptions, StartKind
from harness.machines import MACHINES
from harness.oracle import MemoryType, Oracle
from harness.oracle.registers import updated
from harness.vm import QmpRefused, SnapshotStore

NVME = "nvme,serial=one"
CLASS_NVME = b"0x010802"

pytestmark = pytest.mark.usefixtures("rewinds_at_any_age")


@pytest.fixture(scope="module", params=["usual", "pc", "two-cpus"])
def options(request) -> GuestOptions:
    """A machine with room for a device: a port of PCI Express, or the older chipset's bus."""
    return dataclasses.replace(MACHINES[request.param].guest(), memory_mib=256, slots=1)


@pytest.fixture(scope="module")
def roomy(guest_image: GuestImage, options: GuestOptions):
    with Guest(guest_image, options, SnapshotStore.default()) as guest:
        yield guest


def state_of(view):
    return [(cpu.pat, cpu.mtrr_def_type, cpu.mtrr_fixed, cpu.mtrr_var) for cpu in view.cpus]


def test_a_device_comes_and_goes(roomy: Guest):
    plugged = roomy.plug(NVME)
    assert roomy.read_file(f"/sys/bus/pci/devices/{plugged.address}/class").strip() == CLASS_NVME
    with pytest.raises(BadInput, match="no free slot"):
        roomy.plug("edu")
    roomy.unplug(plugged)
    with pytest.raises(BadInput, match="no device 'plugged"):
        roomy.unplug(plugged)
    again = roomy.plug("edu")
    assert roomy.read_file(f"/sys/bus/pci/devices/{again.address}/vendor").strip() == b"0x1234"
    roomy.unplug(again)


def test_what_qemu_does_not_take_leaves_the_slot_free(roomy: Guest):
    with pytest.raises(QmpRefused, match="nosuchmodel"):
        roomy.plug("nosuchmodel")
    roomy.unplug(roomy.plug("edu"))


def test_the_oracle_looks_while_a_device_refuses_every_capture(roomy: Guest):
    oracle = Oracle(roomy.machine)
    with oracle.frozen() as view:
        before, cr4 = state_of(view), [cpu.cr4 for cpu in view.cpus]
        assert not view.note
    plugged = roomy.plug(NVME)
    with pytest.raises(QmpRefused, match="nvme"), roomy.machine.stopped():
        roomy.machine.device_state()
    with IOKit(roomy) as iokit:
        for _ in range(3):  # as often as somebody looks
            buf = iokit.withOptions(kIODirectionInOut | kIOMapWriteCombineCache, 64 << 10)
            with oracle.frozen() as view:
                assert view.types_of(buf) == {MemoryType.WC}
                assert "IA32_PAT and MTRRs are those of the last capture" in view.note
                assert "non-migratable device" in view.note
                assert "nvme" in view.note
                assert state_of(view) == before
                assert [cpu.cr4 for cpu in view.cpus] == cr4
            buf.release()
    roomy.unplug(plugged)
    with oracle.frozen() as view:  # the PAT of now is that which was taken for granted, or this raises
        assert not view.note
        assert state_of(view) == before


def test_control_registers_are_of_the_moment(roomy: Guest):
    """What the monitor tells is what a capture of the same moment has."""
    plugged = roomy.plug("edu")  # which can be captured
    oracle, machine = Oracle(roomy.machine), roomy.machine
    with oracle.frozen() as view:
        told = machine.qmp.execute("human-monitor-command", {"command-line": "info registers -a"})
        zeroed = [dataclasses.replace(cpu, cr0=0, cr3=0, cr4=0, efer=0) for cpu in view.cpus]
        assert updated(zeroed, told) == view.cpus
    roomy.unplug(plugged)


def test_a_restored_guest_is_without_it(roomy: Guest):
    plugged = roomy.plug(NVME)
    start = roomy.restore()
    assert start.how is StartKind.RESTORED  # in a new QEMU: this one has a device that the snapshot lacks
    listed = roomy.read_file("/proc/bus/pci/devices").decode()
    assert "1b360010" not in listed
    with Oracle(roomy.machine).frozen() as view:
        assert not view.note
    again = roomy.plug(NVME)
    assert again.address == plugged.address
    roomy.unplug(again)
    assert roomy.restore().how is StartKind.REWOUND


def test_a_device_that_was_there_from_the_start_says_how_to_have_it(guest_image: GuestImage):
    options = GuestOptions(memory_mib=256, devices=(NVME,))
    with (
        Guest(guest_image, options) as guest,
        pytest.raises(QmpRefused) as caught,
        Oracle(guest.machine).frozen(),
    ):
        pass
    assert "Guest.plug" in caught.value.hint

# SPDX-License-Identifier: MIT
"""The table of machines: every row can be a machine, and says what it is."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import BadInput
from harness.machines import ALL, MACHINES, USUAL, find_machine, fitting, machines_named
from harness.vm import MachineSpec

RELEASE = "6.1.0-fake"


@pytest.fixture
def kernel(tmp_path: Path) -> Any:
    """A kernel of which nothing is a module."""
    return SimpleNamespace(modules=tmp_path, release=RELEASE)


@pytest.mark.parametrize("name", MACHINES)
def test_a_row_is_a_machine(name: str) -> None:
    machine = MACHINES[name]
    guest = machine.guest()
    MachineSpec(
        kernel=Path("k"),
        initrd=Path("i"),
        memory_mib=guest.memory_mib,
        cpus=guest.cpus,
        machine=guest.machine,
        cpu=guest.cpu,
        cmdline=guest.cmdline,
        devices=guest.devices,
    )
    assert machine.name == name
    assert machine.about
    assert guest.machine in machine.describe()
    assert all(word in machine.describe() for word in (*guest.devices, *guest.cmdline))


def test_no_two_rows_are_one_machine() -> None:
    assert len({machine.guest() for machine in MACHINES.values()}) == len(MACHINES)


def test_an_iommu_comes_before_what_is_behind_it() -> None:
    for machine in MACHINES.values():
        units = ["iommu" in device for device in machine.devices]
        assert units == sorted(units, reverse=True)


def test_names_are_taken_one_by_one_and_once() -> None:
    assert machines_named("pc") == (MACHINES["pc"],)
    assert machines_named(" pc, usual,pc ,") == (MACHINES["pc"], USUAL)
    assert machines_named(ALL) == tuple(MACHINES.values())
    for nothing in ("", " , "):
        with pytest.raises(BadInput, match="empty"):
            machines_named(nothing)
    with pytest.raises(BadInput, match="no machine 'p6'"):
        machines_named("usual,p6")


def test_a_machine_that_is_none_has_a_hint() -> None:
    with pytest.raises(BadInput) as caught:
        find_machine("nopat")
    assert caught.value.hint == "did you mean no-pat?"
    with pytest.raises(BadInput) as caught:
        find_machine("macbook")
    assert "iobmd machines" in caught.value.hint


def test_what_a_kernel_lacks_is_left_out_of_all_and_refused_by_name(kernel: Any) -> None:
    able, others = fitting(MACHINES.values(), kernel, asked=ALL)
    assert {*MACHINES.values()} - {*able} == {MACHINES["virtio-iommu"]}
    assert others == (f"virtio-iommu: Linux {RELEASE} has no virtio_iommu",)
    with pytest.raises(BadInput, match="virtio-iommu cannot be had") as caught:
        fitting((USUAL, MACHINES["virtio-iommu"]), kernel, asked="usual,virtio-iommu")
    assert caught.value.observed == f"Linux {RELEASE} has no virtio_iommu"
    (kernel.modules / "modules.builtin").write_text("kernel/drivers/iommu/virtio-iommu.ko\n")
    assert fitting(MACHINES.values(), kernel, asked=ALL) == (tuple(MACHINES.values()), ())


@pytest.mark.parametrize(("memory", "text"), [(512, "512 MiB"), (2048, "2 GiB"), (5000, "5000 MiB")])
def test_sizes_in_words(memory: int, text: str) -> None:
    assert text in replace(USUAL, memory_mib=memory).describe()
    assert "2 CPUs" in replace(USUAL, cpus=2).describe()

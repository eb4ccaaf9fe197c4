# SPDX-License-Identifier: MIT
from pathlib import Path

import pytest

from harness.errors import BadInput
from harness.images import Kernel
from harness.images.guest import guest_nodes

VIRTIO = ("virtio_pci", "virtio_console")


def make_kernel(
    folder: Path, *, builtin: tuple[str, ...] = (), depends: dict[str, str] | None = None
) -> Kernel:
    modules = folder / "modules"
    modules.mkdir(parents=True)
    (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in builtin))
    rows = depends or {}
    (modules / "modules.dep").write_text("".join(f"{name}.ko: {needs}\n" for name, needs in rows.items()))
    for name in rows:
        (modules / f"{name}.ko").write_bytes(name.encode())
    nothing = folder / "nothing"
    return Kernel("custom", "1.2.3", nothing, nothing, "", modules, nothing, ())


def contents(kernel: Kernel) -> dict[str, bytes]:
    return {node.path: node.data for node in guest_nodes(kernel, b"the module", b"the agent")}


def test_everything_built_in(tmp_path: Path) -> None:
    files = contents(make_kernel(tmp_path, builtin=VIRTIO))
    assert files["init"] == b"the agent"
    assert files["lib/iobmd/iobmd.ko"] == b"the module"
    assert files["etc/iobmd/modules"] == b"/lib/iobmd/iobmd.ko\n"
    assert {"proc", "sys", "dev", "tmp", "run", "dev/console"} <= files.keys()


def test_virtio_as_modules(tmp_path: Path) -> None:
    depends = {
        "virtio": "",
        "virtio_ring": "virtio.ko",
        "virtio_pci": "virtio_ring.ko virtio.ko",
        "virtio_console": "virtio_ring.ko virtio.ko",
    }
    files = contents(make_kernel(tmp_path, depends=depends))
    names = ["virtio", "virtio_ring", "virtio_pci", "virtio_console"]
    listed = [f"/lib/modules/1.2.3/{name}.ko" for name in names]
    assert files["etc/iobmd/modules"].decode().splitlines() == [*listed, "/lib/iobmd/iobmd.ko"]
    for name, path in zip(names, listed, strict=True):
        assert files[path[1:]] == name.encode()


@pytest.mark.parametrize("channel_built_in", [True, False])
def test_an_iommus_driver_is_loaded_before_what_is_behind_it(tmp_path: Path, channel_built_in: bool) -> None:
    channel = () if channel_built_in else VIRTIO
    kernel = make_kernel(
        tmp_path,
        builtin=VIRTIO if channel_built_in else (),
        depends=dict.fromkeys((*channel, "virtio_iommu"), ""),
    )
    listed = contents(kernel)["etc/iobmd/modules"].decode().split()
    names = [Path(path).stem for path in listed]
    assert names == ["virtio_iommu", *channel, "iobmd"]


def test_a_kernel_without_virtio(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no module virtio_console") as caught:
        guest_nodes(make_kernel(tmp_path, builtin=("virtio_pci",)), b"", b"")
    assert "VIRTIO_CONSOLE" in caught.value.hint

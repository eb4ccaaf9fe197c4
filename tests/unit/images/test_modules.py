# SPDX-License-Identifier: MIT
import gzip
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from harness.errors import BadInput
from harness.images.modules import ModuleTree, canonical, modinfo, module_bytes, unsigned

WANTED = ("virtio_pci", "virtio_console")
DEPENDS = {
    "kernel/drivers/virtio/virtio.ko": (),
    "kernel/drivers/virtio/virtio_ring.ko": ("virtio",),
    "kernel/drivers/virtio/virtio_pci_legacy_dev.ko": (),
    "kernel/drivers/virtio/virtio_pci_modern_dev.ko": (),
    "kernel/drivers/virtio/virtio_pci.ko": (
        "virtio_pci_modern_dev",
        "virtio_pci_legacy_dev",
        "virtio",
        "virtio_ring",
    ),
    "kernel/drivers/char/virtio_console.ko": ("virtio", "virtio_ring"),
    "kernel/drivers/char/odd-name.ko": (),
}


def make_module(path: Path, depends: tuple[str, ...], vermagic: str = "1.2.3 SMP mod_unload ") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = f"vermagic={vermagic}\\0depends={','.join(depends)}\\0"
    source = f'__attribute__((section(".modinfo"), used)) static const char info[] = "{info}";'
    argv = ["gcc", "-c", "-x", "c", "-", "-o", str(path)]
    subprocess.run(argv, input=source, text=True, check=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lib")
    for name, needs in DEPENDS.items():
        make_module(folder / name, needs)
    return folder


@pytest.fixture
def tree(built: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "modules"
    for name in DEPENDS:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((built / name).read_bytes())
    (folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    (folder / "modules.order").write_text("".join(f"{name}\n" for name in DEPENDS))
    return folder


def names(paths: tuple[Path, ...]) -> list[str]:
    return [canonical(path.name) for path in paths]


def assert_loadable(order: list[str]) -> None:
    for name in order:
        needs = next(needs for path, needs in DEPENDS.items() if canonical(path) == name)
        assert all(order.index(needed) < order.index(name) for needed in needs)


def test_order_without_depmod(tree: Path) -> None:
    order = names(ModuleTree(tree).load_order(WANTED))
    assert len(order) == 6
    assert_loadable(order)


def test_order_from_modules_dep(tree: Path) -> None:
    # depmod lists everything a module needs, the nearest first
    by_name = {canonical(path): path for path in DEPENDS}
    rows = [f"{path}: {' '.join(by_name[n] for n in reversed(needs))}\n" for path, needs in DEPENDS.items()]
    (tree / "modules.dep").write_text("".join(reversed(rows)))
    (tree / "modules.order").unlink()
    order = names(ModuleTree(tree).load_order(WANTED))
    assert len(order) == 6
    assert_loadable(order)


def test_builtin_ones_are_left_out(tree: Path) -> None:
    (tree / "modules.builtin").write_text(
        "kernel/drivers/virtio/virtio.ko\nkernel/drivers/virtio/virtio-ring.ko\n"
    )
    order = names(ModuleTree(tree).load_order(WANTED))
    assert "virtio" not in order
    assert "virtio_ring" not in order
    assert order[-1] == "virtio_console"


def test_all_built_in(tree: Path) -> None:
    (tree / "modules.builtin").write_text("".join(f"{name}\n" for name in DEPENDS))
    assert ModuleTree(tree).load_order(WANTED) == ()


def test_a_missing_dependency_names_who_needs_it(tree: Path) -> None:
    (tree / "kernel/drivers/virtio/virtio.ko").unlink()
    with pytest.raises(BadInput, match="no module virtio") as caught:
        ModuleTree(tree).load_order(WANTED)
    assert "virtio_pci" in caught.value.observed


def test_a_circle_ends(tree: Path) -> None:
    make_module(tree / "kernel/drivers/virtio/virtio.ko", ("virtio_ring",))
    with pytest.raises(BadInput, match="circle"):
        ModuleTree(tree).load_order(WANTED)


def test_dashes_and_underscores_are_one_name(tree: Path) -> None:
    assert ModuleTree(tree).find("odd_name") == tree / "kernel/drivers/char/odd-name.ko"


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".ko.xz", lzma.compress),
        (".ko.zst", lambda data: zstandard.ZstdCompressor().compress(data)),
        (".ko.gz", gzip.compress),
    ],
)
def test_packed_modules(tree: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    plain = tree / "kernel/drivers/char/virtio_console.ko"
    data = plain.read_bytes()
    plain.with_suffix(suffix).write_bytes(pack(data))
    plain.unlink()
    found = ModuleTree(tree)
    path = found.find("virtio_console")
    assert path is not None
    assert path.name.endswith(suffix)
    assert module_bytes(path) == data
    assert found.depends("virtio_console") == ("virtio", "virtio_ring")


def test_a_damaged_module_is_named(tree: Path) -> None:
    damaged = tree / "kernel/x.ko.xz"
    damaged.write_bytes(b"\xfd7zXZ\0 but not really")
    with pytest.raises(BadInput, match=r"x\.ko\.xz"):
        module_bytes(damaged)


def test_modinfo(tree: Path) -> None:
    info = modinfo(module_bytes(tree / "kernel/drivers/virtio/virtio_ring.ko"))
    assert info == {"vermagic": "1.2.3 SMP mod_unload ", "depends": "virtio"}


def test_modinfo_of_something_else() -> None:
    with pytest.raises(BadInput, match="no kernel module"):
        modinfo(b"#!/bin/sh\n")


MARKER = b"~Module signature appended~\n"


def signed(ko: bytes, signature: bytes, says: int | None = None) -> bytes:
    """What scripts/sign-file.c appends: the signature, struct module_signature, a marker."""
    size = len(signature) if says is None else says
    return (
        ko
        + signature
        + bytes([0, 0, 2, 0, 0, 0, 0, 0])
        + size.to_bytes(4, "big")
        + b"~Module signature appended~\n"
    )


def test_a_signature_is_left_out_and_nothing_else(tree: Path) -> None:
    ko = next(tree.rglob("virtio.ko")).read_bytes()
    assert unsigned(ko) == ko
    assert unsigned(signed(ko, b"s" * 500)) == ko
    assert modinfo(unsigned(signed(ko, MARKER))) == modinfo(ko)


@pytest.mark.parametrize("ko", [signed(b"", b"", 1), signed(b"abc", b"d", 5), MARKER])
def test_a_damaged_signature_is_named(ko: bytes) -> None:
    with pytest.raises(BadInput, match="signature is damaged"):
        unsigned(ko)

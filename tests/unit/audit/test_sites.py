# SPDX-License-Identifier: MIT
"""Where calls are said to come from: real code, compiled here, on stacks that are made up."""

import re
import subprocess
from pathlib import Path

import pytest

from harness.audit import Event, Kind, Site, Sites
from harness.audit.calls import FUNCTIONS
from harness.audit.code import ModuleCode
from harness.audit.texts import Sources
from harness.errors import BadInput
from harness.forensics import Frame

HERE = Path(__file__).parent
MARKS = {
    found[1]: number
    for number, line in enumerate((HERE / "ring.c").read_text().splitlines(), 1)
    if (found := re.search(r"/\* HERE: (\w+) \*/", line))
}
TEXT, INIT, KERNEL = 0xFFFF_FFFF_C010_0000, 0xFFFF_FFFF_C020_0000, 0xFFFF_FFFF_8100_0000
#: Names of the kernel's, by their addresses.
NAMED = {
    KERNEL + number * 0x100: name
    for number, name in enumerate(
        ("release_nodes", "handle_softirqs.isra.0", "really_probe", "dma_pool_alloc", "nvme_probe")
    )
}
AT = {name: address for address, name in NAMED.items()}


class Kernel:
    def frame(self, address, *, exact):
        assert not exact
        return Frame(NAMED.get(address, "somewhere"), 16, 256)


def coming(name="ring", base=TEXT, number=0, **fields):
    made = {"size": 0x1000, "init": base == INIT, **fields}
    return Event(number, Kind.MODULE_COMING, module=name, virtual=base, **made)


def sites_of(path, *events, files=None, **chosen):
    known = {"ring": path, **(files or {})}
    sites = Sites(known.get, Kernel(), **chosen)
    sites.follow(events or (coming(), coming(base=INIT, number=1)))
    return sites


def after(path, function, target, *, init=False):
    """Return the address that the first call of a target in a function returns to."""
    code = ModuleCode.read(path)
    text, base = (code.init, INIT) if init else (code.text, TEXT)
    table = text.functions
    start = int(table.addresses[table.names.index(function)])
    end = min(int(address) for address in table.addresses if address > start)
    for operand in range(start + 1, end - 3):
        if text.image[operand - 1] == 0xE8 and text.called(operand + 4) == target:
            return base + operand + 4
    raise LookupError(function)


def start_of(path, function):
    table = ModuleCode.read(path).text.functions
    return int(table.addresses[table.names.index(function)])


def alloc(*stack, kind=Kind.ALLOC, **fields):
    return Event(9, kind, stack=stack, **fields)


def test_a_call(ring):
    site = sites_of(ring).of(alloc(after(ring, "init_module", "dma_alloc_attrs", init=True)))
    assert (site.module, site.function, site.file) == ("ring", "init_module", "ring.c")
    assert (site.line, site.inlined) == (MARKS["init"], "")
    assert str(site) == f"ring.c:{MARKS['init']} in init_module+{site.offset:#x} [ring]"


def test_a_call_that_was_inlined(ring):
    address = after(ring, "probe", "dma_alloc_attrs")
    site = sites_of(ring).of(alloc(address))
    assert (site.function, site.line, site.inlined) == ("probe", MARKS["inlined"], "start")
    assert str(site).startswith(f"ring.c:{MARKS['inlined']} in start, inlined into probe+0x")
    assert site.stack[0].endswith(f"ring.c:{MARKS['inlined']} start < ring.c:{MARKS['header'] - 1} probe")


def test_a_line_of_a_kernels_header_is_not_the_drivers(ring):
    first = after(ring, "probe", "dma_alloc_attrs")
    text = ModuleCode.read(ring).text
    second = next(at for at in range(first - TEXT + 1, 4096) if text.called(at) == "dma_alloc_attrs")
    site = sites_of(ring).of(alloc(TEXT + second))
    assert (site.file, site.line, site.inlined) == ("ring.c", MARKS["header"], "")
    assert "include/kernel.h" in site.stack[0]


def test_the_line_of_a_source_is_shown(ring):
    sites = sites_of(ring, sources={"ring": HERE})
    site = sites.of(alloc(after(ring, "probe", "dma_alloc_attrs")))
    assert site.text == "return dma_alloc_attrs(device, 1); /* HERE: inlined */"


def test_without_debug_information_there_is_a_function(bare):
    site = sites_of(bare).of(alloc(after(bare, "probe", "dma_alloc_attrs")))
    assert (site.function, site.file, site.line) == ("probe", "", 0)
    assert str(site) == f"probe+{site.offset:#x} [ring]"


def test_without_a_file_there_is_an_address():
    site = sites_of(None).of(alloc(TEXT + 0x123))
    assert str(site) == f"{TEXT + 0x123:#x} [ring]"


def test_a_file_that_is_none_is_as_good_as_no_file(tmp_path):
    broken = tmp_path / "ring.ko"
    broken.write_bytes(b"\x7fELF and no more")
    with pytest.raises(BadInput, match="no kernel module"):
        ModuleCode.read(broken)
    assert str(sites_of(broken).of(alloc(TEXT + 1))) == f"{TEXT + 1:#x} [ring]"


def test_the_callers_line_is_not_taken_for_that_of_a_jump(ring, bare):
    stack = after(ring, "before", start_of(ring, "last"))
    site = sites_of(ring).of(alloc(stack))
    assert (site.function, site.line) == ("last", MARKS["jump"])
    same = sites_of(bare).of(alloc(after(bare, "before", start_of(bare, "last"))))
    assert (same.function, same.offset, same.line) == ("last", site.offset, 0)


def test_a_jump_in_another_section(ring):
    """Sections lie where the kernel puts them, and calls between them are filled in by a linker."""
    assert start_of(ring, "elsewhere") % 64 == 0
    site = sites_of(ring).of(alloc(after(ring, "call_elsewhere", start_of(ring, "elsewhere"))))
    assert (site.function, site.line) == ("elsewhere", MARKS["elsewhere"])


def test_of_two_jumps_both_are_said(ring):
    site = sites_of(ring).of(alloc(after(ring, "twice", start_of(ring, "either"))))
    assert (site.module, site.function, site.line) == ("ring", "either", 0)
    lines = sorted(int(one.split(":")[1].split()[0]) for one in site.perhaps)
    assert lines == [MARKS["one"], MARKS["other"]]
    assert str(site).startswith("line unknown in either [ring], perhaps ring.c:")


def test_who_was_called_by_a_register_is_anybody(ring):
    start = start_of(ring, "by_register")
    image = ModuleCode.read(ring).text.image
    at = image.index(b"\xff", start)  # call *operation(%rip), or by an absolute address: 6 or 7 bytes
    after = at + (6 if image[at + 1] == 0x15 else 7)
    site = sites_of(ring).of(alloc(TEXT + after))
    assert (site.module, site.function, site.line) == ("ring", "", 0)
    assert len(site.perhaps) == 3
    # A helper between them has a frame of its own: it was called here, and nothing has jumped.
    site = sites_of(ring).of(alloc(AT["dma_pool_alloc"], TEXT + after))
    assert (site.function, site.file) == ("by_register", "ring.c")


def test_a_callback_that_ended_in_the_call_is_on_no_stack(ring):
    event = alloc(AT["release_nodes"], kind=Kind.FREE, driver="ring")
    site = sites_of(ring).of(event)
    assert (site.module, site.function, site.line) == ("ring", "", 0)
    assert f"ring.c:{MARKS['callback']} in stop" in site.perhaps
    assert str(site).startswith("line unknown [ring], perhaps ring.c:")
    assert site.stack == ("release_nodes+0x10",)


def test_who_lets_the_kernel_in_has_not_made_the_call(ring):
    beyond = after(ring, "remove", "dma_free_attrs")
    for door in ("release_nodes", "handle_softirqs.isra.0"):
        site = sites_of(ring).of(alloc(AT[door], beyond, kind=Kind.FREE))
        assert (site.module, site.line) == ("ring", 0)


def test_a_helper_of_the_kernel_is_looked_through(ring):
    address = after(ring, "remove", "dma_free_attrs")
    site = sites_of(ring).of(alloc(AT["dma_pool_alloc"], address, kind=Kind.FREE))
    assert site.line == MARKS["plain"]


def test_the_ledgers_own_detours_are_left_out(ring):
    here, ledger = after(ring, "remove", "dma_free_attrs"), TEXT + 0x70_0000
    sites = sites_of(ring, coming(), coming("dma_ledger", ledger, 1))
    site = sites.of(alloc(AT["dma_pool_alloc"], ledger + 1, ledger + 2, here, kind=Kind.FREE))
    assert (site.line, len(site.stack)) == (MARKS["plain"], 2)
    frames = [Frame("detour", 1, 9, "dma_ledger"), ModuleCode.read(ring).frame(here - TEXT)]
    assert sites.at(frames).line == MARKS["plain"]


def test_a_driver_that_is_built_in():
    stack = (AT["dma_pool_alloc"], AT["nvme_probe"], AT["really_probe"])
    site = sites_of(None).of(alloc(*stack, driver="nvme"))
    assert str(site) == "nvme_probe+0x10 in the kernel"


def test_nothing_known():
    assert str(sites_of(None).of(alloc())) == "unknown"
    assert str(sites_of(None).of(alloc(module="ring"))) == "line unknown [ring]"


def test_a_file_of_another_build_is_as_good_as_no_file(ring):
    address = after(ring, "probe", "dma_alloc_attrs")
    other = sites_of(ring, coming(size=0x2000), coming(base=INIT, number=1))
    assert str(other.of(alloc(address))) == f"{address:#x} [ring]"
    assert sites_of(ring, coming(size=0x800)).of(alloc(address)).line == MARKS["inlined"]


LIBRARY, USER, DRIVER = TEXT + 0x40_0000, TEXT + 0x50_0000, TEXT + 0x60_0000


@pytest.fixture
def stacked(tmp_path, ring):
    """virtio_blk above virtio_ring, whose device virtio_pci drives; ahci, which libata works for."""

    def made(name, depends):
        path = tmp_path / f"{name}.ko"
        source = tmp_path / f"{name}.c"
        words = f"name={name}", f"depends={depends}"
        text = r"\0".join(words)
        source.write_text(
            f'const char info[] __attribute__((section(".modinfo"))) = "{text}";\nvoid work(void) {{}}\n'
        )
        subprocess.run(["gcc", "-c", "-o", str(path), str(source)], check=True, timeout=60)
        return path

    needs = {"library": "", "user": "library", "driver": "library"}
    files = {name: made(name, depends) for name, depends in needs.items()}
    bases = {"library": LIBRARY, "user": USER, "driver": DRIVER}
    events = [coming(name, base, number) for number, (name, base) in enumerate(bases.items())]
    return sites_of(ring, *events, files=files)


def test_whoever_uses_a_library_has_made_the_call(stacked):
    assert stacked.of(alloc(LIBRARY + 1, LIBRARY + 2, USER + 3)).module == "user"
    assert stacked.of(alloc(LIBRARY + 1, USER + 3), ["library"]).module == "library"
    assert stacked.of(alloc(LIBRARY + 1, USER + 3), ["library", "user"]).module == "user"


def test_a_library_works_for_the_devices_driver(stacked):
    site = stacked.of(alloc(LIBRARY + 1, driver="driver"))
    assert (site.module, site.function) == ("driver", "")
    assert str(site) == "line unknown [driver], through work+0x1 [library]"
    assert stacked.of(alloc(LIBRARY + 1, driver="driver"), ["driver", "library"]) == site
    assert stacked.of(alloc(LIBRARY + 1, driver="driver"), ["library"]).module == "library"


def test_the_user_of_a_library_is_not_the_driver_of_the_bus(stacked):
    assert stacked.of(alloc(LIBRARY + 1, USER + 3, driver="driver")).module == "user"
    assert stacked.of(alloc(USER + 3, driver="driver")).module == "user"
    assert stacked.of(alloc(USER + 3, driver="driver"), ["driver"]).module == "driver"


def test_an_address_is_of_the_module_of_its_time():
    moves = [
        coming("first", number=0),
        Event(2, Kind.MODULE_GOING, module="first", virtual=TEXT, size=0x1000),
        coming("second", number=4),
    ]
    sites = sites_of(None, *moves)
    seen = [sites.of(Event(number, Kind.ALLOC, stack=(TEXT + 8,))).module for number in (1, 5)]
    assert seen == ["first", "second"]
    assert sites.of(Event(6, Kind.ALLOC, stack=(TEXT + 0x1001,))).module == ""


def test_a_call_at_the_end_of_a_module_is_its_own():
    sites = sites_of(None, coming("first"), coming("second", TEXT + 0x1000, 1))
    assert sites.of(alloc(TEXT + 0x1000)).module == "first"


def test_a_call_at_the_end_of_a_function_is_its_own(ring):
    code, start = ModuleCode.read(ring), start_of(ring, "before")
    assert code.frame(start).symbol != "before"
    assert code.frame(start, exact=True).place.startswith("before+0x0/")


def test_what_is_dropped_after_init_has_a_name(ring):
    events = [coming(), coming(base=INIT, number=1)]
    gone = Event(5, Kind.MODULE_GOING, module="ring", virtual=INIT, size=0x1000, init=True)
    sites = sites_of(ring, *events, gone)
    address = after(ring, "init_module", "dma_alloc_attrs", init=True)
    assert sites.of(Event(3, Kind.ALLOC, stack=(address,))).line == MARKS["init"]


def test_a_place_of_the_log(ring):
    found = ModuleCode.read(ring).frame(start_of(ring, "remove"), exact=True)
    site = sites_of(ring).at((found, Frame("really_probe", 3, 9)))
    assert (site.function, site.file) == ("remove", "ring.c")
    assert len(site.stack) == 2


def test_every_function_that_is_watched_is_known():
    """The names are the ledger's own."""
    source = Path(__file__).resolve().parents[3] / "kext_shim" / "ledger" / "dma_ledger_probes.c"
    rows = re.findall(r'\(.*?DMA_LEDGER_(\w+),\s*"(\w+)"', source.read_text())
    assert len(rows) > 30
    for kind, name in rows:
        if kind not in ("BIND", "UNBIND"):  # no calls of a driver's
            assert name in FUNCTIONS[kind], kind
    assert {kind for kind, _ in rows} >= FUNCTIONS.keys()


def test_a_hundred_thousand_events_have_few_stacks(ring, monkeypatch):
    sites = sites_of(ring)
    address = after(ring, "probe", "dma_alloc_attrs")
    searched = []
    search = Sites._search
    monkeypatch.setattr(Sites, "_search", lambda *given: searched.append(1) or search(*given))
    events = (Event(number, Kind.ALLOC, stack=(address, AT["really_probe"])) for number in range(9, 100_009))
    assert {sites.of(event).line for event in events} == {MARKS["inlined"]}
    assert len(searched) == 1


def test_of_two_files_with_one_name_no_line_is_shown(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ring.c").write_text("one\ntwo\n")
    sources = Sources({"ring": tmp_path})
    assert sources.line("ring", "ring.c", 2) == ""
    assert sources.line("ring", "b/ring.c", 2) == "two"
    assert sources.line("ring", "b/ring.c", 3) == sources.line("ring", "b/ring.c", 0) == ""
    assert sources.line("other", "b/ring.c", 2) == sources.line("ring", "c.c", 1) == ""


def test_sites_are_the_same_when_their_places_are():
    assert Site("ring", "f", 8, stack=("a",)) == Site("ring", "f", 8, stack=("b",))
    assert Site("ring", "f", 8) != Site("ring", "f", 9)

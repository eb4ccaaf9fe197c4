# SPDX-License-Identifier: MIT
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.oracle import NotLongMode, StreamError, parse_device_state

DATA = Path(__file__).parent / "data"
Q35, PC = "q35-smp2-linux6.1", "pc-kvm64-linux6.12"


def recorded(name):
    """A stream of QEMU 7.2; what precedes the device sections (firmware, list of RAM) is cut out."""
    return zlib.decompress((DATA / f"{name}.zz").read_bytes())


# CR values as QMP `info registers -a` printed them at that moment; PAT and MTRRs nothing else prints.
EXPECTED = {
    Q35: [
        (0, 0x80050033, 0x2A10000, 0x750EB0, 0xD01, 0x0407050600070106),
        (1, 0x80050033, 0x552E000, 0x750EA0, 0xD01, 0x0407050600070106),
    ],
    PC: [(0, 0x80050033, 0x53CF000, 0x6F0, 0xD01, 0x0007010600070106)],
}


@pytest.mark.parametrize("name", [Q35, PC])
def test_recorded_stream(name):
    cpus = parse_device_state(recorded(name))
    assert [(c.index, c.cr0, c.cr3, c.cr4, c.efer, c.pat) for c in cpus] == EXPECTED[name]
    for cpu in cpus:
        assert cpu.levels == 4
        assert cpu.mtrr_def_type == 0xC06
        assert cpu.mtrr_fixed[:3] == (0x0606060606060606, 0x0606060606060606, 0)
        assert len(cpu.mtrr_fixed) == 11
        assert cpu.mtrr_var[0][0] == (0xC0000000 if name == Q35 else 0x80000000)
        assert len(cpu.mtrr_var) == 8


def test_every_truncation_is_a_named_error():
    stream = recorded(Q35)
    for length in [*range(64), *range(64, len(stream), 997), len(stream) - 1]:
        with pytest.raises(StreamError):
            parse_device_state(stream[:length])


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "not a QEMU migration stream"),
        (b"\x7fELF" + bytes(200), "not a QEMU migration stream"),
        (b"QEVM\x00\x00\x00\x02" + bytes(200), "version 3"),
        (b"QEVM\x00\x00\x00\x03" + bytes(200), "no description"),
    ],
)
def test_foreign_data(stream, message):
    with pytest.raises(StreamError, match=message):
        parse_device_state(stream)


@given(st.data())
def test_garbled_layout_is_a_named_error_or_the_same_registers(data):
    """Flip bytes outside the register values: never an unnamed error, never other registers."""
    stream = bytearray(recorded(PC))
    cpu = stream.find(b"\x03cpu\x00\x00\x00\x00")
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(
            st.one_of(
                st.integers(cpu - 5, cpu + 11),  # the header of the section
                st.integers(len(stream) - 30000, len(stream) - 1),  # the description
                st.integers(0, cpu),
            )
        )
        stream[where] ^= data.draw(st.integers(1, 255))
    try:
        cpus = parse_device_state(bytes(stream))
    except StreamError:
        return
    found = [(c.index, c.cr0, c.cr3, c.cr4, c.efer, c.pat) for c in cpus]
    assert found == EXPECTED[PC] or b"env." not in bytes(stream)


def test_layout_comes_from_the_description(synthetic):
    """The same registers wherever QEMU puts them, with fields of any size and any number before them."""
    state = synthetic.cpu_state(0x1234000)
    plain = synthetic.StreamWriter().cpu(state).bytes()
    shifted = synthetic.StreamWriter().cpu(
        state, before=[("env.regs", [bytes(8)] * 40), ("env.new", b"x" * 3)]
    )
    assert parse_device_state(plain) == parse_device_state(shifted.bytes()) == (state,)


def test_arrays_may_be_described_element_by_element(synthetic):
    """QEMU lists elements one by one, with an index, when it cannot tell that they are alike."""
    state = synthetic.cpu_state(0x1234000)
    writer = synthetic.StreamWriter().cpu(state)
    fields = writer.devices[0]["fields"]
    place = next(n for n, field in enumerate(fields) if field["name"] == "env.mtrr_fixed")
    del fields[place]["array_len"]
    fields[place : place + 1] = [fields[place] | {"index": n} for n in range(11)]
    assert parse_device_state(writer.bytes()) == (state,)


def test_subsections_and_order_of_cpus(synthetic):
    first, second = synthetic.cpu_state(0x1000), synthetic.cpu_state(0x2000, index=1, pat=0x0007040600070406)
    more = [
        ("cpu/pkru", 1, [("env.pkru", b"\0\0\0\1")]),
        ("cpu/other", 2, [("a", b"12"), ("b", [b"345"] * 2)]),
    ]
    writer = synthetic.StreamWriter().section("timer", 0, 2, [("ticks", bytes(8))])
    writer.cpu(second, subsections=more).cpu(first).section("apic", 0, 3, [("id", b"\0")])
    assert parse_device_state(writer.bytes()) == (first, second)


def test_a_look_alike_of_the_header_in_other_data_is_passed_over(synthetic):
    state = synthetic.cpu_state(0x1000)
    decoy = b"\x04\0\0\0\x09\x03cpu\0\0\0\0\0\0\0\x0c" + bytes(40)
    writer = synthetic.StreamWriter().section("blob", 0, 1, [("data", decoy)]).cpu(state)
    assert parse_device_state(writer.bytes()) == (state,)


def broken(synthetic, change):
    writer = synthetic.StreamWriter().cpu(
        synthetic.cpu_state(0x1000), subsections=[("cpu/x", 1, [("f", b"1234")])]
    )
    change(writer)
    return writer.bytes()


def rename(writer, old, new):
    for field in writer.devices[0]["fields"]:
        if field["name"] == old:
            field["name"] = new


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: rename(w, "env.pat", "env.tap"), "env.pat"),
        (lambda w: rename(w, "env.mtrr_var", "env.gone"), "env.mtrr_var"),
        (lambda w: w.devices[0]["fields"][0].update(size=9), "cannot be read"),
        (lambda w: w.devices[0]["fields"][1].update(size=9), "0 sections"),
        (lambda w: w.devices[0]["fields"][1].update(size=-8), "cannot be read"),
        (lambda w: w.devices[0]["fields"][1].update(array_len="8"), "cannot be read"),
        (lambda w: w.devices[0].pop("fields"), "cannot be read"),
        (lambda w: w.devices[0].update(name="arm_cpu"), "no x86 vCPU"),
        (lambda w: w.devices[0].update(version=13), "0 sections"),
        (lambda w: w.devices[0].update(instance_id=7), "0 sections"),
        (lambda w: w.devices[0]["subsections"][0].update(version=2), "0 sections"),
        (lambda w: w.devices[0]["subsections"][0]["fields"][0].update(size=5), "0 sections"),
        (lambda w: w.devices[0].pop("subsections"), "0 sections"),
        (lambda w: w.devices.append(w.devices[0]), "one vCPU twice"),
        (lambda w: setattr(w, "body", w.body[:-5]), "0 sections"),
        (lambda w: setattr(w, "body", w.body + w.body[8:]), "2 sections"),
        (lambda w: w.devices.clear(), "no x86 vCPU"),
    ],
)
def test_a_layout_that_does_not_prove_itself_is_refused(synthetic, change, message):
    with pytest.raises(StreamError, match=message):
        parse_device_state(broken(synthetic, change))


def test_a_description_that_is_no_description(synthetic):
    for text in ({"devices": 3}, {"devices": [3]}, {"nothing": []}):
        with pytest.raises(StreamError, match="cannot be read"):
            parse_device_state(synthetic.StreamWriter().bytes(text))


def test_impossible_registers(synthetic):
    writer = synthetic.StreamWriter().cpu(synthetic.cpu_state(0x1000, cr0=0x180050033))
    with pytest.raises(StreamError, match="cannot be"):
        parse_device_state(writer.bytes())


@pytest.mark.parametrize(
    "changes",
    [{"cr0": 0x50033}, {"cr4": 0x690}, {"efer": 0x101}, {"cr0": 0x60000010, "cr4": 0, "efer": 0}],
    ids=["no-PG", "no-PAE", "no-LMA", "reset"],
)
def test_only_long_mode_has_levels(synthetic, changes):
    with pytest.raises(NotLongMode, match="vCPU 0"):
        _ = synthetic.cpu_state(0, **changes).levels


def test_levels(synthetic):
    assert synthetic.cpu_state(0).levels == 4
    assert synthetic.cpu_state(0, levels=5).levels == 5

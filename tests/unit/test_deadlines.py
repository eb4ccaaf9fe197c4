# SPDX-License-Identifier: MIT
"""How long a guest is waited for."""

import pytest

from harness.deadlines import REFERENCE_BOOT, Deadlines, checkers_of, crowd_now, stalled
from harness.errors import BadInput


def test_the_reference_waits_as_the_constants_say():
    measured = Deadlines().measured(REFERENCE_BOOT, crowd=0)
    assert measured.slowness == 1
    assert (measured.boot, measured.operation, measured.reply) == (60, 20, 5)


@pytest.mark.parametrize(
    ("boot", "crowd", "slowness"),
    [
        (0.1, 0, 0.5),  # KVM: never less than half
        (13, 0, 10),  # a debug kernel
        (1000, 0, 20),
        (1.3, 0.4, 1),
        (1.3, 2, 2),
        (1.3, 50, 3),
    ],
)
def test_a_boot_says_how_slow_a_guest_is(boot, crowd, slowness):
    assert Deadlines().measured(boot, crowd).slowness == pytest.approx(slowness)


def test_the_hosts_load_counts_now():
    assert Deadlines().measured(REFERENCE_BOOT).slowness >= 1
    assert crowd_now() >= 0


def test_one_factor_for_all():
    once, twice = Deadlines(3.0), Deadlines(3.0, scale=2.0)
    names = ("boot", "operation", "reply", "proof", "console", "command", "diagnosis")
    assert all(getattr(twice, name) == 2 * getattr(once, name) for name in names)
    assert twice.measured(REFERENCE_BOOT, crowd=1).scale == 2


def test_qemu_and_the_probes_do_not_wait_for_slow_guests():
    assert Deadlines(10.0).command == Deadlines().command
    assert Deadlines(10.0).diagnosis == 2


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf"), 1e9])
def test_what_is_no_factor(scale):
    with pytest.raises(BadInput, match="cannot multiply"):
        Deadlines(scale=scale)


def test_a_debug_kernel_is_expected_to_be_slow(tmp_path):
    config = tmp_path / ".config"
    config.write_text(
        "CONFIG_KASAN=y\n# CONFIG_KCSAN is not set\nCONFIG_PROVE_LOCKING=y\nCONFIG_KASAN_INLINE=y\n"
    )
    assert checkers_of(config) == ("CONFIG_KASAN", "CONFIG_PROVE_LOCKING")
    slow = Deadlines.expected("tcg", config)
    assert slow.slowness == 8
    assert "CONFIG_KASAN" in slow.why
    assert Deadlines.expected("kvm").slowness == 0.5
    assert Deadlines.expected("tcg", tmp_path / "none").slowness == 1


@pytest.mark.parametrize(("meant", "found"), [(0.05, 0.25), (0.28, 0), (5, 0)])
def test_a_wait_that_took_much_too_long_tells_of_a_host_that_stood_still(monkeypatch, meant, found):
    monkeypatch.setattr("harness.deadlines.time.monotonic", lambda: 10.3)
    assert stalled(10.0, meant) == pytest.approx(found)

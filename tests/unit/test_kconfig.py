# SPDX-License-Identifier: MIT
"""What a kernel's configuration has on."""

from harness.kconfig import options_on


def test_only_what_is_built_in_is_on(tmp_path):
    config = tmp_path / ".config"
    lines = (b"# CONFIG_A is not set", b"CONFIG_B=y", b"CONFIG_C=m", b'CONFIG_D="\xe9 y"', b"CONFIG_BB=y")
    config.write_bytes(b"\n".join(lines))
    assert options_on(config) == {"CONFIG_B", "CONFIG_BB"}


def test_nothing_is_known_of_a_file_that_is_not_there(tmp_path):
    assert options_on(tmp_path / ".config") is None
    assert options_on(tmp_path) is None

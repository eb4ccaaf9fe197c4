# SPDX-License-Identifier: MIT
"""A kernel's configuration: ``.config`` of its build tree, or what kbuild makes of it."""

from pathlib import Path


def options_on(config: Path) -> frozenset[str] | None:
    """Return the options of a configuration that are ``y``, ``CONFIG_`` included.

    Args:
        config: ``.config``, or ``include/config/auto.conf``.

    Returns:
        None where there is no such file, or it cannot be read: then nothing is known.
    """
    try:
        lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return frozenset(line.removesuffix("=y") for line in lines if line.endswith("=y"))

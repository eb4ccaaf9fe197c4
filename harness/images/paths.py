# SPDX-License-Identifier: MIT
"""Where the sources lie and where built things go."""

import os
from pathlib import Path

import platformdirs

from harness.errors import BadInput, HostLacks

CACHE_VARIABLE = "IOBMD_CACHE"


def cache_root() -> Path:
    """Return the folder that holds everything downloaded or built.

    ``$IOBMD_CACHE`` when set, else ``iobmd`` in the XDG cache folder.  The folder need not exist yet.

    Raises:
        BadInput: the path holds white space or a colon, which kbuild cannot work with
            (kernel ``Makefile``: "source directory cannot contain spaces or colons").
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    root = (Path(chosen) if chosen else platformdirs.user_cache_path("iobmd")).expanduser().absolute()
    if any(letter.isspace() or letter == ":" for letter in str(root)):
        raise BadInput(
            "the cache folder's path holds white space or a colon, and kernel modules cannot be built there",
            observed=str(root),
            hint=f"set {CACHE_VARIABLE} to a folder without them",
        )
    return root


def source_root() -> Path:
    """Return the folder that holds ``guest/``, ``kext_shim/`` and ``images/``.

    That is the repository for an editable installation, and ``harness/_tree`` inside a wheel.

    Raises:
        HostLacks: neither has them.
    """
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "_tree", package.parent):
        if all((candidate / name).is_dir() for name in ("guest", "kext_shim", "images")):
            return candidate
    raise HostLacks(
        "the sources of the agent and the kernel module are not beside the installed package",
        tried=f"looked in {package / '_tree'} and {package.parent}",
        hint="install the project again: pip install --force-reinstall iobmd, or run images/bootstrap",
    )

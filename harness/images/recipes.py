# SPDX-License-Identifier: MIT
"""Which kernel is wanted: one of the recipes in ``images/kernels.toml``, or files of the user's own."""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness.errors import BadInput
from harness.images.paths import source_root


@dataclass(frozen=True)
class Recipe:
    """One kernel that can be named.

    Attributes:
        name: what a user types.
        image_package: Debian metapackage of the kernel image.
        headers_package: Debian metapackage of its headers.
        series: how every release of it starts, for example ``"6.1"``.
        description: one line for a list of recipes.
    """

    name: str
    image_package: str
    headers_package: str
    series: str
    description: str


@dataclass(frozen=True)
class KernelSelector:
    """A recipe's name, or three paths; the default recipe when all are None.

    Attributes:
        recipe: name of a recipe.
        vmlinuz: a bzImage or an uncompressed x86-64 ELF kernel.
        modules: its ``lib/modules/<release>`` folder, or a folder that holds ``lib/modules/<release>``.
        headers: what ``make -C`` gets: a build tree or installed headers, with Module.symvers.
    """

    recipe: str | None = None
    vmlinuz: Path | None = None
    modules: Path | None = None
    headers: Path | None = None

    def __post_init__(self) -> None:
        """Refuse contradictions.

        Raises:
            BadInput: a recipe together with paths, or only some of the three paths.
        """
        paths = {"vmlinuz": self.vmlinuz, "modules": self.modules, "headers": self.headers}
        given = [name for name, path in paths.items() if path is not None]
        missing = [name for name, path in paths.items() if path is None]
        if self.recipe is not None and given:
            raise BadInput(
                "a kernel is either a recipe or files of your own, not both",
                observed=f"recipe {self.recipe!r} together with {', '.join(given)}",
                hint="leave one of them out; a kernel of your own is all three: vmlinuz, modules and headers",
            )
        if given and missing:
            raise BadInput(
                f"a kernel of your own needs vmlinuz, modules and headers; {' and '.join(missing)} missing",
                observed=f"given: {', '.join(given)}",
                hint=_WHY[missing[0]],
            )


_WHY = {
    "vmlinuz": "name the bzImage (arch/x86/boot/bzImage) or the vmlinux of that kernel",
    "modules": "make modules_install INSTALL_MOD_PATH=somewhere, and name somewhere/lib/modules/<release>",
    "headers": "the module is built for exactly this kernel: name its build tree or its linux-headers folder",
}


def _document() -> dict[str, Any]:
    path = source_root() / "images" / "kernels.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def load_recipes() -> Mapping[str, Recipe]:
    """Return every recipe by name, in the file's order."""
    rows = _document()["recipes"].items()
    return MappingProxyType(
        {
            name: Recipe(name, row["image"], row["headers"], row["series"], row["description"])
            for name, row in rows
        }
    )


def default_recipe() -> str:
    """Return the name of the recipe that is meant when none is named."""
    return str(_document()["default"])


def find_recipe(name: str) -> Recipe:
    """Return one recipe.

    Raises:
        BadInput: no recipe has that name; the error lists those there are.
    """
    recipes = load_recipes()
    if name in recipes:
        return recipes[name]
    close = difflib.get_close_matches(name, recipes, n=1, cutoff=0.4)
    raise BadInput(
        f"there is no kernel recipe {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""),
        hint="use one of: " + ", ".join(recipes),
        evidence=[f"{recipe.name}: {recipe.description}" for recipe in recipes.values()],
    )

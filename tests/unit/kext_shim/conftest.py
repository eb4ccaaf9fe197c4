# SPDX-License-Identifier: MIT
"""The placement functions of the module, compiled for the host, behind one Python face."""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHIM = HERE.parents[2] / "kext_shim"

U64 = ctypes.c_uint64


def _load_rules():
    spec = importlib.util.spec_from_file_location("placement_rules", HERE / "placement_rules.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


_load_rules()

from placement_rules import Limits, Plan, Refused, Request  # noqa: E402 - found by the line above only


class Shim:
    """`iobmd_place` and its neighbours."""

    def __init__(self, library):
        self._c = ctypes.CDLL(str(library))
        self._c.probe_usable.argtypes = [U64, U64, ctypes.c_uint32, U64, U64, U64, ctypes.POINTER(U64)]
        self._c.probe_usable.restype = U64
        self.type_of_map = self._c.probe_type_of_map
        self._reason_max = self._c.probe_reason_max()

    def place(self, request: Request, limits: Limits):
        out, reason = (U64 * 10)(), ctypes.c_char_p()
        arguments = (U64 * 6)(*vars(request).values())
        result = self._c.probe_place(arguments, (U64 * 6)(*vars(limits).values()), out, ctypes.byref(reason))
        if result == 0:
            assert reason.value == b""
            return Plan(*out[:6], bool(out[6]), *out[7:9], bool(out[9]))
        assert result < 0
        assert 10 < len(reason.value) < self._reason_max
        return Refused(-result)

    def request(self, **call):
        """What the factory boils down to, or the errno."""
        names = ("factory", "options", "capacity", "alignment", "mask", "task", "contiguous")
        out = (U64 * 6)()
        result = self._c.probe_request((U64 * 7)(*(call[name] for name in names)), out)
        return Refused(-result) if result else Request(*out)

    def usable(self, mask, alignment, contiguous, *, start, end, wanted):
        """First usable stretch as (address, bytes), or None."""
        at = U64()
        found = self._c.probe_usable(mask, alignment, contiguous, start, end, wanted, ctypes.byref(at))
        return (at.value, found) if found else None


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("placement") / "placement.so"
    argv = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-shared", "-fPIC"]
    # A trap needs no sanitizer runtime inside Python.
    argv += ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", f"-I{SHIM}", "-o", str(library)]
    argv += [str(SHIM / "iobmd_placement.c"), str(SHIM / "iobmd_request.c"), str(HERE / "placement_probe.c")]
    subprocess.run(argv, check=True)
    return Shim(library)

# SPDX-License-Identifier: MIT
"""Numbers against the header the module is built from, and against Apple's formulae."""

from __future__ import annotations

import errno

import pytest

from harness.errors import BadInput
from harness.iokit import IOReturn, constants, kIOReturnBadArgument, kIOReturnSuccess, verify_against
from harness.iokit.session import _ENUMS


def test_the_modules_header_agrees(layouts):
    verify_against(*(layouts.enum(name) for name in _ENUMS))


def test_every_enumeration_with_apples_names_is_compared(layouts):
    text = {name for name in layouts._enums if any(key.startswith("kIO") for key in layouts.enum(name))}
    assert text == set(_ENUMS)


@pytest.mark.parametrize(
    "theirs", [{"kIODirectionOut": 3}, {"kIONew": 1}, {"kIOReturnError": 5}, {"KERN_FAILURE": 6}]
)
def test_another_idea_of_a_constant_is_refused(theirs):
    with pytest.raises(BadInput, match=next(iter(theirs))):
        verify_against(theirs)


def test_signed_enumerators_are_the_same_numbers():
    verify_against({"kIOMapGuardedLarge": -0x8000_0000, "kIOReturnError": 0xE00002BC - (1 << 32)})


def test_codes_by_apples_formula():
    for name, code in {"Error": 0x2BC, "NoMemory": 0x2BD, "BadArgument": 0x2C2, "NotReady": 0x2D8}.items():
        assert IOReturn[f"kIOReturn{name}"] == 0xE000_0000 | code
    assert IOReturn.kIOReturnError.signed == -536870212
    assert IOReturn.kIOReturnSuccess.signed == 0
    assert kIOReturnSuccess.ok
    assert not kIOReturnBadArgument.ok


def test_errno_of_a_code():
    assert IOReturn.kIOReturnNotWritable.errno == errno.EROFS
    assert IOReturn.kIOReturnCannotWire.errno == errno.ENOMEM
    assert IOReturn.kIOReturnNotFound.errno == errno.EIO
    assert IOReturn.kIOReturnSuccess.errno == 0


def test_an_unknown_code_stays_a_number():
    assert IOReturn.of(0x1234) == 0x1234
    assert not isinstance(IOReturn.of(0x1234), IOReturn)
    assert IOReturn.of(-536870206) is IOReturn.kIOReturnBadArgument
    assert IOReturn.of(4) is IOReturn.KERN_INVALID_ARGUMENT


def test_collisions_of_apples_namespaces():
    """The overlaps that bite are facts; a tidied-up value would be a wrong one."""
    k = constants
    assert k.kIOMemoryMapperNone & k.kIOMapCacheMask
    assert k.kIOMemoryPersistent == k.kIOMemoryKernelUserShared
    assert k.kIOMemoryTypeVirtual == k.kIOMemoryPhysicallyContiguous
    assert k.kIOMemoryMapCacheModeWriteThrough == k.kIOMapWriteCombineCache
    assert k.kIODirectionPrepareToPhys32 & k.kIOMemoryDirectionMask
    assert [k.kIOMapInhibitCache, k.kIOMapPostedCombinedReordered] == [0x100, 0x900]

# SPDX-License-Identifier: MIT
"""Apple's constants under Apple's names.

The values are those of IOMemoryDescriptor.h, IOBufferMemoryDescriptor.h, IOMapTypes.h and IOReturn.h
(xnu-11417.101.15).  The module's header carries the ones it acts on too; `verify_against` compares the two,
so that a module built from another idea of a constant is refused before the first call.

Options are plain integers because Apple ORs families together: a direction, buffer options and a map
option travel in one ``IOOptionBits`` word.
"""

from collections.abc import Mapping
from typing import Final

from harness.errors import BadInput

# IODirection: who moves the bytes.  In is device to memory, Out is memory to device.
kIODirectionNone: Final = 0x0
kIODirectionIn: Final = 0x1
kIODirectionOut: Final = 0x2
kIODirectionOutIn: Final = 0x3
kIODirectionInOut: Final = 0x3
kIOMemoryDirectionMask: Final = 0x7

# IOBufferMemoryDescriptor: what kind of memory.
kIOMemoryPhysicallyContiguous: Final = 0x00000010
kIOMemoryPageable: Final = 0x00000020
kIOMemoryPurgeable: Final = 0x00000040
kIOMemoryHostPhysicallyContiguous: Final = 0x00000080
kIOMemorySharingTypeMask: Final = 0x000F0000
kIOMemoryUnshared: Final = 0x00000000
kIOMemoryKernelUserShared: Final = 0x00010000

# IOMemoryDescriptor flags that reach the buffer's superclass.
kIOMemoryMapperNone: Final = 0x00000800
kIOMemoryThreadSafe: Final = 0x00100000
kIOMemoryClearEncrypt: Final = 0x00200000
kIOMemoryUseReserve: Final = 0x00800000

# Cache modes, and the same modes as map options.
kIODefaultCache: Final = 0
kIOInhibitCache: Final = 1
kIOWriteThruCache: Final = 2
kIOCopybackCache: Final = 3
kIOWriteCombineCache: Final = 4
kIOCopybackInnerCache: Final = 5
kIOPostedWrite: Final = 6
kIORealTimeCache: Final = 7
kIOPostedReordered: Final = 8
kIOPostedCombinedReordered: Final = 9

kIOMapCacheShift: Final = 8
kIOMapCacheMask: Final = 0xF00
kIOMapDefaultCache: Final = kIODefaultCache << kIOMapCacheShift
kIOMapInhibitCache: Final = kIOInhibitCache << kIOMapCacheShift
kIOMapWriteThruCache: Final = kIOWriteThruCache << kIOMapCacheShift
kIOMapCopybackCache: Final = kIOCopybackCache << kIOMapCacheShift
kIOMapWriteCombineCache: Final = kIOWriteCombineCache << kIOMapCacheShift
kIOMapCopybackInnerCache: Final = kIOCopybackInnerCache << kIOMapCacheShift
kIOMapPostedWrite: Final = kIOPostedWrite << kIOMapCacheShift
kIOMapRealTimeCache: Final = kIORealTimeCache << kIOMapCacheShift
kIOMapPostedReordered: Final = kIOPostedReordered << kIOMapCacheShift
kIOMapPostedCombinedReordered: Final = kIOPostedCombinedReordered << kIOMapCacheShift


def verify_against(*enums: Mapping[str, int]) -> None:
    """Check these constants against the enumerations read from a built module.

    Args:
        enums: name to value, as the module's DWARF has them.

    Raises:
        BadInput: a name has another value there, or the module knows a ``kIO`` name that is not here.
    """
    ours = {name: value for name, value in globals().items() if name.startswith("kIO")}
    theirs = {name: value for enum in enums for name, value in enum.items() if name.startswith("kIO")}
    wrong = [
        f"{name} = {value:#x} in the module, {ours.get(name, 'unknown')} here"
        for name, value in sorted(theirs.items())
        if ours.get(name) != value
    ]
    if wrong:
        raise BadInput(
            "the kernel module was built with other constants than this harness speaks",
            tried="comparing the module's enumerations (DWARF) with harness.iokit.constants",
            observed="; ".join(wrong),
            hint="build the module from the kext_shim/ beside this harness",
        )

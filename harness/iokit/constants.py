# SPDX-License-Identifier: MIT
"""Apple's constants under Apple's names.

The values are those of IOMemoryDescriptor.h, IOBufferMemoryDescriptor.h, IOMapTypes.h and DriverKit's
IOMemoryDescriptor.iig (xnu-11417.101.15); return codes are in `harness.iokit.returns`.  The module's header
carries the ones it acts on too; `verify_against` compares the two, so that a module built from another idea
of a constant is refused before the first call.

Options are plain integers because Apple ORs families together: a direction, buffer options and a map
option travel in one ``IOOptionBits`` word.
"""

from collections.abc import Mapping
from typing import Final

from harness.errors import BadInput
from harness.iokit.returns import IOReturn

_UNSIGNED = 0xFFFF_FFFF

# IODirection: who moves the bytes.  In is device to memory, Out is memory to device.
kIODirectionNone: Final = 0x0
kIODirectionIn: Final = 0x1
kIODirectionOut: Final = 0x2
kIODirectionOutIn: Final = 0x3
kIODirectionInOut: Final = 0x3
kIOMemoryDirectionMask: Final = 0x7

# What prepare() and complete() take beside a direction.
kIODirectionPrepareToPhys32: Final = 0x4
kIODirectionPrepareNoFault: Final = 0x8
kIODirectionPrepareReserved1: Final = 0x10
kIODirectionPrepareNoZeroFill: Final = 0x10
kIODirectionPrepareNonCoherent: Final = 0x20
kIODirectionCompleteWithError: Final = 0x40
kIODirectionCompleteWithDataValid: Final = 0x80
kIODirectionPrepareAvoidThrottling: Final = 0x100

# IOBufferMemoryDescriptor: what kind of memory.
kIOMemoryPhysicallyContiguous: Final = 0x00000010
kIOMemoryPageable: Final = 0x00000020
kIOMemoryPurgeable: Final = 0x00000040
kIOMemoryHostPhysicallyContiguous: Final = 0x00000080
kIOMemorySharingTypeMask: Final = 0x000F0000
kIOMemoryUnshared: Final = 0x00000000
kIOMemoryKernelUserShared: Final = 0x00010000
kIOBufferDescriptorMemoryFlags: Final = 0x00B00807  # the option bits that reach the superclass, as published

# IOMemoryDescriptor: options and flags of the superclass.  Numbers collide with the buffer's own: an option
# word means something only together with the class it is given to.
kIOMemoryAutoPrepare: Final = 0x00000008
kIOMemoryTypeVirtual: Final = 0x00000010
kIOMemoryTypePhysical: Final = 0x00000020
kIOMemoryTypeUPL: Final = 0x00000030
kIOMemoryTypePersistentMD: Final = 0x00000040
kIOMemoryTypeUIO: Final = 0x00000050
kIOMemoryTypeMask: Final = 0x000000F0
kIOMemoryAsReference: Final = 0x00000100
kIOMemoryBufferPageable: Final = 0x00000400
kIOMemoryMapperNone: Final = 0x00000800
kIOMemoryHostOnly: Final = 0x00001000
kIOMemoryRedirected: Final = 0x00004000
kIOMemoryPreparedReadOnly: Final = 0x00008000
kIOMemoryPersistent: Final = 0x00010000
kIOMemoryMapCopyOnWrite: Final = 0x00020000
kIOMemoryRemote: Final = 0x00040000
kIOMemoryThreadSafe: Final = 0x00100000
kIOMemoryClearEncrypt: Final = 0x00200000
kIOMemoryBufferPurgeable: Final = 0x00400000
kIOMemoryUseReserve: Final = 0x00800000
kIOMemoryBufferCacheMask: Final = 0x70000000
kIOMemoryBufferCacheShift: Final = 28

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

# How a mapping is made.
kIOMapAnywhere: Final = 0x00000001
kIOMapUserOptionsMask: Final = 0x00000FFF
kIOMapReadOnly: Final = 0x00001000
kIOMapStatic: Final = 0x01000000
kIOMapReference: Final = 0x02000000
kIOMapUnique: Final = 0x04000000
kIOMap64Bit: Final = 0x08000000
kIOMapPrefault: Final = 0x10000000
kIOMapOverwrite: Final = 0x20000000
kIOMapGuardedSmall: Final = 0x40000000
kIOMapGuardedLarge: Final = 0x80000000
kIOMapGuardedMask: Final = 0xC0000000

# setPurgeable(): a state in the low nibble, and how a volatile buffer queues.
kIOMemoryPurgeableStateMask: Final = 0xF
kIOMemoryPurgeableKeepCurrent: Final = 1
kIOMemoryPurgeableNonVolatile: Final = 2
kIOMemoryPurgeableVolatile: Final = 3
kIOMemoryPurgeableEmpty: Final = 4
kIOMemoryPurgeableVolatileGroup0: Final = 0x000
kIOMemoryPurgeableVolatileGroup1: Final = 0x100
kIOMemoryPurgeableVolatileGroup2: Final = 0x200
kIOMemoryPurgeableVolatileGroup3: Final = 0x300
kIOMemoryPurgeableVolatileGroup4: Final = 0x400
kIOMemoryPurgeableVolatileGroup5: Final = 0x500
kIOMemoryPurgeableVolatileGroup6: Final = 0x600
kIOMemoryPurgeableVolatileGroup7: Final = 0x700
kIOMemoryPurgeableVolatileBehaviorFifo: Final = 0x00
kIOMemoryPurgeableVolatileBehaviorLifo: Final = 0x40
kIOMemoryPurgeableVolatileOrderingNormal: Final = 0x00
kIOMemoryPurgeableVolatileOrderingObsolete: Final = 0x20
kIOMemoryPurgeableFaultOnAccess: Final = 0x2000

# performOperation()
kIOMemoryIncoherentIOFlush: Final = 1
kIOMemoryIncoherentIOStore: Final = 2
kIOMemoryClearEncrypted: Final = 50
kIOMemorySetEncrypted: Final = 51

# getPreparationID() and setOwnership()
kIOPreparationIDUnprepared: Final = 0
kIOPreparationIDUnsupported: Final = 1
kIOPreparationIDAlwaysPrepared: Final = 2
kIOMemoryLedgerTagDefault: Final = 1
kIOMemoryLedgerTagNetwork: Final = 2
kIOMemoryLedgerTagMedia: Final = 3
kIOMemoryLedgerTagGraphics: Final = 4
kIOMemoryLedgerTagNeural: Final = 5
kIOMemoryLedgerFlagNoFootprint: Final = 1

# DriverKit's IOMemoryDescriptor.  A cache mode is one bit, and reuses a kIOMap number with another meaning.
kIOMemoryDirectionNone: Final = 0
kIOMemoryDirectionIn: Final = 1
kIOMemoryDirectionOut: Final = 2
kIOMemoryDirectionOutIn: Final = 3
kIOMemoryDirectionInOut: Final = 3
kIOMemoryDisableCopyOnWrite: Final = 0x10
kIOMemoryMapFixedAddress: Final = 0x1
kIOMemoryMapReadOnly: Final = 0x2
kIOMemoryMapGuardedMask: Final = 0x1C
kIOMemoryMapGuardedDefault: Final = 0x0
kIOMemoryMapGuardedNone: Final = 0x4
kIOMemoryMapGuardedSmall: Final = 0x8
kIOMemoryMapGuardedLarge: Final = 0xC
kIOMemoryMapCacheModeMask: Final = 0xFF00
kIOMemoryMapCacheModeDefault: Final = 0x0
kIOMemoryMapCacheModeInhibit: Final = 0x100
kIOMemoryMapCacheModeCopyback: Final = 0x200
kIOMemoryMapCacheModeWriteThrough: Final = 0x400
kIOMemoryMapCacheModeRealTime: Final = 0x800


def verify_against(*enums: Mapping[str, int]) -> None:
    """Check these constants against the enumerations read from a built module.

    Args:
        enums: name to value, as the module's DWARF has them.

    Raises:
        BadInput: a name has another value there, or the module knows one of Apple's names that is not here.
    """
    ours = {name: value for name, value in globals().items() if name.startswith("kIO")}
    ours |= {member.name: member.value for member in IOReturn}
    theirs = {
        name: value & _UNSIGNED
        for enum in enums
        for name, value in enum.items()
        if name.startswith(("kIO", "KERN_"))
    }
    wrong = [
        f"{name} = {value:#x} in the module, {f'{ours[name]:#x}' if name in ours else 'unknown'} here"
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

# SPDX-License-Identifier: MIT
"""What Apple's calls return: IOReturn and the Mach codes that leak out of the virtual memory system."""

from __future__ import annotations

import errno as _errno
from enum import IntEnum
from typing import Final


def _iokit(code: int) -> int:
    """IOReturn.h: system 0x38 (err_iokit), subsystem 0, in the upper bits."""
    return 0x38 << 26 | code


class IOReturn(IntEnum):
    """An ``IOReturn``/``kern_return_t``, unsigned as the headers write it.

    A code without a name here is kept as a plain number by `of`.
    """

    kIOReturnSuccess = 0
    kIOReturnError = _iokit(0x2BC)
    kIOReturnNoMemory = _iokit(0x2BD)
    kIOReturnNoResources = _iokit(0x2BE)
    kIOReturnBadArgument = _iokit(0x2C2)
    kIOReturnUnsupported = _iokit(0x2C7)
    kIOReturnVMError = _iokit(0x2C8)
    kIOReturnInternalError = _iokit(0x2C9)
    kIOReturnNotReadable = _iokit(0x2CE)
    kIOReturnNotWritable = _iokit(0x2CF)
    kIOReturnNotAligned = _iokit(0x2D0)
    kIOReturnBusy = _iokit(0x2D5)
    kIOReturnNotReady = _iokit(0x2D8)
    kIOReturnNotAttached = _iokit(0x2D9)
    kIOReturnNoSpace = _iokit(0x2DB)
    kIOReturnCannotWire = _iokit(0x2DE)
    kIOReturnNotPermitted = _iokit(0x2E2)
    kIOReturnUnderrun = _iokit(0x2E7)
    kIOReturnOverrun = _iokit(0x2E8)
    kIOReturnNotFound = _iokit(0x2F0)
    kIOReturnInvalid = _iokit(0x1)

    # mach/kern_return.h, as setPurgeable() and prepare() pass them on.
    KERN_INVALID_ADDRESS = 1
    KERN_PROTECTION_FAILURE = 2
    KERN_NO_SPACE = 3
    KERN_INVALID_ARGUMENT = 4
    KERN_FAILURE = 5
    KERN_RESOURCE_SHORTAGE = 6
    KERN_MEMORY_ERROR = 10
    KERN_INVALID_RIGHT = 17

    @classmethod
    def of(cls, code: int) -> IOReturn | int:
        """The member for *code*, signed or unsigned 32 bits; the number itself where there is none."""
        unsigned = code & 0xFFFF_FFFF
        try:
            return cls(unsigned)
        except ValueError:
            return unsigned

    @property
    def ok(self) -> bool:
        """Whether this is kIOReturnSuccess."""
        return self is IOReturn.kIOReturnSuccess

    @property
    def signed(self) -> int:
        """The value as the ``int32_t`` Apple's calls return."""
        return self.value - (1 << 32) if self.value >> 31 else self.value

    @property
    def errno(self) -> int:
        """The errno that IOService::errnoFromReturn makes of it; EIO where that has no answer."""
        return _ERRNO.get(self, _errno.EIO)


_ERRNO: Final[dict[IOReturn, int]] = {
    IOReturn.kIOReturnSuccess: 0,
    IOReturn.kIOReturnNoMemory: _errno.ENOMEM,
    IOReturn.kIOReturnNoResources: _errno.ENOMEM,
    IOReturn.kIOReturnBadArgument: _errno.EINVAL,
    IOReturn.kIOReturnUnsupported: _errno.ENOTSUP,
    IOReturn.kIOReturnVMError: _errno.EFAULT,
    IOReturn.kIOReturnNotReadable: _errno.EACCES,
    IOReturn.kIOReturnNotWritable: _errno.EROFS,
    IOReturn.kIOReturnNotAligned: _errno.EINVAL,
    IOReturn.kIOReturnBusy: _errno.EBUSY,
    IOReturn.kIOReturnNotReady: _errno.EBUSY,
    IOReturn.kIOReturnNotAttached: _errno.ENXIO,
    IOReturn.kIOReturnNoSpace: _errno.ENOSPC,
    IOReturn.kIOReturnCannotWire: _errno.ENOMEM,
    IOReturn.kIOReturnNotPermitted: _errno.EPERM,
}

kIOReturnSuccess: Final = IOReturn.kIOReturnSuccess
kIOReturnError: Final = IOReturn.kIOReturnError
kIOReturnNoMemory: Final = IOReturn.kIOReturnNoMemory
kIOReturnNoResources: Final = IOReturn.kIOReturnNoResources
kIOReturnBadArgument: Final = IOReturn.kIOReturnBadArgument
kIOReturnUnsupported: Final = IOReturn.kIOReturnUnsupported
kIOReturnVMError: Final = IOReturn.kIOReturnVMError
kIOReturnInternalError: Final = IOReturn.kIOReturnInternalError
kIOReturnNotReadable: Final = IOReturn.kIOReturnNotReadable
kIOReturnNotWritable: Final = IOReturn.kIOReturnNotWritable
kIOReturnNotAligned: Final = IOReturn.kIOReturnNotAligned
kIOReturnBusy: Final = IOReturn.kIOReturnBusy
kIOReturnNotReady: Final = IOReturn.kIOReturnNotReady
kIOReturnNotAttached: Final = IOReturn.kIOReturnNotAttached
kIOReturnNoSpace: Final = IOReturn.kIOReturnNoSpace
kIOReturnCannotWire: Final = IOReturn.kIOReturnCannotWire
kIOReturnNotPermitted: Final = IOReturn.kIOReturnNotPermitted
kIOReturnUnderrun: Final = IOReturn.kIOReturnUnderrun
kIOReturnOverrun: Final = IOReturn.kIOReturnOverrun
kIOReturnNotFound: Final = IOReturn.kIOReturnNotFound
kIOReturnInvalid: Final = IOReturn.kIOReturnInvalid
KERN_INVALID_ADDRESS: Final = IOReturn.KERN_INVALID_ADDRESS
KERN_PROTECTION_FAILURE: Final = IOReturn.KERN_PROTECTION_FAILURE
KERN_NO_SPACE: Final = IOReturn.KERN_NO_SPACE
KERN_INVALID_ARGUMENT: Final = IOReturn.KERN_INVALID_ARGUMENT
KERN_FAILURE: Final = IOReturn.KERN_FAILURE
KERN_RESOURCE_SHORTAGE: Final = IOReturn.KERN_RESOURCE_SHORTAGE
KERN_MEMORY_ERROR: Final = IOReturn.KERN_MEMORY_ERROR
KERN_INVALID_RIGHT: Final = IOReturn.KERN_INVALID_RIGHT

# SPDX-License-Identifier: MIT
"""What a factory gives instead of a descriptor."""

import errno
from typing import Literal, NoReturn

from harness.errors import HarnessError


class NullDescriptorError(HarnessError, AttributeError):
    """A method was called on the NULL that a factory returned (exit code 2)."""


class Null:
    """NULL, with the reason Apple's factories keep to themselves (clause A04).

    It is false, so ``assert buf`` and ``if not buf`` read as they do in C++, and using it as a descriptor
    raises an error that says which factory failed and why.

    Attributes:
        call: the factory call, as it would be written.
        errno: the errno the module gave beside the NULL.
        reason: one sentence for a person.
    """

    def __init__(self, call: str, errno: int, reason: str) -> None:
        self.call = call
        self.errno = errno
        self.reason = reason

    def __bool__(self) -> Literal[False]:
        return False

    def __repr__(self) -> str:
        name = errno.errorcode.get(self.errno, str(self.errno))
        return f"<NULL from {self.call}: {name}: {self.reason}>"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # copy, pickle and inspect probe for these and expect the plain error
            raise AttributeError(name)
        code = errno.errorcode.get(self.errno, str(self.errno))
        raise NullDescriptorError(
            f"{name} was asked of NULL",
            tried=self.call,
            observed=f"{code}: {self.reason}",
            hint="`assert buf` after the factory, or ask for memory this machine can give",
        )

# SPDX-License-Identifier: MIT
"""Boot a real Linux kernel, create DMA buffers in it, judge them from outside.

The rooms, from the ground up: ``images`` builds what is booted, ``vm`` runs it, ``link`` talks to it,
``iokit`` speaks IOBufferMemoryDescriptor through the link, ``oracle`` looks at the machine without asking
the guest, ``contract`` compares the two, ``report`` prints what came of it.  ``cli`` and ``plugin`` are
the doors.
"""

# SPDX-License-Identifier: MIT
"""What is booted: kernel, module, agent, initramfs; built here, cached, never installed on the host.

``prepare_kernel`` finds the kernel, ``build_module`` and ``build_agent`` compile for it, ``prepare_guest``
puts everything together.  All of it lands in `cache_root` and is used from there the next time.
"""

from harness.images.apt import PackageRecord
from harness.images.build import (
    AgentBuild,
    BuildFailed,
    ModuleBuild,
    build_agent,
    build_module,
    build_modules,
)
from harness.images.guest import GuestImage, prepare_guest
from harness.images.kernel import CachedKernel, Kernel, cached_kernels, prepare_kernel
from harness.images.layouts import Field, Layouts, StructLayout, Value
from harness.images.modcheck import ModuleMismatch, check_module
from harness.images.packages import busybox
from harness.images.paths import cache_root, source_root
from harness.images.progress import Progress, RichProgress, SilentProgress, Task
from harness.images.recipes import KernelSelector, Recipe, default_recipe, find_recipe, load_recipes
from harness.images.run import ProgramFailed
from harness.images.ssh import PayloadFile, SshPayload, ssh_payload
from harness.images.store import CacheUnusable

__all__ = [
    "AgentBuild",
    "BuildFailed",
    "CacheUnusable",
    "CachedKernel",
    "Field",
    "GuestImage",
    "Kernel",
    "KernelSelector",
    "Layouts",
    "ModuleBuild",
    "ModuleMismatch",
    "PackageRecord",
    "PayloadFile",
    "ProgramFailed",
    "Progress",
    "Recipe",
    "RichProgress",
    "SilentProgress",
    "SshPayload",
    "StructLayout",
    "Task",
    "Value",
    "build_agent",
    "build_module",
    "build_modules",
    "busybox",
    "cache_root",
    "cached_kernels",
    "check_module",
    "default_recipe",
    "find_recipe",
    "load_recipes",
    "prepare_guest",
    "prepare_kernel",
    "source_root",
    "ssh_payload",
]

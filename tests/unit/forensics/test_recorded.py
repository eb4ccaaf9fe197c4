# SPDX-License-Identifier: MIT
"""Reports that real kernels printed when a small module did wrong.

Debian's 6.1, 6.1-rt and 6.12; and two with checkers, built from Debian's sources (``*-debug``; the files say
how).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness.forensics import SplatKind, deduplicated, splats

RECORDED = Path(__file__).with_name("recorded")

# Kind, CPU, task, instruction, first functions that the unwinder was sure of; of every report in the file.
OOPS, WARNING, BUG, PANIC = SplatKind.OOPS, SplatKind.WARNING, SplatKind.BUG, SplatKind.PANIC
KASAN, UBSAN, LOCKDEP = SplatKind.KASAN, SplatKind.UBSAN, SplatKind.LOCKDEP
EXPECTED = {
    "6.1-cloud.null": [(OOPS, 0, "exe", "descend", "descend descend descend deep_write run_set")],
    # The same with oops=panic on the command line.
    "6.1-cloud.null-panic": [
        (OOPS, 0, "exe", "descend", "descend descend descend deep_write run_set"),
        (PANIC, None, "", "", ""),
    ],
    "6.1-cloud.warn": [(WARNING, 0, "exe", "deep_warn", "run_set param_attr_store")],
    "6.1-cloud.warn_on": [(WARNING, 0, "exe", "run_set", "param_attr_store")],
    "6.1-cloud.bug": [(BUG, 0, "exe", "run_set", "param_attr_store")],
    "6.1-cloud.gpf": [(OOPS, 0, "exe", "descend", "deep_write run_set")],
    "6.1-cloud.paging": [(OOPS, 0, "exe", "descend", "deep_write run_set")],
    "6.1-cloud.jumpnull": [(OOPS, 0, "exe", "0x0", "run_set")],
    "6.1-cloud.list": [(BUG, 0, "exe", "__list_add_valid.cold", "corrupt_list run_set")],
    "6.1-cloud.double_free": [(BUG, 0, "exe", "__kmem_cache_free", "run_set")],
    "6.1-cloud.work": [(OOPS, 0, "kworker/0:0", "descend", "descend deep_write process_one_work")],
    "6.1-cloud.panic": [(PANIC, 0, "exe", "", "dump_stack_lvl panic run_set")],
    "6.1-cloud.sysrq-c": [(PANIC, 0, "exe", "", "dump_stack_lvl panic sysrq_handle_crash")],
    "6.1-cloud.sysrq-l": [(SplatKind.NMI, 0, "exe", "", "dump_stack_lvl nmi_cpu_backtrace.cold")],
    "6.1-cloud.sysrq-w": [(SplatKind.TASK, None, "exe", "", "__schedule schedule schedule_timeout")],
    "6.1-cloud.hung": [(SplatKind.HUNG_TASK, None, "exe", "", "__schedule schedule schedule_timeout")],
    "6.1-cloud.soft": [(SplatKind.SOFT_LOCKUP, 0, "exe", "run_set", "param_attr_store")],
    "6.1-cloud.spin": [
        (SplatKind.SOFT_LOCKUP, 0, "exe", "native_queued_spin_lock_slowpath", "_raw_spin_lock run_set")
    ],
    "6.1-cloud.rcu": [(SplatKind.RCU_STALL, 0, "exe", "run_set", "param_attr_store")],
    "6.1-cloud.sleep_atomic": [
        (
            BUG,
            0,
            "exe",
            "",
            "dump_stack_lvl __schedule_bug.cold __schedule schedule schedule_timeout run_set",
        ),
        (BUG, 0, "exe", "", "dump_stack_lvl __schedule_bug.cold __schedule schedule schedule_timeout"),
    ],
    "6.1-cloud.timer": [
        (OOPS, 0, "swapper/0", "descend", "deep_write call_timer_fn __run_timers"),
        (PANIC, None, "", "", ""),
    ],
    "6.1-cloud.overflow": [(OOPS, 0, "exe", "overflow", "overflow overflow"), (PANIC, None, "", "", "")],
    "6.1-cloud.all_warn": [
        (WARNING, 0, "swapper/0", "remote_warn", "__flush_smp_call_function_queue"),
        (WARNING, 1, "exe", "remote_warn", "smp_call_function_many_cond on_each_cpu_cond_mask run_set"),
    ],
    "6.1-cloud.all_oops": [
        (OOPS, 1, "swapper/1", "remote_oops", "__flush_smp_call_function_queue"),
        (OOPS, 0, "exe", "remote_oops", "smp_call_function_many_cond on_each_cpu_cond_mask run_set"),
        (PANIC, None, "", "", ""),
    ],
    "6.1.double_free": [
        (SplatKind.SLAB, 0, "exe", "", "dump_stack_lvl object_err free_to_partial_list.cold run_set"),
        (SplatKind.SLAB, 0, "exe", "", "dump_stack_lvl slab_err on_freelist.cold free_to_partial_list"),
    ],
    # The kernel prints from a thread that dies itself: half lines, and its lines twice broken.
    "6.1-rt.sleep_atomic": [
        (BUG, 0, "exe", "", "dump_stack_lvl __schedule_bug.cold __schedule"),
        (BUG, 0, "exe", "", "dump_stack_lvl __schedule_bug.cold __schedule do_task_dead"),
        (WARNING, 0, "pr/ttyS0", "refcount_warn_saturate", "finish_task_switch.isra.0 __schedule"),
        (WARNING, 0, "rcuc/0", "free_task", "rcu_do_batch rcu_core"),
        (OOPS, 0, "rcuc/0", "0xffffff8135c7c0ff", ""),
        (PANIC, None, "", "", ""),
    ],
    "6.12-cloud.null": [(OOPS, 0, "exe", "descend", "descend descend descend deep_write run_set")],
    "6.12-cloud.warn": [(WARNING, 0, "exe", "deep_warn", "run_set param_attr_store")],
    "6.12-cloud.bug": [(BUG, 0, "exe", "run_set", "param_attr_store")],
    "6.12-cloud.gpf": [(OOPS, 0, "exe", "descend", "deep_write run_set")],
    "6.12-cloud.list": [(BUG, 0, "exe", "__list_add_valid_or_report", "corrupt_list run_set")],
    "6.12-cloud.hung": [(SplatKind.HUNG_TASK, None, "exe", "", "__schedule schedule schedule_timeout")],
    "6.12-cloud.sysrq-w": [(SplatKind.TASK, None, "exe", "", "__schedule schedule schedule_timeout")],
    "6.12-cloud.panic": [(PANIC, 0, "exe", "", "panic run_set")],
    "6.12-cloud.soft": [(SplatKind.SOFT_LOCKUP, 0, "exe", "run_set", "param_attr_store")],
    "6.12-cloud.timer": [
        (OOPS, 0, "swapper/0", "descend", "deep_write call_timer_fn __run_timers"),
        (PANIC, None, "", "", ""),
    ],
    "6.1-debug.use-after-free": [
        (KASAN, 0, "init", "", "dump_stack_lvl print_report kasan_report do_use_after_free faults_write")
    ],
    "6.1-debug.out-of-bounds": [
        (KASAN, 0, "init", "", "dump_stack_lvl print_report kasan_report do_out_of_bounds faults_write")
    ],
    "6.1-debug.oops": [
        (KASAN, 0, "init", "", "dump_stack_lvl kasan_report do_oops faults_write"),
        (OOPS, 0, "init", "do_oops", "faults_write vfs_write"),
        (PANIC, None, "", "", ""),
    ],
    "6.1-debug.lock-order": [
        (
            LOCKDEP,
            0,
            "init",
            "",
            "dump_stack_lvl check_noncircular __lock_acquire lock_acquire __mutex_lock lock_both",
        )
    ],
    "6.1-debug.lock-interrupt": [
        (
            LOCKDEP,
            0,
            "init",
            "",
            "dump_stack_lvl mark_lock.cold __lock_acquire lock_acquire _raw_spin_lock do_lock_interrupt",
        )
    ],
    "6.1-debug.sleep-locked": [
        (
            BUG,
            0,
            "init",
            "",
            "dump_stack_lvl __might_resched.cold __kmem_cache_alloc_node kmalloc_trace do_sleep_locked",
        )
    ],
    "6.1-debug.unmap-half": [
        (SplatKind.DMA_API, 0, "init", "check_unmap", "debug_dma_unmap_page do_unmap_half faults_write")
    ],
    "6.1-debug.shift": [
        (
            UBSAN,
            0,
            "init",
            "",
            "dump_stack_lvl ubsan_epilogue __ubsan_handle_shift_out_of_bounds.cold do_shift.cold",
        )
    ],
    "6.1-debug.index": [
        (UBSAN, 0, "init", "", "dump_stack_lvl ubsan_epilogue __ubsan_handle_out_of_bounds.cold do_index")
    ],
    "6.12-debug.use-after-free": [
        (KASAN, 0, "init", "", "dump_stack_lvl print_report kasan_report do_use_after_free faults_write")
    ],
    "6.12-debug.out-of-bounds": [
        (KASAN, 0, "init", "", "dump_stack_lvl print_report kasan_report do_out_of_bounds faults_write")
    ],
    "6.12-debug.oops": [
        (OOPS, 0, "init", "do_oops", "faults_write vfs_write ksys_write"),
        (PANIC, None, "", "", ""),
    ],
    "6.12-debug.lock-order": [
        (
            LOCKDEP,
            0,
            "init",
            "",
            "dump_stack_lvl print_circular_bug check_noncircular __lock_acquire lock_acquire __mutex_lock",
        )
    ],
    "6.12-debug.lock-interrupt": [
        (
            LOCKDEP,
            0,
            "init",
            "",
            "dump_stack_lvl print_usage_bug.part.0 mark_lock __lock_acquire lock_acquire _raw_spin_lock",
        )
    ],
    "6.12-debug.sleep-locked": [
        (BUG, 0, "init", "", "dump_stack_lvl __might_resched __kmalloc_cache_noprof do_sleep_locked")
    ],
    "6.12-debug.unmap-half": [
        (SplatKind.DMA_API, 0, "init", "check_unmap", "debug_dma_unmap_page do_unmap_half faults_write")
    ],
    "6.12-debug.shift": [
        (UBSAN, 0, "init", "", "dump_stack_lvl __ubsan_handle_shift_out_of_bounds do_shift.cold faults_write")
    ],
    "6.12-debug.index": [
        (UBSAN, 0, "init", "", "dump_stack_lvl __ubsan_handle_out_of_bounds do_index faults_write")
    ],
}
CHECKED = [name for name in EXPECTED if "-debug." in name]


def recorded(name):
    return (RECORDED / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", EXPECTED)
def test_every_report_is_found_and_taken_apart(name):
    found = splats(recorded(name))
    assert [splat.kind for splat in found] == [row[0] for row in EXPECTED[name]]
    for splat, (_, cpu, comm, rip, functions) in zip(found, EXPECTED[name], strict=True):
        assert (splat.cpu, splat.comm) == (cpu, comm)
        assert (splat.rip.symbol if splat.rip else "") == rip
        sure = [frame.symbol for frame in splat.frames if frame.sure]
        assert sure[: len(functions.split())] == functions.split()
        assert (splat.pid is None) == (comm == "")


@pytest.mark.parametrize("name", EXPECTED)
def test_nothing_of_a_trace_is_lost(name):
    """Every line of the file that is a frame is a frame of a report: in its text, and in a stack."""
    text = recorded(name)
    written = re.findall(
        r"^\[[^]]+\](?:\[ *[TC]\d+\])?\s+(?:\? )?\S+\+0x[0-9a-f]+/0x[0-9a-f]+(?: \[\w+\])?$",
        text,
        re.MULTILINE,
    )
    found = splats(text)
    assert written
    for line in written:
        assert any(line in splat.text.splitlines() for splat in found)
    frames = sum(len(stack.frames) for splat in found for stack in splat.stacks)
    assert frames >= len(written)


def test_the_details_of_an_oops():
    (oops,) = splats(recorded("6.1-cloud.null"))
    assert oops.title == "BUG: kernel NULL pointer dereference, address: 0000000000000008"
    assert oops.rip is not None
    assert oops.rip.place == "descend+0x9/0x30 [splatter]"
    assert oops.frames[0].place == "descend+0x22/0x30 [splatter]"
    assert {"rax", "rdi", "r15", "rsp", "cr2", "cr3", "eflags", "fs", "gs"} <= oops.registers.keys()
    assert oops.registers["cr2"] == 8
    assert oops.registers["rdi"] == 0
    assert oops.registers["rsp"] >= 0xFFFF_8000_0000_0000  # the kernel's, not the program's further below
    assert "orig_rax" not in oops.registers  # of the program
    assert not oops.consequence
    assert oops.text.startswith("[")
    assert "note: exe[" in oops.text.splitlines()[-1]
    assert "clocksource" not in oops.text


def test_a_warnings_own_words_are_in_its_title():
    for kernel in ("6.1-cloud", "6.12-cloud"):
        (warning,) = splats(recorded(f"{kernel}.warn"))
        assert warning.title == (
            "WARNING at splatter/deep.c:29 in deep_warn: splatter: value 9 is more than three"
        )
        assert "cut here" in warning.text
        assert "end trace" in warning.text


def test_the_reason_before_a_bug_is_in_its_title():
    (bug,) = splats(recorded("6.12-cloud.list"))
    assert bug.title.startswith("kernel BUG at lib/list_debug.c:29!: list_add corruption. next->prev")


def test_a_panic_after_an_oops_only_follows_from_it():
    oops, panic = splats(recorded("6.1-cloud.timer"))
    assert (oops.consequence, panic.consequence) == (False, True)
    (own,) = splats(recorded("6.1-cloud.panic"))
    assert not own.consequence


def test_what_an_interrupt_broke_into_is_part_of_the_trace():
    oops, _ = splats(recorded("6.1-cloud.timer"))
    names = [frame.symbol for frame in oops.frames if frame.sure]
    assert names[names.index("asm_sysvec_apic_timer_interrupt") + 1] == "native_safe_halt"
    assert names[-1] == "secondary_startup_64_no_verify"
    (halted,) = [frame for frame in oops.frames if frame.symbol == "native_safe_halt"]
    assert halted.exact
    assert len(oops.stacks) == 1


def test_registers_of_the_program_are_not_the_kernels():
    (hung,) = splats(recorded("6.1-cloud.hung"))
    assert "R15: " in hung.text
    assert hung.registers == {}


def test_a_panic_whose_reason_is_not_in_the_log_stands_for_itself():
    (panic,) = splats("[    2.261817] Kernel panic - not syncing: Fatal exception\n")
    assert not panic.consequence


def test_whose_lines_come_first_does_not_matter():
    text = recorded("6.1-cloud.all_warn")
    first, second = re.findall(r"^.*WARNING: CPU.*\n", text, re.MULTILINE)
    swapped = text.replace(first, "@").replace(second, first).replace("@", second)
    one, other = splats(text)
    late, early = splats(swapped)
    assert (early.cpu, early.rip, early.frames) == (one.cpu, one.rip, one.frames)
    assert (late.cpu, late.rip, late.frames) == (other.cpu, other.rip, other.frames)


def test_reports_of_two_cpus_in_one_stream_are_kept_apart():
    first, second = splats(recorded("6.1-cloud.all_warn"))
    assert "CPU: 1" not in first.text
    assert first.registers["gs"] != second.registers["gs"]
    assert len(first.stacks) == len(second.stacks) == 1


def test_the_stacks_of_a_slab_report():
    first, _ = splats(recorded("6.1.double_free"))
    assert [stack.title.split(" in ")[0] for stack in first.stacks] == ["Allocated", "Freed", "Call Trace"]
    assert first.frames == first.stacks[-1].frames
    assert "Freed in run_set" in first.render()


def test_tasks_that_were_asked_for():
    found = splats(recorded("6.1-cloud.sysrq-t"))
    assert [(splat.kind, splat.pid) for splat in found[:3]] == [
        (SplatKind.TASK, 1),
        (SplatKind.TASK, 78),
        (SplatKind.TASK, 79),
    ]
    assert found[0].title == "init in state S"
    assert not any(splat.kind.is_fault for splat in found)


def test_the_same_trouble_has_the_same_fingerprint():
    text = recorded("6.1-cloud.null")
    later = re.sub(r"^\[ +1", "[ 901", re.sub(r"PID: \d+", "PID: 4711", text), flags=re.MULTILINE)
    later = re.sub(r"(R[0-9A-D][0-9X]): [0-9a-f]{16}", r"\1: 0123456789abcdef", later)
    ((oops, count),) = deduplicated(splats(text + later))
    assert count == 2
    assert oops.pid != 4711


def test_different_trouble_has_different_fingerprints():
    names = [name for name in EXPECTED if name.startswith("6.1-cloud") and "panic" not in name]
    marks = [splat.fingerprint for name in names for splat in splats(recorded(name)) if not splat.consequence]
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("6.1-cloud.hung", r"(exe:|pid:)\d+", r"\g<1>4711"),
        ("6.1-cloud.soft", r"CPU#0 stuck for \d+s! \[exe:\d+\]", "CPU#3 stuck for 99s! [exe:4711]"),
        ("6.1-cloud.list", r"\b[0-9a-f]{16}\b", "0123456789abcdef"),
        ("6.1-cloud.sleep_atomic", r"exe/\d+/", "exe/4711/"),
    ],
)
def test_numbers_that_change_do_not_matter(name, old, new):
    text = recorded(name)
    later = re.sub(old, new, text)
    assert later != text
    assert [splat.fingerprint for splat in splats(later)] == [splat.fingerprint for splat in splats(text)]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("6.1-cloud.null", "descend+0x9/", "descend+0xc/"),
        ("6.1-cloud.null", "deep_write+", "other+"),
        ("6.1-cloud.warn", "deep.c:29", "deep.c:30"),
        ("6.1-cloud.warn", "more than three", "less"),
    ],
)
def test_another_place_or_another_message_is_other_trouble(name, old, new):
    text = recorded(name)
    assert splats(text.replace(old, new))[0].fingerprint != splats(text)[0].fingerprint


def test_render_is_short_and_says_it_all():
    (oops,) = splats(recorded("6.1-cloud.null"))
    lines = oops.render(tail=3).splitlines()
    assert lines[0] == "oops: BUG: kernel NULL pointer dereference, address: 0000000000000008"
    assert lines[1] == f"  on  CPU 0, exe[{oops.pid}]"
    assert lines[2] == "  at  descend+0x9/0x30 [splatter]"
    assert lines[3] == "      descend+0x22/0x30 [splatter]  (3 times)"
    assert "? " not in "".join(lines[3:14])
    assert lines[-1].startswith("    | ... and ")
    assert len(lines) < 25
    assert "raw" not in str(oops)


def test_matching_what_was_expected():
    (warning,) = splats(recorded("6.1-cloud.warn"))
    assert warning.matches(r"value \d+ is more than three")
    assert warning.matches(re.compile(r"RIP: 0010:deep_warn"))
    assert not warning.matches("value 8")


_IN = r"\+0x\w+/0x\w+ \[iobmd_faults\]"
TITLES = {
    "use-after-free": rf"BUG: KASAN: (slab-)?use-after-free in do_use_after_free{_IN}",
    "out-of-bounds": rf"BUG: KASAN: slab-out-of-bounds in do_out_of_bounds{_IN}",
    # With checks inlined a read of the shadow faults, and the kernel says what of.
    "oops": rf"BUG: KASAN: null-ptr-deref in do_oops{_IN}|Oops: general protection fault, .*: 0000 \[#1\] "
    r"SMP KASAN: KASAN: null-ptr-deref in range \[0x0{16}-0x0{15}7\]",
    "lock-order": r"WARNING: possible circular locking dependency detected",
    "lock-interrupt": r"WARNING: inconsistent lock state",
    "sleep-locked": r"BUG: sleeping function called from invalid context at include/linux/sched/mm\.h:\d+",
    "unmap-half": r"WARNING in check_unmap: DMA-API: iobmd-faults iobmd-faults: device driver frees DMA "
    r"memory with different size \[device address=0x\w{16}\] \[map size=1024 bytes\] \[unmap size=512 b.*\]",
    "shift": r"UBSAN: shift-out-of-bounds in iobmd_faults\.c:351:14",
    "index": r"UBSAN: array-index-out-of-bounds in iobmd_faults\.c:365:13",
}
STACKS = {
    "use-after-free": ["Call Trace", "Allocated by task N", "Freed by task N"],
    "out-of-bounds": ["Call Trace", "Allocated by task N"],
    "lock-order": ["-> #1 (second){+.+.}-{3:3}", "-> #0 (first){+.+.}-{3:3}", "Call Trace"],
    "lock-interrupt": ["{IN-HARDIRQ-W} state was registered at", "Call Trace"],
    "unmap-half": ["Call Trace", "Mapped at"],
}


@pytest.mark.parametrize("name", CHECKED)
def test_what_a_checker_says_is_whole(name):
    word = name.rpartition(".")[2]
    first, *_ = found = splats(recorded(name))
    assert re.fullmatch(TITLES[word], first.title)
    titles = [re.sub(r"task \d+", "task N", stack.title) for stack in first.stacks]
    assert titles == STACKS.get(word, ["Call Trace"])
    function = f"do_{word.replace('-', '_')}"
    for stack in first.stacks:
        frames = (first.rip, *stack.frames) if first.rip is not None else stack.frames
        assert any(frame.symbol.partition(".")[0] == function for frame in frames), stack
    told = [line for line in recorded(name).splitlines() if line.startswith("[")]
    kept = [line for splat in found for line in splat.text.splitlines()]
    left = [re.sub(r"^\[[^]]+\](\[[^]]+\])? ?", "", line) for line in told if line not in kept]
    # A heading before the first words, and what the taint does to lockdep when all is over.
    assert [line for line in left if not re.fullmatch(r"=*|Disabling lock debugging due to .*", line)] == []


@pytest.mark.parametrize("name", CHECKED)
def test_what_is_said_before_and_after_a_checker_is_not_its(name):
    text = recorded(name)
    stamps = re.findall(r"^(\[ *\d+\.\d+\](?:\[ *T\d+\])?) ", text, re.MULTILINE)
    words = ("random: crng init done", "INFO: this is information", "", "virtio0: WARNING: queue is small")
    chatter = "".join(f"{stamps[0]} {line}\n" for line in words)
    found = splats(text)
    assert [splat.text for splat in splats(chatter + text)] == [splat.text for splat in found]
    behind = splats(text + chatter)
    assert [splat.title for splat in behind] == [splat.title for splat in found]
    assert "random: crng" not in "".join(splat.text for splat in behind)


@pytest.mark.parametrize("name", CHECKED)
def test_what_a_checker_says_twice_is_one_finding(name):
    """On another day: at other addresses, by another task, in a module that was built elsewhere."""
    text = recorded(name)
    later = re.sub(r"(task |PID: |init[/:]|\[ *T)\d+", r"\g<1>4711", text)
    later = re.sub(r"\b(0x)?(?:ffff|0000)[0-9a-f]{12}\b", r"\g<1>ffff888012345678", later)
    later = later.replace(".tmp.iobmd_faults-0123456789abcdef", ".tmp.iobmd_faults-fedcba9876543210")
    assert later != text
    found = splats(text)
    assert [(splat, count) for splat, count in deduplicated((*found, *splats(later)))] == [
        (splat, 2) for splat in found
    ]

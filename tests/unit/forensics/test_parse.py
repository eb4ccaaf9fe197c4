# SPDX-License-Identifier: MIT
"""Reports that no Debian kernel gives, and logs that are no longer what the kernel wrote."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.forensics import SplatKind, deduplicated, splats

RECORDED = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted(Path(__file__).with_name("recorded").glob("*.txt"))
}
TASK_TRACE = """\
CPU: 1 UID: 0 PID: 97 Comm: my tool Not tainted 6.12.1 #1
Hardware name: QEMU Standard PC
Call Trace:
 <TASK>
 dump_stack_lvl+0x5d/0x80
 inner+0x10/0x40 [iobmd]
 ? guessed+0x1/0x2
 outer+0x20/0x80 [iobmd 0123456789abcdef0123456789abcdef01234567]
 </TASK>
"""

# In the words of mm/kasan/report.c and its neighbours; one per kind.
WRITTEN = {
    SplatKind.KFENCE: """\
==================================================================
BUG: KFENCE: use-after-free read in inner+0x10/0x40 [iobmd]

Use-after-free read at 0x00000000e0f5b0d6 (in kfence-#23):
 inner+0x10/0x40 [iobmd]
 outer+0x20/0x80 [iobmd]

kfence-#23: 0x00000000e0f5b0d6-0x000000007ff8e1b5, size=64, cache=kmalloc-64

allocated by task 97 on cpu 1 at 1.234567s:
 outer+0x18/0x80 [iobmd]

CPU: 1 PID: 97 Comm: my tool Not tainted 6.12.1 #1
==================================================================
""",
    SplatKind.HARD_LOCKUP: f"""\
watchdog: Watchdog detected hard LOCKUP on cpu 1
Modules linked in: iobmd(OE)
{TASK_TRACE}""",
    SplatKind.RCU_STALL: f"""\
rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
rcu: \t1-...!: (1 GPs behind) idle=bdb4/1/0x4000000000000000 softirq=140/149 fqs=285
rcu: \t(detected by 0, t=5252 jiffies, g=-947, q=42 ncpus=2)
Sending NMI from CPU 0 to CPUs 1:
NMI backtrace for cpu 1
{TASK_TRACE}rcu: rcu_preempt kthread starved for 5251 jiffies! g-947 f0x0 RCU_GP_WAIT_FQS(5) ->cpu=1
rcu: RCU grace-period kthread stack dump:
task:rcu_preempt     state:R  running task     stack:0     pid:15    ppid:2      flags:0x00004000
Call Trace:
 <TASK>
 __schedule+0x34d/0xa00
 </TASK>
""",
    SplatKind.WORKQUEUE: """\
BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!
Showing busy workqueues and worker pools:
""",
    SplatKind.ALLOCATION_FAILED: f"""\
my tool: page allocation failure: order:10, mode:0xcc0(GFP_KERNEL), nodemask=(null)
{TASK_TRACE}""",
    SplatKind.OUT_OF_MEMORY: f"""\
my tool invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0, oom_score_adj=0
{TASK_TRACE}Mem-Info:
active_anon:1 inactive_anon:100000
Out of memory: Killed process 97 (my tool) total-vm:1kB, anon-rss:1kB
""",
    SplatKind.WARNING: f"""\
------------[ cut here ]------------
WARNING: iobmd/iobmd_map.c:123 at inner+0x10/0x40 [iobmd], CPU#1: my tool/97
Modules linked in: iobmd(OE)
{TASK_TRACE}---[ end trace 0000000000000000 ]---
""",
    SplatKind.OOPS: f"""\
Oops: divide error: 0000 [#1] PREEMPT SMP NOPTI
{TASK_TRACE}---[ end trace 0000000000000000 ]---
""",
}
CHATTER = """\
random: crng init done
BUGGY_DRIVER: not in use
INFO: this is information
iobmd: task: nothing is wrong
virtio_blk virtio0: WARNING: queue is small
"""


def stamped(text, caller="", start=1.0):
    lines = text.splitlines()
    return "".join(
        f"[{start + index / 1000:12.6f}]{f'[{caller:>6}]' if caller else ''} {line}\n"
        for index, line in enumerate(lines)
    )


@pytest.mark.parametrize("with_time", [False, True])
@pytest.mark.parametrize("kind", WRITTEN, ids=lambda kind: kind.name)
def test_kinds(kind, with_time):
    text = f"{CHATTER}{WRITTEN[kind]}{CHATTER}"
    (splat,) = splats(stamped(text) if with_time else text)
    assert splat.kind is kind
    assert "crng" not in splat.text
    if kind not in (SplatKind.WORKQUEUE, SplatKind.KFENCE):
        assert (splat.cpu, splat.pid, splat.comm) == (1, 97, "my tool")
        assert [frame.symbol for frame in splat.frames] == ["dump_stack_lvl", "inner", "guessed", "outer"]
        assert [frame.sure for frame in splat.frames] == [True, True, False, True]
        assert [frame.module for frame in splat.frames] == ["", "iobmd", "", "iobmd"]
    assert (kind.is_fault) == (kind not in (SplatKind.OUT_OF_MEMORY, SplatKind.ALLOCATION_FAILED))


def test_what_else_checkers_say():
    (kfence,) = splats(WRITTEN[SplatKind.KFENCE])
    assert [frame.symbol for frame in kfence.frames] == ["inner", "outer"]
    assert kfence.pid == 97
    (stall,) = splats(WRITTEN[SplatKind.RCU_STALL])
    assert [len(stack.frames) for stack in stall.stacks] == [4, 1]


def test_a_log_without_trouble_has_no_reports():
    assert splats("") == ()
    assert splats(CHATTER) == splats(stamped(CHATTER)) == ()
    assert splats("[    1.0] my program says: Kernel panic - not syncing is what I wait for\n") == ()


def test_a_program_that_writes_between_the_lines():
    text = "".join(f"{line}\niobmd-agent: ready\n" for line in RECORDED["6.1-cloud.null"].splitlines())
    (oops,) = splats(text)
    (alone,) = splats(RECORDED["6.1-cloud.null"])
    assert oops == alone


def test_what_a_program_writes_is_no_report():
    text = "".join(line + "\n" for line in WRITTEN[SplatKind.OOPS].splitlines())
    assert splats(text)
    assert splats("[    1.000000] random: crng init done\n" + text) == ()


def test_a_program_that_does_not_end_its_line():
    (oops,) = splats("login: " + RECORDED["6.1-cloud.null"].removeprefix("iobmd-agent: ready\n"))
    assert oops.kind is SplatKind.OOPS
    assert oops.frames


def test_a_panic_for_the_sake_of_a_warning():
    text = WRITTEN[SplatKind.WARNING].replace(
        "---[ end", "Kernel panic - not syncing: panic_on_warn set ...\n---[ end"
    )
    warning, panic = splats(stamped(text))
    assert (warning.kind, panic.kind) == (SplatKind.WARNING, SplatKind.PANIC)
    assert panic.consequence


def test_reports_one_after_the_other():
    text = "".join(WRITTEN.values())
    assert [splat.kind for splat in splats(stamped(text))] == list(WRITTEN)
    assert [(splat.kind, count) for splat, count in deduplicated(splats(text * 3))] == [
        (kind, 3) for kind in WRITTEN
    ]


@given(st.text())
def test_any_text_is_read(text):
    for splat in splats(text):
        assert splat.render()


PIECES = st.sampled_from([line for text in RECORDED.values() for line in text.splitlines()])


@given(st.lists(PIECES | st.text(max_size=40), max_size=60))
def test_any_lines_are_read(lines):
    text = "\n".join(lines)
    found = splats(text)
    for splat in found:
        assert splat.render()
        assert splat.fingerprint
        assert all(line in lines or line.rstrip("\r") == line for line in splat.text.splitlines())
    assert len(deduplicated(found)) <= len(found)


@given(st.data())
def test_a_cut_log_gives_what_was_said_until_then(data):
    name = data.draw(st.sampled_from(sorted(RECORDED)))
    lines = RECORDED[name].splitlines()
    cut = data.draw(st.integers(0, len(lines)))
    whole, part = splats("\n".join(lines)), splats("\n".join(lines[:cut]))
    # A message after "cut here" whose header is missing is a report all the same.
    extra = len(part) > 0 and "WARNING at" not in part[-1].title and part[-1].kind is SplatKind.WARNING
    complete = part[:-1] if extra else part
    assert [splat.kind for splat in complete] == [splat.kind for splat in whole[: len(complete)]]
    for splat, other in zip(complete, whole, strict=False):
        assert other.text.startswith(splat.text)
        if splat.title == other.title and splat.stacks and splat.stacks[0].title == other.stacks[0].title:
            assert other.stacks[0].frames[: len(splat.stacks[0].frames)] == splat.stacks[0].frames


@given(st.data())
def test_a_log_cut_within_a_line(data):
    name = data.draw(st.sampled_from(sorted(RECORDED)))
    text = RECORDED[name]
    begin = data.draw(st.integers(0, len(text)))
    for splat in splats(text[begin : data.draw(st.integers(begin, len(text)))]):
        assert splat.render()


def test_a_cut_here_that_nothing_follows():
    text = stamped(
        "------------[ cut here ]------------\n" + "virtio: noise\n" * 30 + WRITTEN[SplatKind.OOPS]
    )
    (oops,) = splats(text)
    assert oops.kind is SplatKind.OOPS
    assert "noise" not in oops.title + oops.text


def test_a_report_of_one_line_is_one():
    (splat,) = splats("[    1.000000] BUG: unable to handle page fault for address: ffff")
    assert (splat.kind, splat.frames, splat.rip) == (SplatKind.OOPS, (), None)
    (splat,) = splats(
        "[    1.000000] ------------[ cut here ]------------\n[    1.000001] refcount_t: underflow"
    )
    assert (splat.kind, splat.title) == (SplatKind.WARNING, "refcount_t: underflow")


SINGLE = [name for name, text in RECORDED.items() if len(splats(text)) == 1]


@given(st.data())
def test_callers_are_kept_apart(data):
    """Tasks and CPUs whose lines come in any order: with CONFIG_PRINTK_CALLER every line says whose it is."""
    names = data.draw(st.lists(st.sampled_from(SINGLE), min_size=2, max_size=3, unique=True))
    streams, alone = [], []
    for caller, name in zip(("T97", "C1", "T4711"), names, strict=False):
        text = "\n".join(line for line in RECORDED[name].splitlines() if line.startswith("["))
        marked = re.sub(r"^(\[ *\d+\.\d+\])(\[ *[TC]\d+\])?", rf"\1[{caller:>6}]", text, flags=re.MULTILINE)
        streams.append(marked.splitlines())
        alone.append(splats(marked))
    order = [index for index, stream in enumerate(streams) for _ in stream]
    random.Random(data.draw(st.integers(0, 1 << 32))).shuffle(order)
    mixed = [streams[index].pop(0) for index in order]
    found = splats("\n".join(mixed))
    assert sorted(found, key=str) == sorted((splat for parts in alone for splat in parts), key=str)


def test_a_log_as_the_kernel_keeps_it():
    """What syslog(2) gives has a level before the stamp."""
    kept = [line for line in RECORDED["6.12-debug.unmap-half"].splitlines() if line.startswith("[")]
    (splat,) = splats("\n".join(f"<4>{line}" for line in kept))
    (shown,) = splats("\n".join(kept))
    assert splat.kind is SplatKind.DMA_API
    assert splat.stacks == shown.stacks


def test_the_answer_to_an_nmi_takes_no_lines_of_others():
    text = (
        "Uhhuh. NMI received for unknown reason 21 on CPU 0.\n"
        "Dazed and confused, but trying to continue\n"
        "random: crng init done\n"
        "NMI backtrace for cpu 1 skipped: idling at native_safe_halt+0xb/0x10\n"
        "random: crng init done\n"
    )
    first, second = splats(stamped(text))
    assert [first.kind, second.kind] == [SplatKind.NMI, SplatKind.NMI]
    assert "crng" not in first.text + second.text
    assert "Dazed" in first.text


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_thousands_of_reports(limit):
    text = stamped(WRITTEN[SplatKind.WARNING] * 10)
    assert len(splats(text, limit=limit)) == limit
    assert splats(text, limit=limit) == splats(text)[:limit]


def test_a_flood_is_read_in_time():
    """50 MB of console are a fault of the table; they may not take minutes to be looked through."""
    flood = stamped(CHATTER * 2000) * 5
    text = flood + RECORDED["6.1-cloud.null"] + flood
    begin = time.process_time()
    (oops,) = splats(text)
    seconds = time.process_time() - begin
    assert oops.frames
    assert seconds / len(text) * 50e6 < 60

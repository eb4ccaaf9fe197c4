# SPDX-License-Identifier: MIT
"""Batches: they ask what single calls ask, say what single calls say, and lose nothing on the way."""

from __future__ import annotations

import dataclasses
import errno

import numpy as np
import pytest

from harness.errors import BadInput
from harness.iokit import Buffers, Context, IOBufferMemoryDescriptor, IOKit, Null, NullDescriptorError, Task
from harness.iokit import constants as k
from harness.link import GuestOSError, PeerDied, RequestTimedOut

OUT = k.kIODirectionOut
PAGEABLE = k.kIOMemoryPageable | k.kIODirectionInOut
COUNT = 7
TOO_MUCH = 1 << 50

CALLS = {
    "withOptions": lambda kit, n: kit.withOptions(n([OUT, 3]), n([5000, 4096, TOO_MUCH]), n([1, 256])),
    "withOptions, default alignment": lambda kit, n: kit.withOptions(OUT, n([5000, 4096])),
    "inTaskWithOptions": lambda kit, n: kit.inTaskWithOptions(
        n([Task.CURRENT, Task.KERNEL]), PAGEABLE, n([100, 200, 300]), 64
    ),
    "inTaskWithOptions with tags": lambda kit, n: kit.inTaskWithOptions(
        Task.KERNEL, OUT, 100, 8, n([70_000, 3]), n([5, 6, 7])
    ),
    "inTaskWithPhysicalMask": lambda kit, n: kit.inTaskWithPhysicalMask(
        n([Task.NULL, Task.KERNEL]), OUT, 100, n([0xFFFF_0000, (1 << 64) - 1])
    ),
    "initWithPhysicalMask": lambda kit, n: kit.initWithPhysicalMask(
        Task.KERNEL, n([OUT, 1]), 100, n([64, 128]), 0xFF_FFFF
    ),
    "withCapacity": lambda kit, n: kit.withCapacity(n([8192, 100]), n([OUT, 1]), n([True, False])),
    "inTaskWithGuardPages": lambda kit, n: kit.inTaskWithGuardPages(Task.KERNEL, OUT, n([5, 5000])),
}


def cycled(values):
    """For a batch: one value for each row."""
    return (values * COUNT)[:COUNT]


def one(row):
    """For a single call: that row's value."""
    return lambda values: values[row % len(values)]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_batch_asks_what_single_calls_ask(iokit, module, call):
    buffers = call(iokit.batch(COUNT), cycled)
    arrived, module.created = module.created, []
    singles = [call(iokit, one(row)) for row in range(COUNT)]
    for fields in (*arrived, *module.created):
        fields.pop("fd")  # out; a row that is never made must not name descriptor 0
    assert arrived == module.created
    assert list(buffers.made) == [bool(single) for single in singles]
    for row, single in enumerate(singles):
        assert type(buffers[row]) is type(single)
        assert buffers.label(row) == (single.call if isinstance(single, Null) else single.label)


def assert_equal_rows(array, rows):
    assert array.shape == (len(rows),)
    assert [tuple(row) if array.dtype.names else row for row in array.tolist()] == rows


def test_a_batch_says_what_single_calls_say(iokit):
    mixed = {"options": cycled([1, 2, 3]), "capacity": cycled([100, TOO_MUCH, 20_000, 4096]), "alignment": 64}
    buffers = iokit.batch(COUNT).withOptions(**mixed)
    singles = [iokit.withOptions(o, c, 64) for o, c in zip(mixed["options"], mixed["capacity"], strict=True)]
    made = [row for row in range(COUNT) if singles[row]]
    assert list(buffers.living) == made != []
    offsets = np.arange(COUNT, dtype=np.int64) * 50
    lengths = cycled([10, 30_000, 99])
    buffers.setLength(lengths)
    buffers.setDirection(cycled([3, 1]))
    for row in made:
        singles[row].setLength(lengths[row])
        singles[row].setDirection(cycled([3, 1])[row])

    def compare(array, ask, nothing):
        rows = [ask(row, singles[row]) if singles[row] else nothing for row in range(COUNT)]
        assert_equal_rows(array, rows)

    compare(buffers.getCapacity(), lambda _, one: one.getCapacity(), 0)
    compare(buffers.getLength(), lambda _, one: one.getLength(), 0)
    compare(buffers.getDirection(), lambda _, one: one.getDirection(), 0)
    compare(buffers.getFlags(), lambda _, one: one.getFlags(), 0)
    compare(buffers.getPhysicalAddress(), lambda _, one: one.getPhysicalAddress(), 0)
    compare(
        buffers.getPhysicalSegment(offsets),
        lambda row, one: one.getPhysicalSegment(int(offsets[row])),
        (0, 0),
    )
    compare(buffers.getBytesNoCopy(), lambda _, one: one.getBytesNoCopy(), 0)
    compare(buffers.getBytesNoCopy(offsets, 9), lambda row, one: one.getBytesNoCopy(int(offsets[row]), 9), 0)
    compare(buffers.prepare(cycled([0, 2])), lambda row, one: one.prepare(cycled([0, 2])[row]), 0)
    compare(buffers.complete(), lambda _, one: one.complete(), 0)
    compare(buffers.setPurgeable(2), lambda _, one: one.setPurgeable(2), (0, 0))
    compare(buffers.getPageCounts(), lambda _, one: one.getPageCounts(), (0, 0, 0))
    nothing = tuple(
        "" if name in {"memory_type", "storage_kind"} else 0 for name in buffers.describe().dtype.names
    )
    compare(buffers.describe(), lambda _, one: dataclasses.astuple(one.describe()), nothing)
    compare(buffers.address, lambda _, one: one.address, 0)
    compare(buffers.storage, lambda _, one: one.storage, 0)


def test_a_row_is_an_object(iokit):
    buffers = iokit.batch(5).withOptions(3, [100, 200, TOO_MUCH, 400, 500])
    assert len(buffers) == len(list(buffers)) == 5
    assert isinstance(buffers, Buffers)
    assert isinstance(buffers[1], IOBufferMemoryDescriptor)
    assert buffers[1] is buffers[1] is list(buffers)[1]
    assert buffers[-1].getLength() == 500
    assert [bool(one) for one in buffers[1:4]] == [True, False, True]
    assert buffers[3].address == buffers.address[3]
    assert buffers[3].describe() == dataclasses.replace(buffers[3].describe())
    with pytest.raises(IndexError):
        buffers[5]
    assert repr(buffers) == "<Buffers 5 from withOptions(0x3, 100, 1), 1 NULL, 4 not released>"
    assert iokit.alive == (buffers[0], buffers[1], buffers[3], buffers[4])


def test_nulls_have_reasons(iokit):
    buffers = iokit.batch(4).withOptions(3, [100, TOO_MUCH, 100, TOO_MUCH])
    assert list(buffers.made) == [True, False, True, False]
    assert list(buffers.errno) == [0, errno.ENOMEM, 0, errno.ENOMEM]
    assert buffers.reason(0) == ""
    assert buffers.reason(3).startswith("by ")
    assert buffers[3].reason == buffers.reason(3)
    with pytest.raises(NullDescriptorError, match="getLength was asked of NULL"):
        buffers[3].getLength()
    assert list(buffers.getLength()) == [100, 0, 100, 0]


def test_only_nulls(iokit, process):
    buffers = iokit.batch(3).withOptions(3, TOO_MUCH)
    asked = len(process.link.frames)
    assert list(buffers.getLength()) == [0, 0, 0]
    assert buffers.prepare().dtype == np.uint32
    buffers.release()
    assert len(process.link.frames) == asked, "there was nobody to ask"


def test_thousands_are_a_few_requests(iokit, process, module):
    """Two calls for each of 3000 buffers: the number of frames is what a batch is about."""
    buffers = iokit.batch(3000).withOptions(3, np.arange(3000, dtype=np.uint32) + 1)
    assert len(process.link.frames) <= 24
    assert (buffers.getLength() == np.arange(3000) + 1).all()
    assert len(process.link.frames) <= 36
    assert module.live == 3000
    assert iokit.release_all() == 3000
    assert len(process.link.frames) <= 48
    assert module.live == 0


BAD = {
    "too few": (lambda batch: batch.withOptions([1, 2], 100), "one for each of 3"),
    "too many": (lambda batch: batch.withOptions(3, np.ones(4, int)), "one for each of 3"),
    "two dimensions": (lambda batch: batch.withOptions(3, np.ones((3, 1), int)), "one for each of 3"),
    "negative": (lambda batch: batch.withOptions(3, [1, -1, 1]), "64 bits, unsigned"),
    "65 bits": (lambda batch: batch.withOptions(3, 1 << 64), "64 bits, unsigned"),
    "65 bits among others": (lambda batch: batch.withOptions(3, [1, 1 << 64, 1]), "64 bits, unsigned"),
    "33 bits": (
        lambda batch: batch.inTaskWithOptions(Task.KERNEL, 3, 1, 1, [1, 1 << 32, 1], 5), "tag is 32 bits"
    ),
    "a float": (lambda batch: batch.withOptions(3, 4096.0), "takes integers"),
    "floats": (lambda batch: batch.withOptions(3, np.ones(3)), "takes integers"),
    "a float among others": (lambda batch: batch.withOptions(3, [1, 2.5, 3]), "takes integers"),
    "text": (lambda batch: batch.withOptions(3, "4096"), "takes integers"),
    "one tag": (lambda batch: batch.inTaskWithOptions(Task.KERNEL, 3, 1, 1, 5), "both tags"),
    "too few tasks": (lambda batch: batch.inTaskWithOptions([Task.KERNEL], PAGEABLE, 1), "1 tasks"),
    "offsets": (lambda batch: batch.withOptions(3, 100).getPhysicalSegment([1, 2]), "one for each of 3"),
    "a direction": (lambda batch: batch.withOptions(3, 100).setDirection(1 << 32), "32 bits"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "text"), BAD.values(), ids=BAD)
def test_bad_input_is_told(iokit, module, call, text):
    with pytest.raises(BadInput) as caught:
        call(iokit.batch(3))
    assert text in str(caught.value)
    iokit.release_all()
    assert module.live == 0


@pytest.mark.parametrize("count", [0, -1])
def test_a_batch_of_nothing(iokit, count):
    with pytest.raises(BadInput, match="ask for one"):
        iokit.batch(count)


def test_all_64_bits_arrive(iokit, module):
    """NumPy makes a float of a list like this one."""
    masks = [(1 << 64) - 1, 1, (1 << 63) + 1]
    iokit.batch(3).initWithPhysicalMask(Task.KERNEL, 3, 100, 1, masks)
    assert [one["mask"] for one in module.created] == masks


def test_another_process_has_batches_of_its_own(iokit, peer, process):
    with pytest.raises(BadInput, match="session's own process") as caught:
        iokit.batch(2).inTaskWithOptions(peer, PAGEABLE, 100)
    assert "IOKit(guest.peer).batch" in caught.value.hint
    assert iokit.batch(2).inTaskWithOptions(process, PAGEABLE, 100).made.all()
    with IOKit(peer) as other:
        assert other.batch(2).inTaskWithOptions(Task.CURRENT, PAGEABLE, 100).made.all()


def test_batches_are_called_from_somewhere_too(iokit, module):
    with iokit.calledFrom(Context.SIMPLE_LOCK):
        buffers = iokit.batch(2).withOptions(3, 100)
    assert not buffers.made.any()
    assert {one["context"] for one in module.created} == {1}


# -- releasing ----------------------------------------------------------------------------------------------


def test_release_twice(iokit, module):
    buffers = iokit.batch(10).withOptions(3, 100)
    buffers.release()
    buffers.release()
    assert (module.live, iokit.alive) == (0, ())
    with pytest.raises(BadInput, match=r"row 0 of 10, .*, was released"):
        buffers.getLength()
    with pytest.raises(BadInput, match="was released"):
        buffers[3].getLength()


def test_releasing_one_releases_its_row(iokit, module):
    buffers = iokit.batch(3).withOptions(3, 100)
    with buffers[1]:
        assert module.live == 3
    assert (module.live, iokit.alive) == (2, (buffers[0], buffers[2]))
    with pytest.raises(BadInput, match="row 1 of 3"):
        buffers.getLength()
    buffers[0].release()
    buffers[2].release()
    assert iokit.release_all() == 0
    assert module.live == 0


def test_a_released_number_that_is_taken_again_stays_the_new_owners(iokit, process):
    buffers = iokit.batch(2).withOptions(3, 100)
    gone = buffers[0]
    number = gone.fd
    gone.release()
    process._next = number - 1
    fresh = iokit.withOptions(3, 5000)
    assert fresh.fd == number
    buffers.release()
    gone.release()
    assert fresh.getLength() == 5000


def test_a_context_manager(iokit, module):
    with iokit.batch(3).withOptions(3, 100) as buffers:
        assert (module.live, buffers.getLength().sum()) == (3, 300)
    assert module.live == 0


def test_the_session_releases_everything_together(process, module):
    with IOKit(process) as iokit:
        iokit.batch(50).withOptions(3, 100)
        iokit.withOptions(3, 100).map()
        iokit.withOptions(3, 100)
        iokit.batch(50).withOptions(3, 100)[7].release()
        before = len(process.link.frames)
        assert (iokit.release_all(), iokit.maps) == (101, ())
        assert len(process.link.frames) - before <= 4
        iokit.batch(50).withOptions(3, 100)
    assert (module.live, process.files) == (0, {})


# -- when something goes wrong ------------------------------------------------------------------------------


def failing(process, name, after):
    """The ioctl fails with EMFILE from its *after*-th time on; a list of how often it was tried."""
    tried, method = [], getattr(process, name)

    def do(*args):
        tried.append(name)
        if len(tried) > after:
            raise GuestOSError(errno.EMFILE, name)
        return method(*args)

    setattr(process, name, do)
    return tried


@pytest.mark.parametrize("name", ["do_create", "do_describe"])
def test_a_refused_call_leaves_nothing_of_the_others(iokit, process, module, name):
    failing(process, name, after=300)
    with pytest.raises(GuestOSError, match="row 300 of 1000, withOptions") as caught:
        iokit.batch(1000).withOptions(3, 100)
    assert caught.value.errno == errno.EMFILE
    assert (module.live, iokit.alive) == (0, ())


def test_a_refused_question_names_its_row(iokit, process):
    buffers = iokit.batch(300).withOptions(3, [TOO_MUCH] * 10 + [100] * 290)
    failing(process, "do_get_length", after=200)
    with pytest.raises(GuestOSError, match="GET_LENGTH on row 210 of 300"):
        buffers.getLength()


class Interruption:
    """Raises when an answer is waited for, from the n-th on, for a number of times."""

    def __init__(self, link, error, first, times=1):
        self.error, self.first, self.times, self.seen = error, first, times, 0
        link.before_answer = self

    def __call__(self, _pending):
        self.seen += 1
        if self.seen >= self.first and self.times:
            self.times -= 1
            raise self.error


TIMED_OUT = RequestTimedOut("no reply", agent_answers=True, observed="", hint="", evidence=())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TIMED_OUT], ids=["ctrl-c", "time-out"])
@pytest.mark.parametrize("first", [1, 2, 5])
def test_an_interruption_leaves_nothing(iokit, process, module, error, first):
    """The frames under way arrive all the same: what they made is closed, the rest is not begun."""
    Interruption(process.link, error, first)
    with pytest.raises(type(error)):
        iokit.batch(2000).withOptions(3, 100)
    assert 0 < len(module.created) < 2000
    assert (module.live, iokit.alive) == (0, ())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TIMED_OUT], ids=["ctrl-c", "time-out"])
def test_what_cannot_be_settled_at_once_is_settled_at_the_end(process, module, error):
    with IOKit(process) as iokit:
        Interruption(process.link, error, first=2, times=2)
        with pytest.raises(type(error)):
            iokit.batch(2000).withOptions(3, 100)
        assert module.live > 0
    assert (module.live, process.files) == (0, {})


@pytest.mark.parametrize("first", [1, 2])
def test_an_interrupted_release_goes_on(iokit, process, module, first):
    buffers = iokit.batch(2000).withOptions(3, 100)
    keep = iokit.withOptions(3, 100)
    Interruption(process.link, KeyboardInterrupt(), first)
    with pytest.raises(KeyboardInterrupt):
        buffers.release()
    assert module.live > 1
    process._next -= 500  # numbers that are closed by now may be taken again
    assert iokit.release_all() == 1
    assert module.live == 0
    assert not keep.handle.open


def test_an_interrupted_end_of_a_session_can_be_repeated(process, module):
    iokit = IOKit(process)
    for _ in range(300):
        iokit.withOptions(3, 100)
    iokit.batch(1000).withOptions(3, 100)
    Interruption(process.link, KeyboardInterrupt(), first=3)
    with pytest.raises(KeyboardInterrupt):
        iokit.close()
    iokit.close()
    assert (module.live, process.files) == (0, {})


def test_the_end_of_the_process_closes_everything(process):
    """As for single ones: nothing is said about descriptors that went with their process."""
    iokit = IOKit(process)
    buffers = iokit.batch(1000).withOptions(3, 100)
    kept = iokit.batch(1000).withOptions(3, 100)
    Interruption(process.link, PeerDied("killed"), first=2, times=100)
    buffers.release()
    iokit.close()
    assert not kept.living.size


def test_a_descriptor_closed_behind_ones_back_is_told_after_the_others_are_closed(iokit, process, module):
    buffers = iokit.batch(20).withOptions(3, 100)
    process.close(buffers.fd(4))
    with pytest.raises(GuestOSError, match=r"row 4 of 20: close: Bad file"):
        buffers.release()
    assert module.live == 0


def test_after_a_restore_there_is_nothing_to_close(process, module):
    """The numbers belong to somebody else by then."""
    iokit = IOKit(process)
    buffers = iokit.batch(3).withOptions(3, 100)
    single = iokit.withOptions(3, 100)
    seen = buffers[0]
    Interruption(process.link, KeyboardInterrupt(), first=1, times=2)
    with pytest.raises(KeyboardInterrupt):
        iokit.batch(3).withOptions(3, 100)
    process.generation += 1
    files = dict(process.files)
    for gone in (seen.getLength, buffers[1].getLength, buffers.getLength, single.getLength):
        with pytest.raises(BadInput, match="restored"):
            gone()
    buffers[2].release()
    buffers.release()
    iokit.close()
    assert process.files == files
    assert module.live >= 4

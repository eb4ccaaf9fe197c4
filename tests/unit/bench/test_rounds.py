# SPDX-License-Identifier: MIT
"""Measuring by turns, and what happens to a side that cannot."""

from contextlib import ExitStack

import pytest

from harness.bench import Side, interleave
from harness.errors import GuestFailure, HostLacks


class FakeTask:
    def __init__(self):
        self.done = 0.0
        self.said = []

    def advance(self, amount):
        self.done += amount

    def update(self, text):
        self.said.append(text)


def steady(order, name, value=1.0):
    def measure():
        order.append(name)
        return {"figure": value}

    return Side(name, lambda _: measure)


def test_every_side_once_per_round_and_another_one_first_each_time():
    order, task = [], FakeTask()
    sides = [steady(order, name) for name in "abc"]
    interleave(sides, 4, task)
    assert "".join(order) == "abcbcacababc"
    assert task.done == 12
    assert "round 4 of 4, c" in task.said


def test_values_of_the_same_round_have_the_same_place():
    clock = iter(range(100))
    sides = [Side(name, lambda _: lambda: {"at": float(next(clock))}) for name in "ab"]
    interleave(sides, 4, FakeTask())
    pairs = list(zip(sides[0].series("at").values, sides[1].series("at").values, strict=True))
    assert [(int(a) // 2, int(b) // 2) for a, b in pairs] == [(n, n) for n in range(4)]


def test_who_cannot_be_prepared_says_why_and_the_others_go_on():
    def lacking(_):
        raise HostLacks("vng is missing", hint="install it")

    order = []
    peer, ours = Side("vng", lacking), steady(order, "ours")
    before = peer.series("figure")
    interleave([ours, peer], 3, FakeTask())
    assert ours.series("figure").values == [1.0] * 3
    for series in (before, peer.series("figure"), peer.series("another, asked for later")):
        assert series.problem == "vng: vng is missing; install it"
        assert not series


def test_who_fails_on_the_way_keeps_what_it_has_and_is_not_tried_again():
    calls = []

    def measure():
        calls.append(1)
        if len(calls) == 3:
            raise GuestFailure("it broke", observed="a wreck", evidence=("first line", " last line "))
        return {"figure": 2.0}

    side = Side("peer", lambda _: measure)
    series = side.series("figure")
    interleave([side, steady([], "ours")], 6, FakeTask())
    assert series.values == [2.0, 2.0]
    assert series.problem == "peer: it broke; a wreck; last line"
    assert len(calls) == 3


def test_an_error_of_the_bench_itself_is_not_taken_for_a_finding():
    def measure():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleave([Side("x", lambda _: measure)], 1, FakeTask())


def test_what_sides_need_is_given_back_also_when_interrupted():
    given_back = []

    def prepare(stack: ExitStack):
        stack.callback(given_back.append, "guest")

        def measure():
            if given_back or len(series.values) == 2:
                raise KeyboardInterrupt
            return {"figure": 1.0}

        return measure

    side = Side("x", prepare)
    series = side.series("figure")
    with pytest.raises(KeyboardInterrupt):
        interleave([side], 5, FakeTask())
    assert given_back == ["guest"]
    assert series.values == [1.0, 1.0], "what was measured stays"

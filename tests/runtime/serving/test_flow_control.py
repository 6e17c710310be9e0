"""How many requests are under way, and how long one is tried: against a clock that the test turns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mclst.runtime.errors import ResourceError
from mclst.runtime.serving.flow_control import FIRST_PAUSE_S, LONGEST_PAUSE_S, Busy, FlowControl, Lost


class Clock:
    """Time goes on only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def flow_of(clock: Clock, *, most: int = 8, patience_s: float = 100.0) -> FlowControl:
    return FlowControl(
        most, patience_s, "there", clock=lambda: clock.now, pause=clock.pause, chance=lambda: 1.0
    )


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One for all: a flow stays on the loop it is used on first."""
    with asyncio.Runner() as runner:
        yield runner.get_loop()


def run(
    loop: asyncio.AbstractEventLoop, flow: FlowControl, requests: list[Callable[[], Awaitable[Any]]]
) -> list[Any]:
    async def together() -> list[Any]:
        return await asyncio.gather(*(flow.send(request) for request in requests), return_exceptions=True)

    return loop.run_until_complete(together())


class FakeServer:
    """A server by a script: what becomes of its n-th call; it counts who is inside at once."""

    def __init__(self, script: list[str]) -> None:
        self.script, self.calls, self.inside, self.most = script, 0, 0, 0

    def request(self, answer: int) -> Callable[[], Awaitable[int]]:
        async def ask() -> int:
            number, self.calls = self.calls, self.calls + 1
            self.inside += 1
            self.most = max(self.most, self.inside)
            await asyncio.sleep(0)
            self.inside -= 1
            end = self.script[number] if number < len(self.script) else "good"
            if end == "busy":
                raise Busy("full")
            if end == "lost":
                raise Lost("gone")
            return answer

        return ask


@given(
    script=st.lists(st.sampled_from(["good", "busy", "lost"]), max_size=60),
    most=st.integers(1, 9),
    count=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_every_request_is_answered_once_and_never_too_many_are_under_way(
    loop: asyncio.AbstractEventLoop, script: list[str], most: int, count: int
) -> None:
    clock, server = Clock(), FakeServer(script)
    flow = flow_of(clock, most=most, patience_s=1e6)
    assert run(loop, flow, [server.request(i) for i in range(count)]) == list(range(count))
    assert server.most <= most
    assert flow.counts.most_at_once == server.most
    counts = flow.counts
    assert counts.answered == count and counts.retried == counts.rejected + counts.lost
    assert counts.answered + counts.retried == server.calls
    assert all(0 < pause <= LONGEST_PAUSE_S for pause in clock.pauses)


def test_the_window_opens_with_answers_halves_when_busy_and_falls_to_one_when_lost(
    loop: asyncio.AbstractEventLoop,
) -> None:
    flow = flow_of(Clock())
    run(loop, flow, [FakeServer([]).request(0)] * 20)
    assert flow.window == 8
    run(loop, flow, [FakeServer(["busy"]).request(0)])
    assert 4 <= flow.window < 5
    run(loop, flow, [FakeServer([]).request(0)] * 60)
    assert flow.window == 8
    run(loop, flow, [FakeServer(["lost"]).request(0)])
    assert 1 < flow.window <= 2


def test_failures_of_one_window_close_it_once(loop: asyncio.AbstractEventLoop) -> None:
    flow = flow_of(Clock())
    run(loop, flow, [FakeServer([]).request(0)] * 20)
    server = FakeServer(["busy"] * 8)
    run(loop, flow, [server.request(i) for i in range(8)])
    assert flow.window >= 4


def test_pauses_double_up_to_a_bound(loop: asyncio.AbstractEventLoop) -> None:
    clock = Clock()
    run(loop, flow_of(clock), [FakeServer(["busy"] * 8).request(0)])
    doubled = [min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**n) for n in range(8)]
    assert clock.pauses == doubled


def test_patience_counts_only_while_nobody_is_answered(loop: asyncio.AbstractEventLoop) -> None:
    clock = Clock()
    flow = flow_of(clock, patience_s=20.0)
    results = run(loop, flow, [FakeServer(["lost"] * 1000).request(0)])
    assert isinstance(results[0], ResourceError) and "gone" in str(results[0]) and "there" in str(results[0])
    assert 20 <= clock.now <= 20 + LONGEST_PAUSE_S
    assert isinstance(run(loop, flow, [FakeServer([]).request(0)])[0], ResourceError)
    flow.begin()
    assert run(loop, flow, [FakeServer([]).request(7)]) == [7] and flow.counts.answered == 1

    clock = Clock()
    flow = flow_of(clock, most=1, patience_s=20.0)
    clock.now = 1000.0  # nobody asked for anything for a long time
    assert run(loop, flow, [FakeServer(["lost", "lost"]).request(3)]) == [3]
    patient = FakeServer(["busy", "good"] * 100)
    assert run(loop, flow, [patient.request(i) for i in range(100)]) == list(range(100))
    assert clock.now > 1005


def test_what_is_refused_is_not_tried_again(loop: asyncio.AbstractEventLoop) -> None:
    calls = []

    async def refuse() -> None:
        calls.append(1)
        raise ValueError("no")

    assert isinstance(run(loop, flow_of(Clock()), [refuse])[0], ValueError)
    assert len(calls) == 1


def test_an_answer_that_takes_too_long_is_asked_for_again(loop: asyncio.AbstractEventLoop) -> None:
    calls = []

    async def slow_first() -> str:
        calls.append(1)
        await asyncio.sleep(3600 if len(calls) == 1 else 0)
        return "here"

    flow = FlowControl(2, 0.2, "there")
    results = run(loop, flow, [slow_first])
    assert isinstance(results[0], ResourceError)  # the patience was gone with the first
    assert len(calls) == 1


def test_a_server_too_slow_for_a_request_is_told_how_to_ask_for_less(
    loop: asyncio.AbstractEventLoop,
) -> None:
    clock = Clock()

    async def late() -> None:
        clock.now += 60.0
        raise TimeoutError

    result = run(loop, flow_of(clock), [late])[0]
    assert isinstance(result, ResourceError) and "no answer in time" in str(result)
    assert "longer patience or a smaller --batch-size" in str(result)


def test_a_long_failure_is_told_once_and_so_is_its_end(loop: asyncio.AbstractEventLoop) -> None:
    clock = Clock()
    messages: list[str] = []
    flow = flow_of(clock)
    flow.notify = messages.append
    run(loop, flow, [FakeServer(["lost"] * 12).request(0)])
    assert len(messages) == 2
    assert "gone" in messages[0] and "answers again" in messages[1]

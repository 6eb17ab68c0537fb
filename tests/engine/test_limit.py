"""The adaptive limit against servers made of pauses, on a clock that jumps."""

from __future__ import annotations

import asyncio
import random

import jumping_time
import pytest
from jumping_time import clock

from autointerp.engine.limit import CUT, AdaptiveLimit


def limit_of(most: int, timeout: float = 60.0) -> AdaptiveLimit:
    return AdaptiveLimit(most, timeout, clock)


def test_it_finds_the_capacity_of_a_server() -> None:
    """The server refuses at once what comes while it has 20 requests; others take it about a second."""
    draw = random.Random(0)
    in_flight, answered, refused = 0, 0, 0
    seen: list[float] = []

    async def one(limit: AdaptiveLimit) -> None:
        nonlocal in_flight, answered, refused
        while True:
            entered = await limit.enter()
            assert 1 <= limit.in_flight <= 64
            if in_flight >= 20:
                refused += 1
                await asyncio.sleep(0.05)
                limit.leave(entered, pressed=True)
                # Who was refused comes again after a pause.
                await asyncio.sleep(draw.uniform(0.5, 1.0))
                continue
            in_flight += 1
            await asyncio.sleep(draw.uniform(0.7, 1.3))
            in_flight -= 1
            answered += 1
            limit.leave(entered)
            return

    async def watch(limit: AdaptiveLimit) -> None:
        while True:
            await asyncio.sleep(1)
            seen.append(limit.limit)

    async def main() -> None:
        limit = limit_of(64)
        watching = asyncio.create_task(watch(limit))
        await asyncio.gather(*(one(limit) for _ in range(6000)))
        watching.cancel()
        assert limit.in_flight == 0 and not limit._waiting

    jumping_time.run(main())
    later = seen[len(seen) // 4 : -10]
    assert 12 <= sum(later) / len(later) <= 22 and max(later) < 24 and min(later) > 20 * CUT - 1
    assert answered == 6000 and refused < 0.1 * answered


def test_one_round_under_pressure_cuts_once() -> None:
    async def main() -> None:
        limit = limit_of(10)
        entered = [await limit.enter() for _ in range(10)]
        await asyncio.sleep(1)
        for moment in entered:
            limit.leave(moment, pressed=True)
        assert limit.limit == pytest.approx(10 * CUT), "ten refusals say the same thing"
        again = await limit.enter()
        await asyncio.sleep(1)
        limit.leave(again, pressed=True)
        assert limit.limit == pytest.approx(10 * CUT**2), "the next round says it anew"

    jumping_time.run(main())


def test_never_below_one_and_back_to_the_most() -> None:
    async def main() -> None:
        limit = limit_of(8)
        for _ in range(50):
            entered = await limit.enter()
            await asyncio.sleep(1)
            limit.leave(entered, pressed=True)
        assert limit.limit == 1.0
        rounds = 0
        while limit.limit < 8:
            rounds += 1
            together = [await limit.enter() for _ in range(int(limit.limit))]
            await asyncio.sleep(1)
            for entered in together:
                before = limit.limit
                limit.leave(entered)
                assert before < limit.limit <= 8 or limit.limit == 8
        assert 7 <= rounds <= 14, "about one more a round"
        assert limit.limit == 8 and limit.in_flight == 0

    jumping_time.run(main())


def test_slow_answers_count_as_pressure() -> None:
    async def main() -> None:
        limit = limit_of(8, timeout=10)
        for seconds, falls in ((4, False), (9, True)):
            before = limit.limit
            for _ in range(40):
                entered = await limit.enter()
                await asyncio.sleep(seconds)
                limit.leave(entered)
            assert (limit.limit < before) == falls, seconds

    jumping_time.run(main())


def test_one_slow_answer_among_quick_ones_does_not() -> None:
    async def main() -> None:
        limit = limit_of(8, timeout=10)
        slow = await limit.enter()
        for _ in range(30):
            quick = await limit.enter()
            await asyncio.sleep(0.3)
            limit.leave(quick)
        limit.leave(slow)
        assert limit.limit == 8

    jumping_time.run(main())


def test_first_come_first_served() -> None:
    order: list[int] = []

    async def one(limit: AdaptiveLimit, i: int) -> None:
        entered = await limit.enter()
        order.append(i)
        await asyncio.sleep(1)
        limit.leave(entered)

    async def main() -> None:
        limit = limit_of(3)
        await asyncio.gather(*(one(limit, i) for i in range(50)))

    jumping_time.run(main())
    assert order == list(range(50))


@pytest.mark.parametrize("seed", range(30))
def test_cancellations_leak_no_place(seed: int) -> None:
    """Waiting, just admitted, or inside: whoever is cancelled, all others get through."""
    draw = random.Random(seed)
    through: set[int] = set()
    inside = most_inside = 0
    most = draw.choice([1, 2, 7, 16])

    async def one(limit: AdaptiveLimit, i: int) -> None:
        nonlocal inside, most_inside
        await asyncio.sleep(draw.choice([0, draw.random()]))
        entered = await limit.enter()
        inside += 1
        most_inside = max(most_inside, inside)
        try:
            await asyncio.sleep(draw.choice([0, draw.random()]))
            through.add(i)
        finally:
            inside -= 1
            if draw.random() < 0.3 and limit._waiting:
                # In the very turn in which it is admitted.
                by_place[draw.randrange(len(by_place))].cancel()
            limit.leave(entered, pressed=draw.random() < 0.1)

    by_place: list[asyncio.Task[None]] = []

    async def main() -> None:
        limit = limit_of(most)
        by_place.extend(asyncio.create_task(one(limit, i)) for i in range(200))

        async def disturb() -> None:
            for victim in draw.sample(by_place, 60):
                await asyncio.sleep(draw.choice([0, 0, 0.1 * draw.random()]))
                victim.cancel()

        await asyncio.gather(disturb(), *by_place, return_exceptions=True)
        assert limit.in_flight == 0 and not any(not place.done() for place in limit._waiting)
        assert 1.0 <= limit.limit <= most

    jumping_time.run(main())
    assert most_inside <= most
    assert through >= {i for i, task in enumerate(by_place) if not task.cancelled()}


def test_a_fall_below_what_is_in_flight_admits_nobody_until_there_is_room() -> None:
    async def main() -> None:
        limit = limit_of(10)
        entered = [await limit.enter() for _ in range(10)]
        waiting = asyncio.create_task(limit.enter())
        await asyncio.sleep(1)
        limit.leave(entered.pop(), pressed=True)
        await asyncio.sleep(1)
        assert limit.in_flight == 9 and not waiting.done()
        while not waiting.done():
            assert limit.in_flight >= int(limit.limit)
            limit.leave(entered.pop())
            await asyncio.sleep(1)
        assert limit.in_flight == 7, "the six that are left, and the one that waited"

    jumping_time.run(main())

"""The rule that learns what a line carries, on recorded traces and made-up lines."""

from __future__ import annotations

import heapq

import pytest

from remote.transfer.limits import SLOWEST_PUT, TRANSFERS, USUAL_TRANSFERS
from remote.transfer.link import LARGE, MEMORY_SECONDS, STEP, Link

MIB = 1 << 20

# (began, ended, bytes) of PUTs, in seconds. Recorded from a mount behind `bench.link`: eight at
# once over 40 ms and 1 Gbit/s, the first 24 chunks of a file.
LONG = [
    (0.000, 0.163, 1057022), (0.001, 0.187, 1293136), (0.001, 0.192, 1066855),
    (0.184, 0.290, 1428602), (0.184, 0.292, 1050958), (0.185, 0.292, 1195433),
    (0.189, 0.297, 1209974), (0.190, 0.309, 1752554), (0.292, 0.398, 1145937),
    (0.292, 0.401, 1080124), (0.295, 0.402, 999024), (0.297, 0.431, 1456821),
    (0.309, 0.437, 1061152), (0.398, 0.480, 1478078), (0.401, 0.484, 1019360),
    (0.402, 0.484, 1098009), (0.431, 0.515, 652175), (0.437, 0.519, 514263),
    (0.480, 0.598, 1494040), (0.484, 0.601, 1096269), (0.484, 0.601, 1180269),
    (0.515, 0.640, 1273531), (0.519, 0.641, 1263653), (0.598, 0.701, 1237990),
]  # fmt: skip
# Small files over the same line: 4 KiB, four at once, each a round trip and some.
SMALL_FILES = [(n // 4 * 0.052, n // 4 * 0.052 + 0.050, 4096) for n in range(400)]


def play(link: Link, trace: list[tuple[float, float, int]], since: float = 0.0) -> float:
    """Tell `link` of it; when it ended."""
    began = [(at, 0, size, 0.0) for at, _, size in trace]
    ended = [(end, 1, size, end - at) for at, end, size in trace]
    now = since
    for at, kind, size, took in sorted(began + ended):
        now = since + at
        if kind == 0:
            link.began(now, size)
        else:
            link.ended(now, size, took, came=True)
    return now


def line(
    rate: float, trip: float, at_once: int, count: int, size: int = MIB
) -> list[tuple[float, float, int]]:
    """`at_once` transfers over a line that carries `rate` bytes a second, one after the other, each
    answered a round `trip` after it set out."""
    trace, free, ends = list[tuple[float, float, int]](), 0.0, [0.0] * at_once
    heapq.heapify(ends)
    for _ in range(count):
        begins = heapq.heappop(ends)
        free = max(free, begins) + size / rate
        trace.append((begins, free + trip, size))
        heapq.heappush(ends, free + trip)
    return trace


def transfers(link: Link) -> int:
    return link.transfers(USUAL_TRANSFERS, TRANSFERS, slowest=SLOWEST_PUT)


def test_nothing_is_claimed_without_evidence() -> None:
    link = Link()
    assert link.rate is None
    assert link.window(MIB, 8 * MIB, 32 * MIB, trips=2) == 8 * MIB
    assert transfers(link) == USUAL_TRANSFERS
    assert link.transfers(USUAL_TRANSFERS, 3, slowest=SLOWEST_PUT) == 3, "what was allowed"


def test_a_long_line_gets_more_under_way() -> None:
    """Recorded: eight at once did not fill it."""
    link = Link()
    play(link, LONG)
    assert link.rate is not None
    assert 30e6 < link.rate < 125e6
    assert link.window(MIB, 8 * MIB, 32 * MIB, trips=2) > 8 * MIB


@pytest.mark.parametrize("trip", [0.1, 0.3])
def test_what_is_under_way_grows_until_the_line_is_full(trip: float) -> None:
    """Each round with as many as the last one gave."""
    link, at_once, now = Link(), USUAL_TRANSFERS, 0.0
    for _ in range(6):
        now = play(link, line(60e6, trip, at_once, 64), now + 1.0)
        at_once = transfers(link)
    enough = 60e6 * trip / MIB
    assert at_once == TRANSFERS if enough > TRANSFERS else enough < at_once


def test_a_short_line_keeps_the_usual() -> None:
    link = Link()
    play(link, line(60e6, 0.001, USUAL_TRANSFERS, 128))
    assert transfers(link) == USUAL_TRANSFERS
    assert link.rate == pytest.approx(60e6, rel=0.2)


def test_a_slow_line_has_fewer_at_once_and_a_small_window() -> None:
    """512 kbit/s: eight at once would be too slow for a server, one waits for the other anyway."""
    link = Link()
    play(link, line(64_000, 0.05, USUAL_TRANSFERS, 24))
    assert link.rate == pytest.approx(64_000, rel=STEP - 1)
    assert transfers(link) in (3, 4)
    assert link.window(512 << 10, 16 * MIB, 32 * MIB, trips=2) == 512 << 10


def test_where_many_share_a_moderate_line_there_are_not_more() -> None:
    """10 Mbit/s: eight that take seven seconds each are no sign of a long line."""
    link = Link()
    play(link, [(0.0, 7.0 + n / 1000, 1200_000) for n in range(8)])
    play(link, [(0.0, 7.0 + n / 1000, 1200_000) for n in range(8)], 8.0)
    assert transfers(link) == USUAL_TRANSFERS


def test_small_files_do_not_make_a_line_look_slow() -> None:
    link = Link()
    play(link, SMALL_FILES)
    assert link.rate is None
    play(link, LONG, 30.0)
    play(link, SMALL_FILES, 31.0)
    assert link.rate is not None
    assert link.rate > 30e6
    assert transfers(link) >= USUAL_TRANSFERS


def test_a_pause_and_a_failure_say_nothing() -> None:
    link = Link()
    play(link, line(10e6, 0.01, 4, 40))
    before = link.rate
    link.began(100.0, MIB)
    link.ended(160.0, MIB, 60.0, came=False)
    play(link, line(10e6, 0.01, 4, 8), 300.0)
    assert link.rate == before


def test_what_is_told_changes_in_steps_and_the_best_is_forgotten_in_time() -> None:
    link = Link()
    now = play(link, line(10e6, 0.01, 4, 40))
    first = link.rate
    now = play(link, line(10.5e6, 0.01, 4, 40), now)
    assert link.rate == first, "hardly another line"
    now = play(link, line(1e6, 0.01, 4, 8), now)
    assert link.rate == first, "a stall is not a slower line"
    play(link, line(1e6, 0.01, 4, 40), now + MEMORY_SECONDS)
    assert link.rate == pytest.approx(1e6, rel=0.2)


def test_it_recovers_from_having_taken_a_line_for_slow() -> None:
    """With one at a time the line is still seen to be fast."""
    link = Link()
    now = play(link, line(10_000, 0.05, 8, 8, LARGE))
    assert transfers(link) == 1
    play(link, line(10e6, 0.05, 1, 4), now)
    assert transfers(link) == USUAL_TRANSFERS


def test_small_ones_that_came_beside_large_ones_that_failed_tell_nothing() -> None:
    """As when a server ends: what was large breaks off, what was small has come before."""
    link = Link()
    link.began(0.0, MIB)
    link.began(0.1, 4096)
    link.ended(0.2, 4096, 0.1, came=True)
    link.ended(1.0, MIB, 1.0, came=False)
    assert link.rate is None
    assert transfers(link) == USUAL_TRANSFERS
    assert link.window(1, 2, 3, trips=2) == 2

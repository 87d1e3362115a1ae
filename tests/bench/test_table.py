"""A report says what the figures were measured on, over a line too, and what failed."""

from __future__ import annotations

from bench import table
from bench.link.schedule import symmetric
from bench.machine import Machine
from bench.results import Failed, Given, Measure, OverALine, Report, Sample

MACHINE = Machine(
    cpu="a processor",
    cores=2,
    memory=1 << 30,
    kernel="6",
    disk="a disk",
    python="3",
    versions={"nearline": "1", "rclone": "2"},
    load=(0.1, 0.2),
    caches_dropped=True,
    isolated=True,
)
LINE = OverALine(
    shape=symmetric(0.04, 125e6), size=1 << 20, reads=1, files=5, directories=7, git_files=9
)


def given(line: OverALine | None) -> Given:
    return Given(
        data="pseudo-random",
        seed="s",
        size=1 << 20,
        reads=1,
        files=2,
        small=3,
        operations=4,
        spool=5,
        runs=1,
        line=line,
    )


def sample(peer: str, value: float) -> Sample:
    return Sample("wan-find", peer, 0, Measure("cold find", value, "s", "less"))


def test_the_line_and_how_late_it_was_are_told() -> None:
    failed = [Failed("wan-git", "rclone", 0, "it broke")]
    both = [sample("nearline", 2.0), sample("rclone", 1.0)]
    said = table.render(Report(MACHINE, given(LINE), both, failed, {"nearline": 0.0123}))
    assert "a round trip of 40 ms, 1000 Mbit/s each way" in said
    assert "7 directories, a repository of 9 files" in said
    assert "on the average, in ms: nearline 12.3" in said
    assert "|  0.5x |" in said
    assert "- wan-git, rclone: it broke" in said


def test_without_a_line_none_is_told() -> None:
    said = table.render(Report(MACHINE, given(None), [sample("nearline", 2.0)], []))
    assert "round trip" not in said
    assert "later than" not in said

"""Results of measuring, and the numbers a reader wants of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

import msgspec

from bench.link.schedule import Shape
from bench.machine import Machine

Better = Literal["more", "less"]


class Measure(msgspec.Struct, frozen=True):
    """One figure of one run of a workload, such as ("cold", 310.2, "MB/s", "more")."""

    name: str
    value: float
    unit: str
    better: Better


class Sample(msgspec.Struct, frozen=True):
    workload: str
    peer: str
    run: int
    measure: Measure


class Failed(msgspec.Struct, frozen=True):
    """A peer that did not get through a workload. It is not asked again in the same workload."""

    workload: str
    peer: str
    run: int
    reason: str


class OverALine(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of the workloads over a line. Sizes in bytes, times in seconds."""

    shape: Shape
    size: int
    reads: int
    files: int
    directories: int
    git_files: int


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of the workloads. Sizes in bytes."""

    data: str
    seed: str
    size: int
    reads: int
    files: int
    small: int
    operations: int
    spool: int
    runs: int
    line: OverALine | None = None


class Report(msgspec.Struct, frozen=True):
    """Everything `--json` writes. `late`: by how many seconds the line of each peer was longer than
    it should have been, each way and on the average."""

    machine: Machine
    given: Given
    samples: list[Sample]
    failed: list[Failed]
    late: dict[str, float] = {}


class Point(msgspec.Struct, frozen=True):
    """One figure of `peer` at `x`, which is in the unit of its curve."""

    peer: str
    x: float
    measure: str
    value: float
    unit: str


class Curve(msgspec.Struct, frozen=True):
    name: str
    title: str
    unit: str
    points: list[Point]


class Curves(msgspec.Struct, frozen=True):
    """Everything that `bench.curves` writes."""

    machine: Machine
    curves: list[Curve]


class Summary(msgspec.Struct, frozen=True):
    middle: float
    low: float
    high: float


def rows(samples: Iterable[Sample]) -> dict[tuple[str, str], dict[str, list[Measure]]]:
    """(workload, measure name) -> peer -> its figures, all in the order they were first seen."""
    table: dict[tuple[str, str], dict[str, list[Measure]]] = {}
    for sample in samples:
        row = table.setdefault((sample.workload, sample.measure.name), {})
        row.setdefault(sample.peer, []).append(sample.measure)
    return table


def summary(measures: Sequence[Measure]) -> Summary:
    values = [measure.value for measure in measures]
    return Summary(median(values), min(values), max(values))


def ahead(ours: Sequence[Measure], theirs: Sequence[Measure]) -> float | None:
    """The factor by which ours is better, by the medians: above 1 we are ahead, whichever way the
    figure counts. None when one of the two is 0."""
    mine, other = summary(ours).middle, summary(theirs).middle
    if not mine or not other:
        return None
    return mine / other if ours[0].better == "more" else other / mine


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile: a value that was measured."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]

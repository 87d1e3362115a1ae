"""Results of measuring, and the numbers a reader wants of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Literal

import msgspec

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


class Report(msgspec.Struct, frozen=True):
    """Everything `--json` writes."""

    machine: Machine
    given: Given
    samples: list[Sample]
    failed: list[Failed]


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

"""`python -m bench.plots curves FIGURES.json DIRECTORY` and `soak FIGURES.json FILE.png`: pictures.

Knows: what the figures look like, matplotlib, which only the `bench` extra has. Must not know: how
they were measured. It is a program of its own so that nothing else needs matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import msgspec
from matplotlib import pyplot
from matplotlib.axes import Axes

from bench.results import Curve, Curves
from bench.soak import Series, Soak

WIDTH, HEIGHT = 5.2, 3.4  # inches of one picture
MARKERS = "os^Dv*"


def curves(figures: Curves, directory: Path) -> None:
    """A PNG a curve, named after it: a picture a measure, a line a peer."""
    directory.mkdir(parents=True, exist_ok=True)
    for curve in figures.curves:
        _curve(curve, figures, directory / f"curve-{curve.name}.png")


def _curve(curve: Curve, figures: Curves, file: Path) -> None:
    measures = list(dict.fromkeys(point.measure for point in curve.points))
    peers = list(dict.fromkeys(point.peer for point in curve.points))
    columns = min(2, len(measures))
    axes = _grid(len(measures), columns)
    for measure, axis in zip(measures, axes, strict=True):
        for peer, marker in zip(peers, MARKERS, strict=False):
            seen = [p for p in curve.points if p.measure == measure and p.peer == peer]
            axis.plot([p.x for p in seen], [p.value for p in seen], marker=marker, label=peer)
        unit = next(point.unit for point in curve.points if point.measure == measure)
        axis.set(title=measure, xlabel=curve.unit, ylabel=unit)
        if min(point.x for point in curve.points) > 0:
            axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
        axis.legend()
    machine = figures.machine
    where = f"{machine.cpu}, {machine.cores} cores, load {machine.load[1]:g}"
    _save(f"{curve.title} ({where})", file)


def soak(figures: Soak, file: Path) -> None:
    """One PNG: a picture a kind of figure, a line a process."""
    kinds: dict[str, list[Series]] = {}
    for series in figures.series:
        who, _, what = series.name.partition(": ")
        kinds.setdefault("rows" if what.startswith("rows") else what, []).append(series)
    minutes = [seconds / 60 for seconds in figures.seconds]
    for (what, series_of), axis in zip(kinds.items(), _grid(len(kinds), 3), strict=True):
        for series in series_of:
            who, _, name = series.name.partition(": ")
            axis.plot(minutes, series.values, label=f"{who} {name}" if what == "rows" else who)
        axis.set(title=what, xlabel="minutes", ylabel=series_of[0].unit)
        axis.set_ylim(bottom=0)
        axis.grid(visible=True, alpha=0.3)
        axis.legend(fontsize=5 if what == "rows" else 8)
    _save(f"{figures.minutes:g} minutes of work by two devices", file)


def _grid(count: int, columns: int) -> list[Axes]:
    rows = -(-count // columns)
    _, axes = pyplot.subplots(
        rows, columns, figsize=(WIDTH * columns, HEIGHT * rows), squeeze=False
    )
    flat = list(axes.flat)
    for unused in flat[count:]:
        unused.set_axis_off()
    return flat[:count]


def _save(title: str, file: Path) -> None:
    pyplot.suptitle(title)
    pyplot.tight_layout()
    pyplot.savefig(file, dpi=90)
    pyplot.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument("kind", choices=("curves", "soak"))
    parser.add_argument("figures", type=Path)
    parser.add_argument("to", type=Path)
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    data = arguments.figures.read_bytes()
    if arguments.kind == "curves":
        curves(msgspec.json.decode(data, type=Curves), arguments.to)
    else:
        soak(msgspec.json.decode(data, type=Soak), arguments.to)


if __name__ == "__main__":
    main()

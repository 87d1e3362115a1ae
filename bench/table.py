"""A `Report` as Markdown, which is also readable on a terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bench.results import Given, Measure, Report, ahead, rows, summary

OURS, PEER = "nearline", "rclone"


def render(report: Report) -> str:
    """The machine, the inputs, the table, and what failed."""
    parts = [f"{_machine(report)}\n{_given(report)}{_late(report)}", _table(report)]
    if report.failed:
        parts.append("\n".join(f"- {f.workload}, {f.peer}: {f.reason}" for f in report.failed))
    return "\n\n".join(parts) + "\n"


def _machine(report: Report) -> str:
    machine = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [
        f"- {machine.cpu}, {machine.cores} cores, {machine.memory / 2**30:.1f} GiB of memory, "
        f"Linux {machine.kernel}, scratch on {machine.disk}",
        f"- {versions}, Python {machine.python}",
        f"- load average {machine.load[0]:g} at the start, {machine.load[1]:g} at the end",
    ]
    if not machine.caches_dropped:
        lines.append("- **not root: the kernel's caches were not dropped, cold is not cold**")
    if not machine.isolated:
        lines.append("- **no network namespace: bytes moved count all of the machine's loopback**")
    return "\n".join(lines)


def _given(report: Report) -> str:
    given = report.given
    return (
        f"- {given.data} data from seed {given.seed!r}: "
        f"a large file of {given.size / 2**20:g} MiB, {given.reads} random reads, "
        f"{given.files} small files of {given.small} bytes, "
        f"{given.operations:,} operations with {given.spool / 1e9:g} GB; "
        f"medians of {given.runs} runs (lowest-highest)" + (_line(given) if given.line else "")
    )


def _line(given: Given) -> str:
    """The inputs of the rows `wan-`, in a line."""
    line = given.line
    assert line is not None
    shape = line.shape
    rate = f"{shape.up_rate * 8 / 1e6:g} Mbit/s" if shape.up_rate else "no limit of rate"
    return (
        f"\n- over a line (wan): a round trip of {shape.round_trip * 1000:g} ms, {rate} each way; "
        f"a large file of {line.size / 2**20:g} MiB, {line.reads} random reads, {line.files} small "
        f"files of {given.small} bytes, {line.directories} directories, a repository of "
        f"{line.git_files} files"
    )


def _late(report: Report) -> str:
    """A line that tells how late the line was, which is how busy the machine was; "" when it is not
    known."""
    if not report.late:
        return ""
    late = ", ".join(f"{name} {number(each * 1000)}" for name, each in report.late.items())
    return f"\n- later than the line says, each way, on the average, in ms: {late}"


def _table(report: Report) -> str:
    table = rows(report.samples)
    peers = list(dict.fromkeys(peer for row in table.values() for peer in row))
    compare = OURS in peers and PEER in peers
    head = ["workload", "measure", "unit", *peers] + (["ahead"] if compare else [])
    body = []
    for (workload, name), row in table.items():
        first = next(iter(row.values()))[0]
        cells = [workload, name, first.unit, *(_cell(row.get(peer)) for peer in peers)]
        body.append(cells + ([_ratio(row.get(OURS), row.get(PEER))] if compare else []))
    return _markdown(head, body, left=3)


def _cell(measures: Sequence[Measure] | None) -> str:
    """The median, and the extremes when there is more than one run."""
    if not measures:
        return ""
    found = summary(measures)
    if len(measures) == 1:
        return number(found.middle)
    return f"{number(found.middle)} ({number(found.low)}-{number(found.high)})"


def _ratio(ours: Sequence[Measure] | None, theirs: Sequence[Measure] | None) -> str:
    times = ahead(ours, theirs) if ours and theirs else None
    return "" if times is None else f"{number(times)}x"


def number(value: float) -> str:
    """Three significant digits, and no more digits than that says."""
    if value >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]], *, left: int) -> str:
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(head), line(rule), *map(line, body)])

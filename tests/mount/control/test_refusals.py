"""mount/control/refusals.py: what a person is told of refused changes, and trying them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from rich.console import Console

from cache.metadata.operations import Op
from mount import doctor
from mount.cli import status_table
from mount.control import client, messages, refusals
from mount.failures import Failure
from remote.protocol.errors import RULES, Retry, Unreachable
from tests.cache.state import State


class Session:
    """The parts of a session that are looked at."""

    def __init__(self, state: State) -> None:
        self.db, self.tree, self.journal = state.db, state.tree, state.journal
        self.offline = False

    def require_online(self) -> None:
        if self.offline:
            raise Unreachable("offline")


class CommandContext:
    """`decide` is what the server does with what is flushed."""

    def __init__(self, state: State) -> None:
        self.session, self.state = Session(state), state
        self.decide: Callable[[Op], None] = self.take

    def take(self, op: Op) -> None:
        with self.state.db.transaction():
            self.state.journal.remove(op)

    def refuse(self, op: Op) -> None:
        with self.state.db.transaction():
            self.state.journal.rewrite(op, refused="forbidden: still not")

    async def flush(self, which: Callable[[Op], bool], report: Any) -> None:
        for op in [op for op in self.state.journal if which(op)]:
            self.decide(op)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Any]:
    """`d` and what is in it, and `e`, were refused; `d/x` waits behind `d`."""
    state = State(tmp_path)
    trio.run(state.journal.load)
    directory = state.make("d", "directory")
    state.make("x", parent=directory.ino)
    state.make("e")
    found = CommandContext(state)
    for op in list(state.journal):
        if op.body.name in "de":
            found.refuse(op)
    yield found
    state.close()


async def report(progress: messages.Progress) -> None: ...


def refused(context: Any) -> list[str]:
    return [item.path for item in refusals.described(context.session)]


def test_each_is_told_with_what_waits_behind_it_and_what_to_do(context: Any) -> None:
    first, second = refusals.described(context.session)
    assert (first.path, first.operation, first.error) == ("d", "create", "forbidden: still not")
    assert (first.waiting, second.waiting) == (1, 0)
    assert 0 < first.since_ns < second.since_ns
    assert "nearline retry" in first.advice


def test_every_refusal_for_good_has_advice() -> None:
    tags = [kind.__struct_config__.tag for kind, rule in RULES.items() if rule.retry is Retry.NEVER]
    for tag in [*tags, "error"]:
        assert len(refusals.advice(f"{tag}: message")) > 10


def test_what_has_no_name_any_more_is_told_by_the_one_it_had(context: Any) -> None:
    state = context.state
    node = state.tree.node(state.listing()["d"])
    record = state.born("gone", 1, parent=node.file)
    file = state.tree.live(record.id)
    state.edits.unlink(node.ino, "gone", directory=False)
    op = list(state.journal)[-1]
    assert (op.kind, op.ino) == ("unlink", file.ino)
    context.refuse(op)
    assert refused(context)[-1] == "d/gone"
    assert refusals.refused_at(context.session, "d/gone") == [op]


@pytest.mark.parametrize(
    ("path", "left"),
    [("", []), ("d", ["e"]), ("e", ["d"]), ("d/x", ["d", "e"]), ("dd", ["d", "e"])],
)
async def test_only_what_is_meant_is_tried_again(context: Any, path: str, left: list[str]) -> None:
    said = await refusals.retry(context, path, report)
    assert refused(context) == left
    assert ("nothing was refused" in said) == (len(left) == 2)


async def test_refused_again_says_so_and_what_to_do(context: Any) -> None:
    context.decide = context.refuse
    with pytest.raises(Failure, match=r"refused again: d \(forbidden: still not\).*; ask"):
        await refusals.retry(context, "d", report)
    assert refused(context) == ["d", "e"]


async def test_what_still_waits_behind_another_is_said(context: Any) -> None:
    (inner,) = [op for op in context.state.journal if op.body.name == "x"]
    context.refuse(inner)
    context.decide = lambda op: None
    with pytest.raises(Failure, match="wait for others"):
        await refusals.retry(context, "d/x", report)


async def test_offline_nothing_is_touched(context: Any) -> None:
    context.session.offline = True
    with pytest.raises(Unreachable):
        await refusals.retry(context, "", report)
    assert refused(context) == ["d", "e"]


def status(*refused: messages.RefusedStatus) -> messages.Status:
    return messages.Status(
        state="online", mountpoint="/m", url="u", account="a", pid=1, refused=list(refused)
    )


def test_status_shows_it(context: Any) -> None:
    console = Console(record=True, width=200)
    status_table.show([status(*refusals.described(context.session))], console)
    text = console.export_text()
    assert "create d, since 20" in text
    assert "1 more wait for it: forbidden: still not" in text
    assert "what to do" in text


def test_the_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [
        messages.RefusedStatus(f"f{n}", "write", "forbidden: no", 1, n, "do this") for n in range(8)
    ]
    monkeypatch.setattr(client, "status", lambda path: status(*many))
    record: Any = SimpleNamespace(mountpoint="/m", control="/c", state_dir="/s")
    found = list(doctor.check_refusals(record))
    assert [finding.level for finding in found] == ["fail"] * (doctor.REFUSALS_SHOWN + 1)
    assert found[1].line() == "fail  write of /m/f1 (1 more wait for it): forbidden: no; do this"
    assert "3 more changes" in found[-1].what

    def silent(path: Path) -> messages.Status:
        raise client.NotAnswering("nobody there")

    monkeypatch.setattr(client, "status", silent)
    (finding,) = doctor.check_refusals(record)
    assert finding.level == "fail"

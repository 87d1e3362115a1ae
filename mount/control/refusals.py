"""Changes that the server refused for good: what to say of them, and trying them again.

Knows: where such a change is for a person, and what to do about each reason. Must not know: what is
sent and when (`replayer`), which edits make a change be tried again by themselves (`edits`).

Concurrency: on the trio thread. Looking is synchronous; `retry` may be cancelled at any
await, and what it has set going goes on.
"""

from __future__ import annotations

from collections.abc import Iterator

from cache.metadata.operations import Op, waiting_behind
from mount.control import messages
from mount.control.context import CommandContext, Report
from mount.failures import Failure
from mount.session.session import Session

SHOWN_IN_A_LINE = 3
_RETRY = "then run `nearline retry`"
_ADVICE = {
    "forbidden": "ask the owner for the role of an editor, then run `nearline retry`; or copy it to"
    " a folder of your own",
    "other_reach": "copy it there and delete it here (what the owner has shared or published would"
    " change by a move); or move it back, which settles it",
    "bad_name": "give it another name",
    "name_too_long": "give it a shorter name, or move it to where it is less deep",
    "too_large": "make it smaller, or take attributes away, and it is sent",
    "too_many_links": f"remove other names of the file, {_RETRY}",
    "exists": f"rename one of the two, {_RETRY}",
    "stale": f"look at what is there now, {_RETRY}",
    "not_found": f"look at what is there now, {_RETRY}",
    "error": f"look into mount.log in the state directory for the reason, {_RETRY}",
}
_OTHERWISE = f"remove the cause, {_RETRY}; renaming or deleting the file settles it too"


def advice(error: str) -> str:
    """Advice about a refusal, which reads `problem: message`."""
    return _ADVICE.get(error.partition(":")[0], _OTHERWISE)


def described(session: Session) -> list[messages.RefusedStatus]:
    """Each refused change, in order."""
    journal = session.journal
    if not journal.is_whole or not journal.has_refused:
        return []
    behind = waiting_behind(journal)
    return [
        messages.RefusedStatus(
            next(paths(session, op)),
            op.kind,
            op.refused or "",
            since_ns=op.made_ns,
            waiting=behind[op.key],
            advice=advice(op.refused or ""),
        )
        for op in journal.refused()
    ]


def paths(session: Session, op: Op) -> Iterator[str]:
    """Where a change is: the paths of its file as the mount shows them, then the names that the
    change speaks of, which may be gone from the mount."""
    tree, body = session.tree, op.body
    for parent, name in tree.names(op.ino):
        yield _joined(tree.path(parent), name)
    for file, name in ((body.new_parent, body.new_name), (body.parent, body.name)):
        directory = tree.live(file) if name else None
        if directory is not None:
            yield _joined(tree.path(directory.ino), name)
    yield tree.path(op.ino)


def _joined(directory: str, name: str) -> str:
    return name if directory == "/" else f"{directory}/{name}"


def refused_at(session: Session, path: str) -> list[Op]:
    """The refused changes of `path` and of what is below it; "" is all."""
    return [
        op
        for op in session.journal.refused()
        if not path
        or any(item == path or item.startswith(f"{path}/") for item in paths(session, op))
    ]


async def retry(context: CommandContext, path: str, report: Report) -> str:
    """Try again what was refused at `path`; what came of it. Raises `Failure` when something was
    refused once more, `Unreachable` when the server cannot be asked."""
    session = context.session
    session.require_online()
    await session.journal.wait_for_all()
    again = refused_at(session, path)
    if not again:
        return "nothing was refused"
    with session.db.transaction():
        session.journal.try_again(again)
    origins = {op.origin for op in again}
    await context.flush(lambda op: op.origin in origins, report)
    left = [op for op in session.journal if op.origin in origins]
    if left:
        raise Failure(_still_refused(session, left))
    return f"the server has taken {_changes(len(again))}"


def _still_refused(session: Session, left: list[Op]) -> str:
    refused = [op for op in left if op.refused]
    if not refused:
        return (
            f"{_changes(len(left))} of these must wait for others that are refused;"
            " `nearline status` names them"
        )
    lines = [f"{next(paths(session, op))} ({op.refused})" for op in refused[:SHOWN_IN_A_LINE]]
    more = f" and {len(refused) - len(lines)} more" if len(refused) > len(lines) else ""
    what = advice(refused[0].refused or "")
    return f"refused again: {', '.join(lines)}{more}; {what}"


def _changes(count: int) -> str:
    return f"{count} change{'s' if count != 1 else ''}"

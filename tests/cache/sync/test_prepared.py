"""Things kept by operation key follow the key, and go with it."""

from __future__ import annotations

from cache.metadata.operations import Body, Op
from cache.sync.prepared import Prepared, Progress
from remote.protocol.content import EMPTY
from remote.protocol.messages import Content


def prepared() -> Prepared:
    found = Prepared()
    for key in ("a", "b"):
        found.ready[key] = Content(version=key, base=None, manifest=EMPTY)
        found.progress[key] = Progress(f"/{key}", 0, 1)
        found.resend[key] = {key.encode()}
    return found


def keys(kept: Prepared) -> set[str]:
    assert kept.ready.keys() == kept.progress.keys() == kept.resend.keys()
    return set(kept.ready)


def test_everything_goes_on_under_another_key() -> None:
    kept = prepared()
    kept.rekeyed("a", "c")
    kept.rekeyed("unknown", "d")
    assert keys(kept) == {"b", "c"}
    assert (kept.ready["c"].version, kept.progress["c"].path) == ("a", "/a")
    assert kept.resend["c"] == {b"a"}
    kept.rekeyed("c", "a")  # as a rollback does
    assert keys(kept) == {"a", "b"}


def test_nothing_is_left_of_what_is_forgotten() -> None:
    kept = prepared()
    kept.forget("a")
    assert keys(kept) == {"b"}
    kept.tidy(lambda key: key == "a")
    assert keys(kept) == set()


def test_bytes_are_there_of_what_is_ready() -> None:
    kept, op = prepared(), Op(1, "a", "write", 1, "f", Body())
    assert kept.has_bytes(op)
    kept.ready.clear()
    assert not kept.has_bytes(op)

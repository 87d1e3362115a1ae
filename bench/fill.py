"""`python -m bench.fill URL ACCOUNT PASSWORD-FILE NAME ENTRIES`: a directory of empty files at the
top of a drive, made past every mount: what making them by one costs is not what is measured.

Knows: the API. Must not know: a mount.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from cache.metadata.operations import new_id
from remote.http.api import ApiClient
from remote.protocol.content import EMPTY
from remote.protocol.messages import (
    MAX_BATCH,
    Applied,
    ApplyRequest,
    Content,
    Create,
    Keyed,
    LoginRequest,
)


async def _fill(url: str, account: str, password: Path, name: str, entries: int) -> None:
    async with ApiClient(url, None, insecure=True) as api:
        login = LoginRequest(account, password.read_text().strip(), "fill")
        api.use_token((await api.login(login)).token)
        parent = (await api.me()).root
        top = Create(
            file=new_id(), parent=parent, name=name, kind="directory", mode=0o755, mtime_ns=0
        )
        await _apply(api, [top])
        for first in range(0, entries, MAX_BATCH):
            numbers = range(first, min(entries, first + MAX_BATCH))
            await _apply(api, [_file(top.file, f"{number:06}") for number in numbers])


def _file(parent: str, name: str) -> Create:
    content = Content(version=new_id(), manifest=EMPTY)
    return Create(
        file=new_id(),
        parent=parent,
        name=name,
        kind="file",
        mode=0o644,
        mtime_ns=0,
        content=content,
    )


async def _apply(api: ApiClient, ops: list[Create]) -> None:
    left = [Keyed(key=new_id(), op=op) for op in ops]
    while left:  # a batch that has to make way is answered in part
        reply = await api.apply(ApplyRequest(left))
        for result in reply.results:
            assert isinstance(result, Applied), result
        left = left[len(reply.results) :]


def main() -> None:
    url, account, password, name, entries = sys.argv[1:]
    trio.run(_fill, url, account, Path(password), name, int(entries))


if __name__ == "__main__":
    main()

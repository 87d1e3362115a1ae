"""Getting rid of files, for tests of what becomes of their content."""

from __future__ import annotations

from remote.protocol.account_messages import EmptiedReply, EmptyTrash
from remote.protocol.messages import Unlink
from tests.server.harness import Client


def unlink(client: Client, name: str) -> None:
    """Delete a file in the root."""
    file = client.children()[name].id
    client.do(Unlink(file=file, parent=client.me.root, name=name))


def empty_trash(client: Client) -> None:
    while client.request("POST", "/v1/trash/empty", EmptiedReply, EmptyTrash()).more:
        pass


def forget(client: Client, name: str) -> None:
    """Delete a file in the root, and everything in the trash."""
    unlink(client, name)
    empty_trash(client)

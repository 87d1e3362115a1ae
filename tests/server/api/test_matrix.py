"""Permissions: every endpoint, asked by everybody, and what the answer must be.

The columns: the drive's *owner*; an *editor* and a *viewer* of one of its directories; a
*stranger*; somebody whose grant was taken back (*revoked*); the owner's tokens that may only read
(*reader*), that are for that directory alone (*folder*), for another one alone (*elsewhere*), that
have *expired*, and that were revoked (*ended*); and a *visitor* without any token, who has a link's
URL at most. *Deeper* is a directory in the shared one that is shared with one more besides: only
the owner brings there what has a history already.

`ok` is success, in a batch that of its one operation; `none` is a success that did nothing, as what
was named is not the sender's; a number is the status of the refusal, in a batch that of the
operation's Problem. What is about somebody's own things (`/v1/me`, their devices, their trash) is
`ok` for all who have a drive.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from remote.protocol import messages
from remote.protocol.account_messages import EmptiedReply, EmptyTrash
from remote.protocol.errors import RULES, AnyProblem
from server.app import ENDPOINTS
from tests.amounts import amount
from tests.server.harness import MSGPACK, Client, Running
from tests.server.matrix import ASKS, Ask, Scene

TABLE = """
                                      | owner editor viewer stranger revoked reader folder elsewhere expired ended visitor
POST /v1/login                        | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
GET /v1/me                            | ok    ok     ok     ok       ok      ok     ok     ok        401     401   401
POST /v1/password                     | ok    ok     ok     ok       ok      403    403    403       401     401   401
GET /v1/devices                       | ok    ok     ok     ok       ok      403    403    403       401     401   401
POST /v1/devices                      | ok    ok     ok     ok       ok      403    403    403       401     401   401
POST /v1/devices/rotate               | ok    ok     ok     ok       ok      ok     ok     ok        401     401   401
DELETE /v1/devices/{device_id}        | ok    404    404    404      404     403    403    403       401     401   401
POST /v1/files
  (new version)                       | ok    ok     403    404      404     403    ok     404       401     401   401
  (new file)                          | ok    ok     403    404      404     403    ok     404       401     401   401
  (own drive)                         | ok    ok     ok     ok       ok      403    ok     ok        401     401   401
GET /v1/files/{file_id}               | ok    ok     ok     404      404     ok     ok     404       401     401   401
  (root)                              | ok    404    404    404      404     ok     404    404       401     401   401
  (in the trash)                      | ok    404    404    404      404     ok     404    404       401     401   401
  (moved out, a name left behind)     | ok    404    404    404      404     ok     404    404       401     401   401
  (deleted for good)                  | 404   404    404    404      404     404    404    404       401     401   401
GET /v1/files/{file_id}/children      | ok    ok     ok     404      404     ok     ok     404       401     401   401
POST /v1/listings                     | ok    ok     ok     404      404     ok     ok     404       401     401   401
  (behind one's own)                  | ok    ok     ok     ok       ok      ok     404    404       401     401   401
GET /v1/files/{file_id}/versions      | ok    ok     ok     404      404     ok     ok     404       401     401   401
GET /v1/files/{file_id}/changes       | ok    ok     ok     404      404     ok     ok     404       401     401   401
GET /v1/files/by-fingerprint/{fingerprint}
                                      | ok    404    404    404      404     ok     ok     404       401     401   401
POST /v1/files/{file_id}/share        | ok    403    403    404      404     403    403    404       401     401   401
GET /v1/files/{file_id}/shares        | ok    ok     ok     404      404     ok     ok     404       401     401   401
DELETE /v1/files/{file_id}/share/{account}
                                      | ok    403    403    404      404     403    403    403       401     401   401
  (one's own)                         | 404   ok     ok     404      404     403    403    403       401     401   401
GET /v1/shared                        | ok    ok     ok     ok       ok      ok     ok     ok        401     401   401
POST /v1/files/{file_id}/links        | ok    403    403    404      404     403    403    404       401     401   401
GET /v1/files/{file_id}/links         | ok    403    403    404      404     403    403    403       401     401   401
GET /v1/links                         | ok    ok     ok     ok       ok      403    403    403       401     401   401
DELETE /v1/links/{link_id}            | ok    404    404    404      404     403    403    403       401     401   401
GET /v1/trash                         | ok    ok     ok     ok       ok      403    403    403       401     401   401
  (of a directory)                    | ok    403    403    404      404     403    403    403       401     401   401
  (of a deleted id)                   | 404   404    404    404      404     403    403    403       401     401   401
  (inside a deleted directory)        | ok    404    404    404      404     403    403    403       401     401   401
  (by id)                             | ok    ok     ok     ok       ok      403    403    403       401     401   401
POST /v1/trash/empty                  | ok    none   none   none     none    403    403    403       401     401   401
POST /v1/bundles                      | ok    422    422    422      422     403    403    403       401     401   401
  (own drive)                         | ok    ok     ok     ok       ok      403    403    403       401     401   401
GET /v1/uploads/{version}             | ok    404    404    404      404     ok     404    404       401     401   401
POST /v1/uploads/{version}/urls       | ok    404    404    404      404     403    404    404       401     401   401
POST /v1/uploads/{version}/complete   | ok    ok     403    404      404     403    ok     404       401     401   401
DELETE /v1/uploads/{version}          | ok    404    404    404      404     403    404    404       401     401   401
POST /v1/chunks/locate                | ok    ok     ok     404      404     ok     ok     404       401     401   401
POST /v1/chunks/locate-several        | ok    ok     ok     404      404     ok     ok     404       401     401   401
POST /v1/changes/apply
  (create)                            | ok    ok     403    404      404     403    ok     404       401     401   401
  (create outside)                    | ok    404    404    404      404     403    404    404       401     401   401
  (create deeper)                     | ok    ok     403    404      404     403    ok     404       401     401   401
  (create, of a deleted id)           | 409   409    403    404      404     403    409    404       401     401   401
  (create at home)                    | ok    ok     ok     ok       ok      403    404    404       401     401   401
  (at home, of a deleted id)          | 409   409    409    409      409     403    404    404       401     401   401
  (at home, of a known id)            | 409   409    409    409      409     403    404    404       401     401   401
  (write)                             | ok    ok     403    404      404     403    ok     404       401     401   401
  (link)                              | ok    ok     403    404      404     403    ok     404       401     401   401
  (link deeper)                       | ok    409    403    404      404     403    409    404       401     401   401
  (rename)                            | ok    ok     403    404      404     403    ok     404       401     401   401
  (rename deeper)                     | ok    409    403    404      404     403    409    404       401     401   401
  (rename, out)                       | ok    404    403    404      404     403    404    404       401     401   401
  (replace)                           | ok    ok     403    404      404     403    ok     404       401     401   401
  (replace deeper)                    | ok    409    403    404      404     403    409    404       401     401   401
  (retake)                            | ok    ok     403    404      404     403    ok     404       401     401   401
  (exchange)                          | ok    ok     403    404      404     403    ok     404       401     401   401
  (exchange deeper)                   | ok    409    403    404      404     403    409    404       401     401   401
  (unlink)                            | ok    ok     403    404      404     403    ok     404       401     401   401
  (setattr)                           | ok    ok     403    404      404     403    ok     404       401     401   401
  (setxattr)                          | ok    ok     403    404      404     403    ok     404       401     401   401
  (revert)                            | ok    ok     403    404      404     403    ok     404       401     401   401
  (recover)                           | ok    404    404    404      404     403    404    404       401     401   401
  (recover, of a deleted directory)   | ok    404    404    404      404     403    404    404       401     401   401
GET /v1/changes                       | ok    ok     ok     ok       ok      ok     ok     ok        401     401   401
GET /v1/changes/wait                  | ok    ok     ok     ok       ok      ok     ok     ok        401     401   401
WS /v1/changes/live                   | ok    ok     ok     ok       ok      ok     ok     ok        401     401   401
GET /s/{secret}                       | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
POST /s/{secret}                      | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
GET /s/{secret}/{file_id}             | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
  (outside)                           | 404   404    404    404      404     404    404    404       404     404   404
GET /s/{secret}/{file_id}/download    | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
GET /s/{secret}/{file_id}/zip         | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
GET /healthz                          | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
GET /readyz                           | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
GET /metrics                          | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
GET /schema                           | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
GET /schema/openapi.json              | ok    ok     ok     ok       ok      ok     ok     ok        ok      ok    ok
"""  # noqa: E501


def read_table() -> dict[str, dict[str, str]]:
    """By endpoint, with which request to it in brackets: who gets which answer."""
    header, *lines = TABLE.strip("\n").splitlines()
    columns = header.replace("|", "").split()
    found: dict[str, dict[str, str]] = {}
    endpoint = ""
    for line in lines:
        name, _, cells = line.partition("|")
        if name.strip() and not name.startswith(" "):
            endpoint = name.strip()
        if cells:
            variant = f" {name.strip()}" if name.startswith("  (") else ""
            found[endpoint + variant] = dict(zip(columns, cells.split(), strict=True))
    return found


LINES = read_table()


@pytest.fixture(scope="module")
def scene(server: Running) -> Scene:
    return Scene(server)


@pytest.mark.parametrize("line", list(LINES)[:: amount(1, 3)])
def test_everybody_gets_the_answer_of_the_table(scene: Scene, line: str) -> None:
    got = {who: answer(scene, line, scene.who[who]) for who in LINES[line]}
    assert got == LINES[line]


def test_no_endpoint_is_missing_from_the_table() -> None:
    asked = {re.sub(r" \(.*", "", line) for line in LINES}
    assert asked == {f"{item.method} {item.path}" for item in ENDPOINTS}
    assert set(ASKS) == set(LINES)


def answer(scene: Scene, line: str, by: Client) -> str:
    ask = ASKS[line](scene, by)
    method = line.partition(" ")[0]
    return knock(scene, ask, by) if method == "WS" else send(method, ask, by)


def send(method: str, ask: Ask, by: Client) -> str:
    headers = {"Accept": MSGPACK, "Content-Type": MSGPACK}
    if by.token:
        headers["Authorization"] = f"Bearer {by.token}"
    content = None if ask.message is None else msgspec.msgpack.encode(ask.message)
    if method == "POST" and ask.path.startswith("/s/"):
        content, headers["Content-Type"] = b"password=x", "application/x-www-form-urlencoded"
    got = by.http.request(
        method, ask.path, headers=headers, content=content, params=ask.query, timeout=30
    )
    return told(got.status_code, ask.message, got.content)


def told(status: int, message: Any, body: bytes) -> str:
    """A cell of the table for this answer to `message`."""
    if status >= 400:
        return str(status)
    if isinstance(message, EmptyTrash):
        return "ok" if msgspec.msgpack.decode(body, type=EmptiedReply).files else "none"
    problem: Any = None
    if isinstance(message, messages.ApplyRequest):
        problem = msgspec.msgpack.decode(body, type=messages.ApplyReply).results[0]
    elif isinstance(message, messages.StartUploads):
        problem = msgspec.msgpack.decode(body, type=messages.StartUploadsReply).uploads[0]
    elif isinstance(message, messages.LocateSeveral):
        problem = msgspec.msgpack.decode(body, type=messages.LocateSeveralReply).found[0]
    return str(RULES[type(problem)].status) if isinstance(problem, AnyProblem) else "ok"


def knock(scene: Scene, ask: Ask, by: Client) -> str:
    url = scene.server.url.replace("http", "ws") + ask.path
    headers = {"Authorization": f"Bearer {by.token}"} if by.token else {}
    try:
        with connect(url, additional_headers=headers) as socket:
            socket.recv(timeout=60)
            return "ok"
    except InvalidStatus as error:
        return str(error.response.status_code)

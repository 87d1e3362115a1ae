"""The people and things of the authorisation matrix, and one good request for each of its lines.

Every request is one that would be carried out if its sender were allowed to: what differs between
two cells of a line is only who asks. What a request uses up is made anew for each cell.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from argon2 import PasswordHasher
from sqlalchemy import delete, insert, update

from remote.protocol import account_messages, messages
from remote.protocol.content import fingerprint
from server.accounts import accounts, tokens
from server.metadata import schema
from tests.server.harness import (
    EMPTY,
    Client,
    Failed,
    Running,
    make_chunk,
    manifest_of,
    new_id,
    noise,
)

PASSWORD = "right"
_CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


class Ask(NamedTuple):
    path: str
    message: Any = None
    query: Mapping[str, Any] = MappingProxyType({})


class Scene:
    """Anna's drive with a directory that she shares, and everybody who may come to it.

    `shared` holds `file`, whose content is `chunk`, and `inner`, a directory that is shared with
    one more; `beside` is another directory of hers. `secret` is that of a link to `shared`.
    """

    def __init__(self, server: Running) -> None:
        self.server = server
        self.owner = self._person("owner")
        self.shared, self.beside = self.owner.mkdir("shared"), self.owner.mkdir("beside")
        self.inner = self.owner.mkdir("inner", self.shared)
        self.chunk = make_chunk(noise(500, "matrix"))
        self.file, self.version = self.owner.store("file", self.chunk, parent=self.shared)
        names = ("editor", "viewer", "stranger", "revoked")
        people = {name: self._person(name) for name in names}
        self.guest = self._person("guest")
        for role in ("editor", "viewer"):
            self.grant(self.shared, people[role], role)
        self.grant(self.inner, self.guest, "viewer")
        self.grant(self.shared, people["revoked"], "editor")
        with server.app.service.db.write() as conn:
            mine = schema.grants.c.account == self._account(people["revoked"])
            conn.execute(delete(schema.grants).where(mine))
        self.who: dict[str, Client] = {"owner": self.owner} | people
        self.who["reader"] = self._token(scope="read")
        self.who["folder"] = self._token(folder=self.shared)
        self.who["elsewhere"] = self._token(folder=self.beside)
        self.who["expired"] = self._token()
        self.who["ended"] = self._token()
        self._end("expired", expires_ns=time.time_ns())
        self._end("ended", revoked_ns=time.time_ns())
        self.who["visitor"] = server.client()
        self.secret = self.link()[1]

    def _person(self, name: str) -> Client:
        with self.server.app.service.db.write() as conn:
            unique = f"{name}-{new_id()[:12]}"
            accounts.insert_account(conn, unique, _CHEAP.hash(PASSWORD), time.time_ns())
        return self.server.device(unique)

    def _account(self, client: Client) -> str:
        with self.server.app.service.db.read() as conn:
            found = accounts.find_account(conn, client.me.account)
        assert found is not None
        return found[0]

    def _token(self, **limits: Any) -> Client:
        client = self.server.device(self.owner.me.account)
        mine = schema.devices.c.id == client.me.device_id
        if limits:
            with self.server.app.service.db.write() as conn:
                conn.execute(update(schema.devices).where(mine).values(**limits))
        return client

    def _end(self, who: str, **values: int) -> None:
        mine = schema.devices.c.id == self.who[who].me.device_id
        with self.server.app.service.db.write() as conn:
            conn.execute(update(schema.devices).where(mine).values(**values))

    def grant(self, file: str, to: Client, role: str) -> None:
        row = {"file": file, "account": self._account(to), "role": role}
        by = {"granted_by": self._account(self.owner), "at_ns": time.time_ns()}
        with self.server.app.service.db.write() as conn:
            conn.execute(insert(schema.grants), row | by)

    # --- things that a request uses up ---

    def set_password(self, client: Client) -> None:
        mine = schema.accounts.c.name == client.me.account
        with self.server.app.service.db.write() as conn:
            hashed = {"password": _CHEAP.hash(PASSWORD)}
            conn.execute(update(schema.accounts).where(mine).values(**hashed))

    def fresh(self, parent: str | None = None) -> messages.Create:
        """A file that Anna has just made in the shared directory."""
        op = self.owner.create(new_id(), parent or self.shared)
        self.owner.do(op)
        return op

    def fresh_directory(self) -> messages.Create:
        op = self.owner.create(new_id(), self.shared, kind="directory", content=None)
        self.owner.do(op)
        return op

    def trashed(self) -> str:
        op = self.fresh()
        self.owner.do(messages.Unlink(file=op.file, parent=op.parent, name=op.name))
        return op.file

    def trashed_directory(self) -> tuple[str, str]:
        """A directory that Anna has deleted, and a file that was deleted with it."""
        op, inside = self.fresh_directory(), new_id()
        self.owner.make("in it", op.file, file=inside)
        self.owner.do(messages.Unlink(file=inside, parent=op.file, name="in it"))
        self.owner.do(messages.Unlink(file=op.file, parent=op.parent, name=op.name))
        return op.file, inside

    def purged(self) -> str:
        """The id of a file that Anna has deleted for good."""
        file = self.trashed()
        wanted = account_messages.EmptyTrash(files=[file])
        self.owner.request("POST", "/v1/trash/empty", account_messages.EmptiedReply, wanted)
        return file

    def session(self) -> str:
        """A version of `file` that Anna is uploading."""
        version = new_id()
        self.owner.start(version, self.file, self.chunk)
        return version

    def link(self) -> tuple[str, str]:
        """The id of a link that Anna has made to the shared directory, and its secret."""
        path = f"/v1/files/{self.shared}/links"
        made = self.owner.request(
            "POST", path, account_messages.LinkMade, account_messages.MakeLink()
        )
        return made.link.id, made.url.rpartition("/")[2]

    def device(self) -> str:
        """One more device of Anna's."""
        with self.server.app.service.db.write() as conn:
            owner = accounts.find_account(conn, self.owner.me.account)
            assert owner is not None
            return tokens.new_device(conn, owner[0], "spare", time.time_ns())[1]


Make = Callable[[Scene, Client], Ask]


def _apply(op: messages.Op) -> Ask:
    keyed = messages.Keyed(key=new_id(), op=op)
    return Ask("/v1/changes/apply", messages.ApplyRequest(ops=[keyed]))


def _start(**fields: Any) -> Ask:
    upload = messages.StartUpload(**({"version": new_id(), "file": new_id()} | fields))
    return Ask("/v1/files", messages.StartUploads(uploads=[upload]))


def _empty() -> messages.Content:
    return messages.Content(version=new_id(), manifest=EMPTY)


def _create(scene: Scene, parent: str) -> Ask:
    return _apply(scene.owner.create(new_id(), parent))


def _create_at_home(file: str, by: Client) -> Ask:
    root = by.me.root if by.token else new_id()
    return _apply(by.create(new_id(), root, file=file))


def _login(scene: Scene, _by: Client) -> Ask:
    scene.set_password(scene.owner)
    wanted = messages.LoginRequest(account=scene.owner.me.account, password=PASSWORD, device="new")
    return Ask("/v1/login", wanted)


def _password(scene: Scene, by: Client) -> Ask:
    if by.token:
        scene.set_password(by)
    return Ask(
        "/v1/password", account_messages.ChangePassword(old=PASSWORD, new="another password")
    )


def _share(scene: Scene, _by: Client) -> Ask:
    invite = account_messages.Invite(scene.guest.me.account, "viewer")
    return Ask(f"/v1/files/{scene.fresh().file}/share", account_messages.ShareRequest([invite]))


def _unshare(scene: Scene, _by: Client) -> Ask:
    file = scene.fresh().file
    scene.grant(file, scene.guest, "viewer")
    return Ask(f"/v1/files/{file}/share/{scene.guest.me.account}")


def _leave(scene: Scene, by: Client) -> Ask:
    file = scene.fresh().file
    if by is scene.who["editor"] or by is scene.who["viewer"]:
        scene.grant(file, by, "viewer")
    name = by.me.account if by.token else "nobody"
    return Ask(f"/v1/files/{file}/share/{name}")


def _locate(scene: Scene, _by: Client) -> Ask:
    chunks = [scene.chunk.id]
    wanted = messages.LocateRequest(file=scene.file, version=scene.version, chunks=chunks)
    return Ask("/v1/chunks/locate", wanted)


def _locate_several(scene: Scene, _by: Client) -> Ask:
    whole = messages.WholeVersion(file=scene.file, version=scene.version)
    return Ask("/v1/chunks/locate-several", messages.LocateSeveral(versions=[whole]))


def _complete(scene: Scene, _by: Client) -> Ask:
    content = _empty()
    op = messages.Write(file=scene.fresh().file, content=content, mtime_ns=1)
    path = f"/v1/uploads/{content.version}/complete"
    return Ask(path, messages.CompleteUpload(key=new_id(), op=op))


def _write(scene: Scene, _by: Client) -> Ask:
    op = scene.fresh()
    return _apply(messages.Write(file=op.file, content=_empty(), mtime_ns=1))


def _link(scene: Scene, _by: Client) -> Ask:
    return _apply(messages.Link(file=scene.fresh().file, parent=scene.shared, name=new_id()))


def _link_deeper(scene: Scene, _by: Client) -> Ask:
    """To where somebody else comes too."""
    return _apply(messages.Link(file=scene.fresh().file, parent=scene.inner, name=new_id()))


def _link_hidden(scene: Scene, by: Client) -> Ask:
    """A file that the owner has moved out, when the sender had given it a name that stays."""
    op = scene.fresh()
    with contextlib.suppress(Failed):
        by.batch(messages.Link(file=op.file, parent=scene.shared, name=new_id()))
    move = {"new_parent": scene.owner.me.root, "new_name": new_id()}
    scene.owner.do(messages.Rename(file=op.file, parent=op.parent, name=op.name, **move))
    return Ask(f"/v1/files/{op.file}")


def _rename(scene: Scene, _by: Client) -> Ask:
    return _moved(scene, scene.shared)


def _move_deeper(scene: Scene, _by: Client) -> Ask:
    return _moved(scene, scene.inner)


def _move_out(scene: Scene, _by: Client) -> Ask:
    return _moved(scene, scene.owner.me.root)


def _moved(scene: Scene, to: str) -> Ask:
    op = scene.fresh()
    move = {"new_parent": to, "new_name": new_id()}
    return _apply(messages.Rename(file=op.file, parent=op.parent, name=op.name, **move))


def _replace(scene: Scene, _by: Client) -> Ask:
    op, old = scene.fresh(), scene.fresh()
    over = {"new_parent": old.parent, "new_name": old.name, "target": old.file}
    return _apply(messages.Replace(file=op.file, parent=op.parent, name=op.name, **over))


def _replace_deeper(scene: Scene, _by: Client) -> Ask:
    op, old = scene.fresh(), scene.fresh(scene.inner)
    over = {"new_parent": old.parent, "new_name": old.name, "target": old.file}
    return _apply(messages.Replace(file=op.file, parent=op.parent, name=op.name, **over))


def _retake(scene: Scene, _by: Client) -> Ask:
    op = scene.fresh()
    place = {"parent": op.parent, "name": op.name, "new_name": new_id()}
    return _apply(messages.Retake(file=op.file, backup=new_id(), **place))


def _exchange(scene: Scene, by: Client) -> Ask:
    return _exchanged(scene, scene.shared)


def _exchange_deeper(scene: Scene, _by: Client) -> Ask:
    return _exchanged(scene, scene.inner)


def _exchanged(scene: Scene, place: str) -> Ask:
    op, old = scene.fresh(), scene.fresh(place)
    other = {"other_parent": old.parent, "other_name": old.name, "other": old.file}
    return _apply(messages.Exchange(file=op.file, parent=op.parent, name=op.name, **other))


def _unlink(scene: Scene, _by: Client) -> Ask:
    op = scene.fresh()
    return _apply(messages.Unlink(file=op.file, parent=op.parent, name=op.name))


def _revert(scene: Scene, _by: Client) -> Ask:
    op = scene.fresh()
    assert op.content is not None
    scene.owner.do(messages.Write(file=op.file, content=_empty(), mtime_ns=1))
    old = {"version": op.content.version, "as_version": new_id()}
    return _apply(messages.Revert(file=op.file, mtime_ns=1, **old))


def _several(scene: Scene, _by: Client) -> Ask:
    return Ask("/v1/listings", messages.ListRequest(directories=[scene.shared, scene.inner]))


def _several_behind(scene: Scene, by: Client) -> Ask:
    """Other people's items are left out, silently: `test_listings` has what the answer holds."""
    own = by.me.root if by.token else new_id()
    return Ask("/v1/listings", messages.ListRequest(directories=[own, scene.shared]))


def _urls(scene: Scene, _by: Client) -> Ask:
    wanted = messages.UrlsRequest([scene.chunk.descriptor])
    return Ask(f"/v1/uploads/{scene.session()}/urls", wanted)


def _bundle(scene: Scene, _by: Client) -> Ask:
    """Of a chunk that Anna has announced."""
    return _bundled(scene.owner)


def _bundle_at_home(scene: Scene, by: Client) -> Ask:
    """Of a chunk that the sender has announced, if they may."""
    return _bundled(by if by.token and by.me.drive != scene.owner.me.drive else scene.owner)


def _bundled(by: Client) -> Ask:
    version, chunk = new_id(), make_chunk(noise(50, new_id()))
    by.start(version, new_id(), chunk)
    part = messages.BundlePart(version, chunk.id)
    return Ask("/v1/bundles", messages.StartBundle(parts=[part], sha256=bytes(32)))


def _fingerprint(scene: Scene, _by: Client) -> Ask:
    hexed = fingerprint(manifest_of(scene.chunk)).hex()
    return Ask(f"/v1/files/by-fingerprint/{hexed}")


def _of(kind: str, template: str) -> Make:
    """A request that only names the scene's `kind`."""
    return lambda scene, _by: Ask(template.format(getattr(scene, kind)))


def _same(path: str, message: Any = None, **query: Any) -> Make:
    return lambda _scene, _by: Ask(path, message, query)


ASKS: dict[str, Make] = {
    "POST /v1/login": _login,
    "GET /v1/me": _same("/v1/me"),
    "POST /v1/password": _password,
    "GET /v1/devices": _same("/v1/devices"),
    "POST /v1/devices": _same("/v1/devices", account_messages.MakeToken(name="one more")),
    "POST /v1/devices/rotate": _same("/v1/devices/rotate"),
    "DELETE /v1/devices/{device_id}": lambda scene, _: Ask(f"/v1/devices/{scene.device()}"),
    "POST /v1/files (new version)": lambda scene, _: _start(file=scene.file),
    "POST /v1/files (new file)": lambda scene, _: _start(parent=scene.shared),
    "POST /v1/files (own drive)": lambda _scene, _by: _start(),
    "GET /v1/files/{file_id}": _of("file", "/v1/files/{}"),
    "GET /v1/files/{file_id} (root)": lambda scene, _: Ask(f"/v1/files/{scene.owner.me.root}"),
    "GET /v1/files/{file_id} (in the trash)": lambda s, _: Ask(f"/v1/files/{s.trashed()}"),
    "GET /v1/files/{file_id} (moved out, a name left behind)": _link_hidden,
    "GET /v1/files/{file_id} (deleted for good)": lambda s, _: Ask(f"/v1/files/{s.purged()}"),
    "GET /v1/files/{file_id}/children": _of("shared", "/v1/files/{}/children"),
    "POST /v1/listings": _several,
    "POST /v1/listings (behind one's own)": _several_behind,
    "GET /v1/files/{file_id}/versions": _of("file", "/v1/files/{}/versions"),
    "GET /v1/files/{file_id}/changes": _of("file", "/v1/files/{}/changes"),
    "GET /v1/files/by-fingerprint/{fingerprint}": _fingerprint,
    "POST /v1/files/{file_id}/share": _share,
    "GET /v1/files/{file_id}/shares": _of("shared", "/v1/files/{}/shares"),
    "DELETE /v1/files/{file_id}/share/{account}": _unshare,
    "DELETE /v1/files/{file_id}/share/{account} (one's own)": _leave,
    "GET /v1/shared": _same("/v1/shared"),
    "POST /v1/files/{file_id}/links": lambda scene, _: Ask(
        f"/v1/files/{scene.shared}/links", account_messages.MakeLink()
    ),
    "GET /v1/files/{file_id}/links": _of("shared", "/v1/files/{}/links"),
    "GET /v1/links": _same("/v1/links"),
    "DELETE /v1/links/{link_id}": lambda scene, _: Ask(f"/v1/links/{scene.link()[0]}"),
    "GET /v1/trash": _same("/v1/trash"),
    "GET /v1/trash (of a directory)": lambda s, _: Ask("/v1/trash", None, {"parent": s.shared}),
    "GET /v1/trash (of a deleted id)": lambda s, _: Ask("/v1/trash", None, {"parent": s.purged()}),
    "GET /v1/trash (inside a deleted directory)": lambda s, _: Ask(
        "/v1/trash", None, {"parent": s.trashed_directory()[0], "name": "in it"}
    ),
    "GET /v1/trash (by id)": lambda s, _: Ask("/v1/trash", None, {"ending": s.trashed()[-8:]}),
    "POST /v1/trash/empty": lambda scene, _: Ask(
        "/v1/trash/empty", account_messages.EmptyTrash(files=[scene.trashed()])
    ),
    "POST /v1/bundles": _bundle,
    "POST /v1/bundles (own drive)": _bundle_at_home,
    "GET /v1/uploads/{version}": lambda scene, _: Ask(f"/v1/uploads/{scene.session()}"),
    "POST /v1/uploads/{version}/urls": _urls,
    "POST /v1/uploads/{version}/complete": _complete,
    "DELETE /v1/uploads/{version}": lambda scene, _: Ask(f"/v1/uploads/{scene.session()}"),
    "POST /v1/chunks/locate": _locate,
    "POST /v1/chunks/locate-several": _locate_several,
    "POST /v1/changes/apply (create)": lambda scene, _: _create(scene, scene.shared),
    "POST /v1/changes/apply (create outside)": lambda scene, _: _create(scene, scene.owner.me.root),
    "POST /v1/changes/apply (create deeper)": lambda scene, _: _create(scene, scene.inner),
    "POST /v1/changes/apply (create, of a deleted id)": lambda scene, _: _apply(
        scene.owner.create(new_id(), scene.shared, file=scene.purged())
    ),
    "POST /v1/changes/apply (create at home)": lambda _, by: _create_at_home(new_id(), by),
    "POST /v1/changes/apply (at home, of a deleted id)": lambda scene, by: _create_at_home(
        scene.purged(), by
    ),
    "POST /v1/changes/apply (at home, of a known id)": lambda scene, by: _create_at_home(
        scene.file, by
    ),
    "POST /v1/changes/apply (write)": _write,
    "POST /v1/changes/apply (link)": _link,
    "POST /v1/changes/apply (link deeper)": _link_deeper,
    "POST /v1/changes/apply (rename)": _rename,
    "POST /v1/changes/apply (rename deeper)": _move_deeper,
    "POST /v1/changes/apply (rename, out)": _move_out,
    "POST /v1/changes/apply (replace)": _replace,
    "POST /v1/changes/apply (replace deeper)": _replace_deeper,
    "POST /v1/changes/apply (retake)": _retake,
    "POST /v1/changes/apply (exchange)": _exchange,
    "POST /v1/changes/apply (exchange deeper)": _exchange_deeper,
    "POST /v1/changes/apply (unlink)": _unlink,
    "POST /v1/changes/apply (setattr)": lambda s, _: _apply(
        messages.SetAttr(file=s.file, mode=0o600)
    ),
    "POST /v1/changes/apply (setxattr)": lambda scene, _: _apply(
        messages.SetXattr(file=scene.file, name="user.x", value=b"x")
    ),
    "POST /v1/changes/apply (revert)": _revert,
    "POST /v1/changes/apply (recover)": lambda s, _: _apply(messages.Recover(file=s.trashed())),
    "POST /v1/changes/apply (recover, of a deleted directory)": lambda s, _: _apply(
        messages.Recover(file=s.trashed_directory()[1], parent=s.shared, name=new_id())
    ),
    "GET /v1/changes": _same("/v1/changes"),
    "GET /v1/changes/wait": _same("/v1/changes/wait", timeout=0),
    "WS /v1/changes/live": _same("/v1/changes/live"),
    "GET /s/{secret}": _of("secret", "/s/{}"),
    "GET /s/{secret}/{file_id}": lambda scene, _: Ask(f"/s/{scene.secret}/{scene.file}"),
    "GET /s/{secret}/{file_id} (outside)": lambda s, _: Ask(f"/s/{s.secret}/{s.beside}"),
    "GET /s/{secret}/{file_id}/download": lambda s, _: Ask(f"/s/{s.secret}/{s.file}/download"),
    "GET /s/{secret}/{file_id}/zip": lambda s, _: Ask(f"/s/{s.secret}/{s.shared}/zip"),
    "POST /s/{secret}": _of("secret", "/s/{}"),
    "GET /healthz": _same("/healthz"),
    "GET /readyz": _same("/readyz"),
    "GET /metrics": _same("/metrics"),
    "GET /schema": _same("/schema"),
    "GET /schema/openapi.json": _same("/schema/openapi.json"),
}
"""By line of the table: an endpoint, and in brackets which request to it."""

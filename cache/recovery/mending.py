"""Makes a whole state of the rows that were saved from a damaged database. Pure.

Knows: which rows need which, and what is safe to believe of a tree, a journal and layers with holes
in them. Must not know: how rows were found (`salvage`), files.

The rules:
- Dirty bytes come first. A layer whose node or name is lost comes back as a file of its own at the
  top of the drive (`recovered N`). A layer of which a range may lack has the ranges that its spool
  file has data in.
- Nothing is sent that may not be what somebody wrote: where the bytes of an operation are lost, it
  is refused as damaged, and the file reads as EIO.
- An operation that is lost, and whose file the server cannot know, is made anew under another id:
  the server may have the old one.
- The server has all the rest: no listing and no record is believed, so that all is asked for again.
- Numbers that may have been given are not given again.

Why one class: each step stands on the rows that the ones before have mended, once through.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cache.metadata.intervals import IntervalSet, Range
from cache.metadata.operations import Body
from cache.metadata.tree import HISTORY, LOCAL, ROOT
from cache.recovery.row_checks import Row
from cache.recovery.salvage import Found

LOST = "damaged: its bytes were lost with a part of the state database"
UNKNOWN = "damaged: which file it is of was lost; its bytes are a file at the top, recovered N"
AHEAD = "damaged: what was written last is in the file recovered {} at the top"
# Numbers that rows nobody can read may have had.
MARGIN = 1000


@dataclass
class SpoolFile:
    size: int
    data: Callable[[], list[Range]]  # where there are bytes, in whole pages
    copy: Callable[[int], None]  # to the file of a new layer


@dataclass
class Mended:
    rows: dict[str, list[Row]]
    highest: dict[str, int]
    recovered: list[str] = field(default_factory=list)  # names at the top of the drive
    lost: list[str] = field(default_factory=list)  # names of files whose bytes are lost
    copies: list[tuple[int, int]] = field(default_factory=list)  # spool files, from and to


def mend(
    found: Found, spool: dict[int, SpoolFile], now_ns: int, new_id: Callable[[], str]
) -> Mended | None:
    """None when it is not known whose drive it was."""
    work = _Mending(found, spool, now_ns, new_id)
    return work.mend() if work.identify() else None


class _Mending:
    def __init__(
        self, found: Found, spool: dict[int, SpoolFile], now_ns: int, new_id: Callable[[], str]
    ) -> None:
        rows, self._torn = found.rows, found.torn
        self._found, self._spool, self._now, self._new_id = found, spool, now_ns, new_id
        self._meta = {row["key"]: row["value"] for row in reversed(rows["meta"])}
        self._nodes = {row["ino"]: row for row in reversed(rows["node"])}
        self._layers = {row["id"]: row for row in reversed(rows["layer"])}
        self._ops = sorted({r["seq"]: r for r in reversed(rows["op"])}.values(), key=_seq)
        self._bodies = {op["seq"]: _body(op) for op in self._ops}
        self._extents: dict[int, IntervalSet] = {}
        self._entries: dict[tuple[int, str], Row] = {}
        self._names: dict[int, list[Row]] = defaultdict(list)
        self._first: list[Row] = []  # operations to be sent before all others
        self._highest = {name: self._highest_of(name) for name in ("node", "entry", "layer", "op")}
        self._done = Mended({}, self._highest)

    def _highest_of(self, name: str) -> int:
        """The largest number that anything mentions."""
        rows = self._found.rows
        key = {"node": "ino", "entry": "cookie", "layer": "id", "op": "seq"}[name]
        seen = [row[key] for row in rows[name]]
        if name == "node":
            seen += [row["ino"] for kind in ("entry", "op", "layer", "xattr") for row in rows[kind]]
        if name == "layer":
            seen += [*self._spool, *(row["layer"] for row in rows["extent"])]
        known = self._found.highest.get(name)
        return int(max([*seen, known or 0])) + (0 if known is not None else MARGIN)

    def _next(self, name: str) -> int:
        self._highest[name] += 1
        return self._highest[name]

    def mend(self) -> Mended:
        self._mend_nodes()
        self._mend_entries()
        self._collect_extents()
        self._remake_nodes()
        homeless = [*self._mend_layers(), *self._ahead_of_the_log()]
        self._find_names()
        self._mend_journal()
        for layer in homeless:
            self._recover(layer)
        self._mend_sizes()
        self._distrust()
        self._done.rows = self._rows()
        return self._done

    # --- whose drive it is ------------------------------------------------------------------------

    def identify(self) -> bool:
        top = self._nodes.get(ROOT)
        drive = self._meta.get("drive") or (top and top["drive"])
        root = self._meta.get("root") or (top and top["file"])
        if not drive or not root:
            return False
        if top is None:
            top = self._nodes[ROOT] = self._node(ROOT, str(root), "directory", 0o755)
        top |= {"file": root, "drive": drive, "kind": "directory", "live": 1}
        self._meta |= {"drive": drive, "root": root}
        for key in [item for item in self._meta if item in ("cursor", "seq") or item[:4] == "seq:"]:
            del self._meta[key]  # the feed starts over, and tells everything again
        return True

    def _node(self, ino: int, file: str, kind: str, mode: int) -> Row:
        top = self._nodes.get(ROOT, {})
        times = dict.fromkeys(("mtime_ns", "ctime_ns", "atime_ns"), self._now)
        nothing: Row = dict.fromkeys(("target", "version", "base_file"))
        zero: Row = dict.fromkeys(("rdev", "size", "base_size", "subdirs", "rev"), 0)
        owner: Row = {key: top.get(key, 0) for key in ("uid", "gid")}
        made: Row = {"ino": ino, "file": file, "kind": kind, "mode": mode, "live": 1, "links": 1}
        made |= {"drive": self._meta.get("drive", ""), "listed": 0 if kind == "directory" else None}
        return made | times | nothing | zero | owner

    # --- nodes and names --------------------------------------------------------------------------

    def _mend_nodes(self) -> None:
        """At most one live node of a file: the one with a name, else the newest."""
        named = {row["ino"] for row in self._found.rows["entry"]}
        best: dict[str, Row] = {}
        for node in self._nodes.values():
            node.setdefault("drive", self._meta["drive"])
            node.setdefault("made_under", b"" if node["kind"] == "symlink" else None)
            other = best.get(node["file"])
            if node["live"] and (other is None or _rank(node, named) > _rank(other, named)):
                best[node["file"]] = node
        for node in self._nodes.values():
            node["live"] = int(best.get(node["file"]) is node)
        self._live = best

    def _mend_entries(self) -> None:
        """Names of live nodes in live directories; a directory has one, and none leads round."""
        rows = sorted(self._found.rows["entry"], key=lambda row: row["cookie"], reverse=True)
        for row in rows:
            self._add_entry(row)
        for ino, node in self._nodes.items():
            if node["kind"] == "directory" and self._leads_round(ino):
                for row in self._names.pop(ino):
                    del self._entries[row["parent"], row["name"]]

    def _add_entry(self, row: Row) -> bool:
        parent, node = self._nodes.get(row["parent"]), self._nodes.get(row["ino"])
        if parent is None or node is None or not (parent["live"] and node["live"]):
            return False
        again = node["kind"] == "directory" and self._names.get(row["ino"])
        place = (row["parent"], row["name"])
        if parent["kind"] != "directory" or row["ino"] == ROOT or again or place in self._entries:
            return False
        self._entries[place] = row
        self._names[row["ino"]].append(row)
        return True

    def _leads_round(self, ino: int) -> bool:
        seen = {ino}
        while names := self._names.get(ino):
            ino = names[0]["parent"]
            if ino in seen:
                return True
            seen.add(ino)
        return False

    def _make_entry(self, parent: int, name: str, ino: int) -> bool:
        cookie = self._next("entry")
        row = {"cookie": cookie, "parent": parent, "name": name, "ino": ino, "rev": 0}
        if not self._add_entry(row):
            return False
        if self._leads_round(ino):
            self._names[ino].remove(row)
            del self._entries[parent, name]
            return False
        return True

    def _find_names(self) -> None:
        """Give nodes that lost their name and have operations the name that those gave them."""
        places: dict[tuple[str, str], str] = {}
        for op in self._ops:
            body = self._bodies[op["seq"]]
            old, new = (body.parent, body.name), (body.new_parent, body.new_name)
            if op["kind"] in ("create", "link"):
                places[old] = op["file"]
            elif op["kind"] in ("unlink", "rename", "replace"):
                places.pop(old, None)
            if op["kind"] == "rename":
                places[new] = op["file"]
            elif op["kind"] == "replace":
                places[new] = body.other
            elif op["kind"] == "retake" or op["kind"] == "exchange":
                places |= {old: body.other, new: op["file"]}
        for (directory, name), file in places.items():
            node, parent = self._live.get(file), self._live.get(directory)
            if node and parent and not self._names.get(node["ino"]):
                self._make_entry(parent["ino"], name, node["ino"])

    def _remake_nodes(self) -> None:
        """Make nodes anew that were made here, or written as a whole, and of which only the
        operation is left that says so. The name of what the server knows comes back with its
        directory's listing."""
        stacks: dict[int, list[Row]] = defaultdict(list)
        for number in sorted(self._layers):
            stacks[self._layers[number]["ino"]].append(self._layers[number])
        for op in self._ops:
            body, ino = self._bodies[op["seq"]], op["ino"]
            if ino in self._nodes or op["file"] in self._live:
                continue
            stack = stacks.get(ino, [])
            if op["kind"] == "create" and body.directory:
                self._remake(op, "directory", 0o755, 0)
            elif op["kind"] == "create" and body.regular and (stack or "layer" not in self._torn):
                self._remake(op, "file", 0o644, stack[-1]["size"] if stack else 0)
            elif op["kind"] == "write" and stack and self._is_whole(stack[0]):
                self._remake(op, "file", 0o644, stack[-1]["size"])
            elif op["kind"] in ("create", "write"):
                op |= {"refused": UNKNOWN, "sent": 0}

    def _remake(self, op: Row, kind: str, mode: int, size: int) -> None:
        node = self._node(op["ino"], op["file"], kind, mode)
        parent = self._live.get(self._bodies[op["seq"]].parent)
        node |= {"mtime_ns": op["made_ns"], "size": size}
        node["drive"] = parent["drive"] if parent else node["drive"]
        self._nodes[op["ino"]] = self._live[op["file"]] = node

    def _is_whole(self, layer: Row) -> bool:
        """True if it can be read without what is below it."""
        return self._extents[layer["id"]].covers(0, layer["below"])

    # --- dirty bytes ------------------------------------------------------------------------------

    def _collect_extents(self) -> None:
        for row in self._found.rows["extent"]:
            self._extents.setdefault(row["layer"], IntervalSet()).add(row["start"], row["stop"])
        for number, layer in self._layers.items():
            ranges = self._extents.setdefault(number, IntervalSet())
            file = self._spool.get(number)
            if file and any(low <= number <= high for low, high in self._found.doubtful):
                for start, stop in file.data():
                    ranges.add(start, stop)
            ranges.cut(layer["size"])
            layer.setdefault("safe", layer["size"])
            layer.setdefault("instead", None)
        if "layer" in self._torn:
            for number in self._spool.keys() - self._layers.keys():
                self._adopt(number, self._spool[number])

    def _adopt(self, number: int, file: SpoolFile) -> None:
        """A spool file without a layer."""
        ranges = self._extents.setdefault(number, IntervalSet())
        if not ranges or self._found.doubtful or self._found.is_cut:
            for start, stop in file.data():
                ranges.add(start, min(stop, file.size))
        size = max((stop for _, stop in ranges), default=0)
        if size:
            row: Row = {"id": number, "ino": -1, "below": 0, "size": size, "safe": size}
            row |= dict.fromkeys(("version", "average", "instead"))
            self._layers[number] = row | self._owner_of(number)

    def _owner_of(self, number: int) -> Row:
        """Owner, size and version of a layer, where the index says whose it is and that is all
        there is to know: the file's only one, and every byte of the file is in it. Empty where it
        does not."""
        ino = self._found.owners.get(number, 0)
        node, inodes = self._nodes.get(ino), list(self._found.owners.values())
        if node is None or inodes.count(ino) != 1 or node["kind"] != "file":
            return {}
        if not self._extents[number].covers(0, node["size"]):
            return {}
        self._extents[number].cut(node["size"])
        versions = [op["version"] for op in self._ops if op["ino"] == ino and op["version"]]
        return {"ino": ino, "size": node["size"], "version": versions[0] if versions else None}

    def _mend_layers(self) -> Iterator[Row]:
        """Yields layers that lie over nothing; drops those that nobody needs."""
        instead = {layer["instead"] for layer in self._layers.values()}
        stacks: dict[int, list[Row]] = defaultdict(list)
        for number, layer in sorted(self._layers.items(), reverse=True):
            if layer["ino"] == 0:
                if number not in instead:
                    del self._layers[number]
                continue
            node = self._nodes.get(layer["ino"])
            stack = stacks[layer["ino"]]
            is_odd = len(stack) > 1 or (stack and (stack[0]["version"] or not layer["version"]))
            if node is None or node["kind"] != "file" or is_odd:
                yield layer
            else:
                stack.append(layer)
        for layer in self._layers.values():
            if layer["instead"] and layer["instead"] not in self._layers:
                layer["instead"] = None
        self._stacks = stacks

    def _ahead_of_the_log(self) -> Iterator[Row]:
        """The end of the log is gone: a spool file that holds more than its layer knows of was
        written after that. All that is in it comes back beside the file, which is not sent as it
        was in the middle of being written."""
        if not self._found.is_cut:
            return
        for number, layer in list(self._layers.items()):
            file = self._spool.get(number)
            if file is None or layer["ino"] <= 0 or file.size <= layer["size"]:
                continue
            fresh = self._next("layer")
            self._done.copies.append((number, fresh))
            self._adopt(fresh, file)
            for op in self._ops:
                if op["ino"] == layer["ino"] and op["kind"] in ("create", "write"):
                    op |= {"refused": AHEAD.format(fresh), "sent": 0}
            if fresh in self._layers:
                yield self._layers[fresh]

    def _recover(self, layer: Row) -> None:
        """A file of its own at the top of the drive."""
        number, ino = layer["id"], self._next("node")
        name = f"recovered {number}" + ("" if self._is_whole(layer) else " (incomplete)")
        while (ROOT, name) in self._entries:
            name += "'"
        layer |= {"ino": ino, "version": None, "instead": None, "below": 0}
        node = self._node(ino, self._new_id(), "file", 0o600)
        self._nodes[ino] = self._live[node["file"]] = node
        node["size"] = layer["size"]
        self._stacks[ino] = [layer]
        self._make_entry(ROOT, name, ino)
        self._ops.append(self._create(node, ROOT, name))
        self._done.recovered.append(name)

    # --- the journal ------------------------------------------------------------------------------

    def _op(self, kind: str, node: Row, body: Body, version: str | None = None) -> Row:
        row: Row = {"seq": self._next("op"), "key": self._new_id(), "kind": kind}
        row |= {"ino": node["ino"], "file": node["file"], "version": version, "sent": 0}
        self._bodies[row["seq"]] = body
        return row | {"refused": None, "made_ns": self._now, "body": b""}

    def _create(self, node: Row, parent: int, name: str) -> Row:
        flags: Any = {kind: node["kind"] == kind for kind in ("directory",)}
        body = Body(parent=self._nodes[parent]["file"], name=name, **flags)
        body.regular = node["kind"] == "file"
        return self._op("create", node, body)

    def _mend_journal(self) -> None:
        if "op" in self._torn:
            for ino in list(self._nodes):
                self._announce(ino)
        for ino, stack in self._stacks.items():
            if stack and self._nodes[ino]["live"]:
                self._mend_content(self._nodes[ino], stack)

    def _is_unknown(self, node: Row) -> bool:
        """True if it was made here, and nothing is left that would tell the server."""
        if not node["live"] or node["ino"] == ROOT or node["rev"] or node["version"]:
            return False
        if node["drive"] in (LOCAL, HISTORY) or (node["kind"], node["listed"]) == (
            "directory",
            None,
        ):
            return False
        return not any(op["kind"] == "create" and op["file"] == node["file"] for op in self._ops)

    def _announce(self, ino: int) -> None:
        """The creation of a node of which the server has not heard, and those above it first."""
        node, names = self._nodes[ino], self._names.get(ino)
        if not self._is_unknown(node) or any(op["ino"] == ino for op in self._first):
            return
        fresh, old = self._new_id(), node["file"]
        node["file"] = fresh
        self._live[fresh] = self._live.pop(old)
        for op in self._ops:
            body = self._bodies[op["seq"]]
            op["file"] = fresh if op["file"] == old else op["file"]
            for key in ("parent", "new_parent", "other"):
                if getattr(body, key) == old:
                    setattr(body, key, fresh)
        if not names:
            name = f"recovered {ino}"
            self._make_entry(ROOT, name, ino)
            self._done.recovered.append(name)
        parent, name = self._names[ino][0]["parent"], self._names[ino][0]["name"]
        self._announce(parent)
        self._first.append(self._create(node, parent, name))

    def _mend_content(self, node: Row, stack: list[Row]) -> None:
        """Each layer has an operation that will carry it."""
        ops = [op for op in (*self._first, *self._ops) if op["ino"] == node["ino"]]
        carrying = [op for op in ops if op["kind"] == "write" or self._bodies[op["seq"]].regular]
        carrying = [op for op in carrying if op["kind"] in ("write", "create")]
        for layer in reversed(stack):
            if any(op["version"] == layer["version"] for op in carrying):
                continue
            op = next((item for item in carrying if item["version"] is None), None)
            if op is None:
                op = self._op("write", node, Body())
                self._ops.append(op)
            else:
                carrying.remove(op)
            if layer["version"]:  # the server may know that id for something else
                op["version"] = layer["version"]
                self._bodies[op["seq"]].renew = True

    def _mend_sizes(self) -> None:
        """A file is as long as its top layer says, else as its version; where there was a layer
        that is lost, it reads as EIO."""
        carried = {op["ino"] for op in self._ops if op["kind"] == "write"}
        carried |= {o["ino"] for o in self._ops if self._bodies[o["seq"]].regular}
        for ino, node in list(self._nodes.items()):
            if node["kind"] != "file":
                continue
            if node["version"] is None or node["base_file"] is None:
                node |= {"version": None, "base_file": None, "base_size": 0}
            stack = self._stacks.get(ino)
            if stack:
                below = node["base_size"]
                for layer in reversed(stack):
                    layer["below"] = min(layer["below"], below)
                    below = layer["size"]
                node["size"] = below
            elif ino in carried and (node["size"] > node["base_size"] or "layer" in self._torn):
                self._mark_lost(node)
            else:
                node["size"] = node["base_size"]

    def _mark_lost(self, node: Row) -> None:
        if node["size"] == 0:
            return
        number = self._next("layer")
        row = {"id": number, "ino": node["ino"], "below": 0, "size": node["size"]}
        self._layers[number] = row | {"version": None, "average": None, "safe": 0, "instead": None}
        self._extents[number] = IntervalSet([(0, node["size"])])
        for op in self._ops:
            if op["ino"] == node["ino"] and (op["kind"] == "write" or op["kind"] == "create"):
                op |= {"refused": LOST, "version": None, "sent": 0}
        self._done.lost += [row["name"] for row in self._names.get(node["ino"], [])]

    # --- the server's word ------------------------------------------------------------------------

    def _distrust(self) -> None:
        for node in self._nodes.values():
            if node["drive"] == LOCAL or node["drive"] == HISTORY:
                continue
            if node["rev"] > 0 or (node["listed"] or 0) > 0 or node["ino"] == ROOT:
                node |= {"rev": 0, "listed": None}
        for node in self._nodes.values():
            node["subdirs"] = 0
        for (parent, _), row in self._entries.items():
            row["rev"] = 0
            self._nodes[parent]["subdirs"] += self._nodes[row["ino"]]["kind"] == "directory"

    def _rows(self) -> dict[str, list[Row]]:
        rows = self._found.rows
        ranges = [
            {"layer": number, "start": start, "stop": stop}
            for number in self._layers
            for start, stop in self._extents[number]
        ]
        return {
            "meta": [{"key": key, "value": value} for key, value in self._meta.items()],
            "node": list(self._nodes.values()),
            "share": rows["share"],
            "entry": list(self._entries.values()),
            "xattr": [row for row in rows["xattr"] if row["ino"] in self._nodes],
            "layer": list(self._layers.values()),
            "extent": ranges,
            "unsettled": [row for row in rows["unsettled"] if row["layer"] in self._layers],
            "manifest": rows["manifest"],
            "op": self._ordered(),
            "pin": rows["pin"],
            "shadow": rows["shadow"],
        }

    def _ordered(self) -> list[Row]:
        """In the order in which they are to be sent: under new numbers if some come first."""
        ops = [*self._first, *self._ops]
        for op in ops:
            op["body"] = msgspec.msgpack.encode(self._bodies[op["seq"]])
        if self._first:
            for op in ops:
                op["seq"] = self._next("op")
        return ops


def _seq(op: Row) -> int:
    number: int = op["seq"]
    return number


def _body(op: Row) -> Body:
    return msgspec.msgpack.decode(op["body"], type=Body)


def _rank(node: Row, named: set[int]) -> tuple[bool, int]:
    return node["ino"] in named, node["ino"]

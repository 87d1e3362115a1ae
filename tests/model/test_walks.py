"""The same two devices, on long random walks: denser than what a search for small examples tries.

`NEARLINE_MODEL_WALKS` sets how many; a walk is reproduced by its number.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from tests.model.test_devices import PATHS, Devices

STEPS = 60
WALKS = int(os.environ.get("NEARLINE_MODEL_WALKS", "15"))
WEIGHTS = {
    "save": 6,
    "patch": 4,
    "truncate": 2,
    "save_by_rename": 5,
    "open": 2,
    "write_through_handle": 2,
    "release": 1,
    "rename": 7,
    "exchange": 2,
    "remove": 5,
    "make": 5,
    "link": 3,
    "set_attributes": 3,
    "set_xattr": 2,
    "pull": 3,
    "look_around": 3,
    "flush": 4,
    "die_while_flushing": 1,
    "partition": 4,
    "crash": 1,
}


def arguments(step: str, dice: random.Random) -> dict[str, Any]:
    """What to call a step with; each argument is named as the rule names it."""
    path = dice.choice(PATHS)
    match step:
        case "save":
            more = {"path": path, "size": dice.choice((0, 10, 10, 300_000))}
        case "patch":
            more = {"path": path, "at": dice.randrange(40)}
        case "truncate":
            more = {"path": path, "size": dice.randrange(20)}
        case "save_by_rename" | "open" | "remove":
            more = {"path": path}
        case "rename" | "link":
            more = {"old": path, "new": dice.choice(PATHS)}
        case "exchange":
            more = {"one": path, "other": dice.choice(PATHS)}
        case "make":
            more = {"path": path, "kind": dice.choice(("directory", "directory", "symlink"))}
        case "set_attributes":
            name = dice.choice(("mode", "uid", "mtime_ns"))
            more = {"path": path, "changes": {name: dice.randrange(0o777)}}
        case "set_xattr":
            more = {"path": path, "value": dice.choice((None, b"1", b"2"))}
        case "flush":
            more = {"lost": dice.choice((0, 0, 1, 2))}
        case "die_while_flushing":
            more = {"lost": dice.choice((0, 1))}
        case "partition":
            more = {"up": dice.random() < 0.5}
        case _:
            more = {}
    return {"who": dice.randrange(2)} | more


@pytest.mark.parametrize("number", range(WALKS))
def test_a_walk_ends_with_equal_trees_and_nothing_lost(number: int) -> None:
    dice, devices = random.Random(number), Devices()
    try:
        devices.start()
        for step in dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS):
            getattr(devices, step)(**arguments(step, dice))
            devices.the_tree_is_a_tree()
        devices.settle_down()
    finally:
        devices.close()

"""The same two devices, on long random walks: denser than what a search for small examples tries.

`NEARLINE_MODEL_WALKS` sets how many, `NEARLINE_MODEL_FIRST` from which number on; a walk is
reproduced by its number. In every other walk each person mostly keeps to places of their own, so
that there is something to say about what only one of them has changed.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from tests.amounts import amount
from tests.model import plans
from tests.model.plans import PATHS, TERRITORIES
from tests.model.test_devices import Devices

STEPS = 60
WALKS = amount(15, 1, "NEARLINE_MODEL_WALKS")
FIRST = int(os.environ.get("NEARLINE_MODEL_FIRST", "0"))
WEIGHTS = plans.WEIGHTS | {
    "open": 2,
    "write_through_handle": 2,
    "chmod_through_handle": 1,
    "release": 1,
    "pull": 3,
    "hear": 2,
    "look_around": 3,
    "flush": 4,
    "die_while_flushing": 1,
    "partition": 4,
    "crash": 1,
}
TOGETHER = {"all_at_once": 5, "agree": 2}
KEEP_COPIES = ((False, False), (True, False), (True, True), (False, True), (True, True))
ABROAD = 0.1  # how often somebody is seen in the other's places


def arguments(step: str, dice: random.Random, choices: tuple[str, ...] = PATHS) -> dict[str, Any]:
    """The arguments of a step, but for `who`; each is named as the rule names it."""
    match step:
        case "save":
            return {"path": dice.choice(choices), "size": dice.choice((0, 10, 10, 300_000))}
        case "flush":
            return {"lost": dice.choice((0, 0, 1, 2))}
        case "die_while_flushing":
            return {"lost": dice.choice((0, 1))}
        case "partition":
            return {"up": dice.random() < 0.5}
        case "hear":
            return {"nth": dice.randrange(4), "again": dice.random() < 0.3}
        case "chmod_through_handle":
            return {"mode": dice.randrange(0o777)}
        case "open":
            return {"path": dice.choice(choices)}
        case _ if step in plans.WEIGHTS:
            return plans.arguments(step, dice, choices)
    return {}


def walk(devices: Devices, dice: random.Random, *, apart: bool) -> None:
    weights = WEIGHTS | TOGETHER
    for step in dice.choices(list(weights), list(weights.values()), k=STEPS):
        who = dice.randrange(2)
        at_home = apart and dice.random() > ABROAD
        match step:
            case "agree":
                devices.agree()
            case "all_at_once":
                devices.all_at_once(dice.randrange(1 << 32), apart=at_home)
            case _:
                more = arguments(step, dice, TERRITORIES[who] if at_home else PATHS)
                getattr(devices, step)(who=who, **more)
        devices.the_tree_is_a_tree()
    devices.synchronize()


@pytest.mark.parametrize("number", range(FIRST, FIRST + WALKS))
def test_a_walk_ends_with_equal_trees_and_nothing_lost(number: int) -> None:
    devices = Devices(KEEP_COPIES[number % len(KEEP_COPIES)])
    try:
        devices.start()
        walk(devices, random.Random(number), apart=number % 2 == 1)
    finally:
        devices.close()

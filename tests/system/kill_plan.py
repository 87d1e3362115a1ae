"""When who is killed. Pure: everything random comes from the seed, and the number of the round."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Victim = Literal["mount", "server"]
Return = Literal["before the mount", "after the mount", "after the check"]


@dataclass(frozen=True)
class Plan:
    """One round. Times are in seconds: `after` the writers began, `gap` between two victims,
    `linger` that they go on when only the server died. `again` are moments at which the mount is
    killed once more: 0 is when its restart begins, 1 is about when it is usable, later ones find it
    replaying. `server_again` is the same for the server, which comes back `server_back`. `by_hand`:
    a dead mount is taken away with umount(8)."""

    victims: tuple[Victim, ...]
    after: float
    gap: float
    linger: float
    again: tuple[float, ...]
    server_again: tuple[float, ...]
    server_back: Return
    by_hand: bool


def plan_of(seed: int, number: int) -> Plan:
    rng = random.Random(f"{seed} {number}")
    only_mount: tuple[Victim, ...] = ("mount",)
    only_server: tuple[Victim, ...] = ("server",)
    both: list[tuple[Victim, ...]] = [("mount", "server"), ("server", "mount")]
    returns: list[Return] = ["before the mount", "after the mount", "after the check"]
    return Plan(
        victims=rng.choice([only_mount] * 5 + [only_server] * 2 + both),
        after=rng.choice([rng.uniform(0.0, 0.3), rng.uniform(0.0, 1.5)]),
        gap=rng.choice([0.0, rng.uniform(0.0, 0.3)]),
        linger=rng.uniform(0.0, 0.5),
        again=tuple(rng.uniform(0.0, 2.0) for _time in range(rng.choice([0, 0, 0, 0, 1, 1, 2]))),
        server_again=(rng.uniform(0.1, 1.5),) if rng.random() < 0.3 else (),
        server_back=rng.choice(returns),
        by_hand=rng.random() < 0.7,
    )

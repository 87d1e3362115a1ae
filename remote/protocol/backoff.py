"""The time to wait before trying again.

Knows: one formula. Must not know: the clock, what failed, how anybody waits (randomness comes in as
an argument, the wait goes out as seconds).

Capped exponential backoff with full jitter (Marc Brooker, "Exponential Backoff and Jitter", AWS
Architecture Blog, 2015): waiting a uniformly random part of the window keeps many clients that
failed at the same moment from coming back at the same moment.
"""

from __future__ import annotations

BASE_SECONDS = 0.5
CAP_SECONDS = 60.0

# 2**1023 is the largest power of two that is a float.
_MAX_EXPONENT = 1023


def window(attempt: int, *, base: float = BASE_SECONDS, cap: float = CAP_SECONDS) -> float:
    """The longest wait, in seconds, after failure number `attempt` (the first is 0)."""
    if attempt < 0:
        raise ValueError(f"attempts are counted from 0, not {attempt}")
    return min(cap, base * 2.0 ** min(attempt, _MAX_EXPONENT))


def delay(
    attempt: int,
    random: float,
    *,
    base: float = BASE_SECONDS,
    cap: float = CAP_SECONDS,
    retry_after: float | None = None,
) -> float:
    """Seconds to wait after failure number `attempt`, given `random` in [0, 1).

    When the server said `retry_after` seconds, never sooner; the jitter is then added, so that
    those it told the same do not return together. The sum is not capped: the server knows why.
    """
    jittered = random * window(attempt, base=base, cap=cap)
    return jittered if retry_after is None else max(0.0, retry_after) + jittered

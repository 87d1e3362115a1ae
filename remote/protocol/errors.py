"""Everything that can go wrong on the wire, as one tree and one table.

    NearlineError
    ├── Refused           the server answered with a Problem (it carries one)
    ├── Unreachable       no answer: network down, DNS, TLS, timeout
    │   ├── Silent        nobody there says anything: timeout, no route, no such name
    │   └── Busy          an answer without a Problem that says: not now (429, 5xx)
    ├── UrlRefused        blob store or edge refused a signed URL: sign again and go on
    ├── CorruptContent    bytes that do not match their hash, again and again
    ├── ProtocolError     an answer that is not of this protocol
    └── NotKept           an answer that came, and could not be stored here (full disk)

Knows: every `Problem`'s HTTP status, errno, retry class and how long a read is patient with it
(`RULES`). Must not know: who raises, who retries, how waits grow (`backoff`, `patience`).
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct


class Retry(enum.Enum):
    """Advice to the sender of a refused request."""

    NEVER = "never"  # a person has to do something first; keep the bytes
    LATER = "later"  # the same request may succeed after a wait
    REPAIR = "repair"  # the request must be made anew from fresh state, then sent again


class Problem(Struct, frozen=True, tag_field="type", kw_only=True):
    """A tagged refusal. `message` says what to do, in one line."""

    message: str = ""


class BadRequest(Problem, frozen=True, kw_only=True, tag="bad_request"): ...


class Unauthorized(Problem, frozen=True, kw_only=True, tag="unauthorized"): ...


class Forbidden(Problem, frozen=True, kw_only=True, tag="forbidden"): ...


class NotFound(Problem, frozen=True, kw_only=True, tag="not_found"): ...


class Exists(Problem, frozen=True, kw_only=True, tag="exists"):
    """It is taken already: the name; or the id that the sender chose for the file (by one that is,
    or ever was) or for the version. Another id is as good."""

    taken: Literal["name", "file", "version"] = "name"


class NotADirectory(Problem, frozen=True, kw_only=True, tag="not_a_directory"): ...


class IsADirectory(Problem, frozen=True, kw_only=True, tag="is_a_directory"): ...


class NotEmpty(Problem, frozen=True, kw_only=True, tag="not_empty"): ...


class WouldLoop(Problem, frozen=True, kw_only=True, tag="would_loop"): ...


class BadName(Problem, frozen=True, kw_only=True, tag="bad_name"): ...


class NameTooLong(Problem, frozen=True, kw_only=True, tag="name_too_long"): ...


class TooManyLinks(Problem, frozen=True, kw_only=True, tag="too_many_links"): ...


class OtherReach(Problem, frozen=True, kw_only=True, tag="other_reach"):
    """The new name would change who reaches the file, which is for the owner of its drive alone to
    decide. A copy is a file of its own: that is what `mv` makes of EXDEV."""


class Stale(Problem, frozen=True, kw_only=True, tag="stale"):
    """A precondition no longer holds: the name now means another file, or the version moved on."""


class ChunksMissing(Problem, frozen=True, kw_only=True, tag="chunks_missing"):
    """The version names chunks that the drive does not have; upload these and apply again."""

    chunks: list[bytes]


class UploadUnknown(Problem, frozen=True, kw_only=True, tag="upload_unknown"):
    """No such upload session (expired, committed or never begun): begin it again."""


class BadUpload(Problem, frozen=True, kw_only=True, tag="bad_upload"):
    """A stored object, descriptor or manifest contradicts itself or its id."""


class QuotaExceeded(Problem, frozen=True, kw_only=True, tag="quota_exceeded"):
    """The drive is full. Room may be made at any time, so it is asked again by itself."""


class TooLarge(Problem, frozen=True, kw_only=True, tag="too_large"): ...


class RateLimited(Problem, frozen=True, kw_only=True, tag="rate_limited"):
    retry_after_seconds: float = 1.0


class Unavailable(Problem, frozen=True, kw_only=True, tag="unavailable"): ...


AnyProblem = (
    BadRequest
    | Unauthorized
    | Forbidden
    | NotFound
    | Exists
    | NotADirectory
    | IsADirectory
    | NotEmpty
    | WouldLoop
    | BadName
    | NameTooLong
    | TooManyLinks
    | OtherReach
    | Stale
    | ChunksMissing
    | UploadUnknown
    | BadUpload
    | QuotaExceeded
    | TooLarge
    | RateLimited
    | Unavailable
)


# A read that is told "not now" waits so many seconds at most before it fails: what is over in a
# moment is nothing that an application should hear of. Who names a time to come back will be there.
ANNOUNCED_SECONDS = 30.0
NOT_NOW_SECONDS = 10.0

# Whoever names a longer wait is asked before: it may be a mistake, and uploads never give up.
LONGEST_RETRY_AFTER = 300.0


@dataclass(frozen=True)
class Rule:
    """`patience`: for how many seconds a read on an application's path asks again by itself."""

    status: int
    errno: int
    retry: Retry
    patience: float = 0.0


RULES: dict[type[Problem], Rule] = {
    BadRequest: Rule(400, errno.EINVAL, Retry.NEVER),
    Unauthorized: Rule(401, errno.EACCES, Retry.LATER),
    Forbidden: Rule(403, errno.EACCES, Retry.NEVER),
    NotFound: Rule(404, errno.ENOENT, Retry.NEVER),
    Exists: Rule(409, errno.EEXIST, Retry.NEVER),
    NotADirectory: Rule(409, errno.ENOTDIR, Retry.NEVER),
    IsADirectory: Rule(409, errno.EISDIR, Retry.NEVER),
    NotEmpty: Rule(409, errno.ENOTEMPTY, Retry.NEVER),
    WouldLoop: Rule(409, errno.EINVAL, Retry.NEVER),
    BadName: Rule(422, errno.EILSEQ, Retry.NEVER),
    NameTooLong: Rule(422, errno.ENAMETOOLONG, Retry.NEVER),
    TooManyLinks: Rule(409, errno.EMLINK, Retry.NEVER),
    OtherReach: Rule(409, errno.EXDEV, Retry.NEVER),
    Stale: Rule(412, errno.ESTALE, Retry.NEVER),
    ChunksMissing: Rule(409, errno.EIO, Retry.REPAIR),
    UploadUnknown: Rule(404, errno.EIO, Retry.REPAIR),
    BadUpload: Rule(422, errno.EIO, Retry.REPAIR),
    QuotaExceeded: Rule(507, errno.EDQUOT, Retry.LATER),
    TooLarge: Rule(413, errno.EFBIG, Retry.NEVER),
    RateLimited: Rule(429, errno.EBUSY, Retry.LATER, ANNOUNCED_SECONDS),
    Unavailable: Rule(503, errno.EAGAIN, Retry.LATER, NOT_NOW_SECONDS),
}


def believable(retry_after: float) -> float:
    """The seconds that somebody asked us to wait, as far as they make sense."""
    return min(retry_after, LONGEST_RETRY_AFTER) if retry_after > 0 else 0.0


class NearlineError(Exception):
    """The root of this tree. `errno` is what a system call answers when this reaches one.
    `retry_after`: the server named so many seconds. `patience`: see `Rule`."""

    errno: int = errno.EIO
    retry: Retry = Retry.LATER
    retry_after: float | None = None
    patience: float = 0.0


class Refused(NearlineError):
    """The server understood and said no."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message or type(problem).__name__)
        self.problem = problem
        rule = RULES[type(problem)]
        self.errno, self.retry, self.patience = rule.errno, rule.retry, rule.patience
        if isinstance(problem, RateLimited):
            self.retry_after = believable(problem.retry_after_seconds)


class Unreachable(NearlineError):
    """No usable answer came. Whether the request was carried out is unknown."""

    errno = errno.ENETUNREACH


class Silent(Unreachable):
    """Nobody there said anything: no answer in time, no route, no such name."""


class Busy(Unreachable):
    """Something answered, but not now: too many requests, or a fault that may pass."""

    def __init__(self, said: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(said)
        self.status = status
        self.retry_after = None if retry_after is None else believable(retry_after)
        is_announced = status == RULES[RateLimited].status or retry_after is not None
        self.patience = ANNOUNCED_SECONDS if is_announced else NOT_NOW_SECONDS


class UrlRefused(NearlineError):
    """A signed URL was refused or has expired. Sign again and continue; never EIO."""

    retry = Retry.REPAIR


class CorruptContent(NearlineError):
    """Bytes did not match their hash after every refetch. The read fails with EIO."""

    retry = Retry.NEVER


class ProtocolError(NearlineError):
    """The answer is not of this protocol: another program answers there, or another version."""

    errno = errno.EPROTO


class OutOfStep(ProtocolError):
    """A page of the change feed that leads nowhere, such as an old one in the place of a new one
    (a proxy may keep answers). The server is there: only what it has to tell is not known."""


class NotKept(NearlineError):
    """The answer came, but this machine could not store it. Asking again later is harmless."""

    errno = errno.ENOSPC

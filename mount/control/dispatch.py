"""Which function answers which request of `account_messages`, and what a refusal is called.

Knows: the table. Must not know: how any request is carried out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mount.control import account_messages as ask
from mount.control import devices, history, sharing, trash
from mount.control.context import Account, Report
from mount.control.messages import Done
from mount.failures import Failure, advised
from remote.protocol.errors import (
    Forbidden,
    NotFound,
    Problem,
    QuotaExceeded,
    RateLimited,
    Refused,
    Retry,
    Unauthorized,
    Unreachable,
)

Answered = ask.AccountAnswer | Done
Answerer = Callable[[Account, Any, Report], Awaitable[Answered]]

ANSWERERS: dict[type[ask.AccountRequest], Answerer] = {
    ask.ShareRequest: sharing.share,
    ask.UnshareRequest: sharing.unshare,
    ask.SharesRequest: sharing.shares,
    ask.SharedRequest: sharing.shared,
    ask.LeaveRequest: sharing.leave,
    ask.MakeLinkRequest: sharing.make_link,
    ask.LinksRequest: sharing.links,
    ask.RevokeLinkRequest: sharing.revoke_link,
    ask.LogRequest: history.log,
    ask.RestoreRequest: history.restore,
    ask.TrashRequest: trash.list_trash,
    ask.TrashRestoreRequest: trash.restore,
    ask.TrashEmptyRequest: trash.empty,
    ask.DevicesRequest: devices.devices,
    ask.RevokeDeviceRequest: devices.revoke,
    ask.MakeTokenRequest: devices.make_token,
    ask.RotateRequest: devices.rotate,
    ask.ReloadTokenRequest: devices.reload_token,
}

# What to do, where the server's own words do not say it.
_ADVICE: dict[type[Problem], str] = {
    Forbidden: "ask whoever owns it",
    NotFound: "check the name, and that it is still shared with you",
    QuotaExceeded: "empty the trash, or ask for more room",
    RateLimited: "try again in a minute",
    Unauthorized: "log in again with `nearline login`",
}


async def answer(account: Account, request: ask.AccountRequest, report: Report) -> Answered:
    """Carry the request out. Raises `Failure` with one line for the person, or NearlineError."""
    try:
        return await ANSWERERS[type(request)](account, request, report)
    except Unreachable as problem:
        raise Failure(
            f"the server has to be asked, and cannot be ({problem}); try again when"
            " `nearline status` says online"
        ) from problem
    except Refused as refused:
        raise Failure(f"the server refused: {_advised(refused)}") from refused


def _advised(refused: Refused) -> str:
    otherwise = "try again later" if refused.retry is Retry.LATER else "check what you asked for"
    return advised(str(refused), _ADVICE.get(type(refused.problem), otherwise))

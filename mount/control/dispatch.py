"""Which function answers which request of `account_messages`, and what a refusal is called.

Knows: the table. Must not know: how any request is carried out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mount.control import devices, history, sharing, trash
from mount.control.account_messages import (
    AccountAnswer,
    AccountRequest,
    DevicesRequest,
    LeaveRequest,
    LinksRequest,
    LogRequest,
    MakeLinkRequest,
    MakeTokenRequest,
    ReloadTokenRequest,
    RestoreRequest,
    RevokeDeviceRequest,
    RevokeLinkRequest,
    RotateRequest,
    SharedRequest,
    ShareRequest,
    SharesRequest,
    TrashEmptyRequest,
    TrashRequest,
    TrashRestoreRequest,
    UnshareRequest,
)
from mount.control.context import CommandContext, Report
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

Answered = AccountAnswer | Done
Answerer = Callable[[CommandContext, Any, Report], Awaitable[Answered]]

ANSWERERS: dict[type[AccountRequest], Answerer] = {
    ShareRequest: sharing.share,
    UnshareRequest: sharing.unshare,
    SharesRequest: sharing.shares,
    SharedRequest: sharing.shared,
    LeaveRequest: sharing.leave,
    MakeLinkRequest: sharing.make_link,
    LinksRequest: sharing.links,
    RevokeLinkRequest: sharing.revoke_link,
    LogRequest: history.log,
    RestoreRequest: history.restore,
    TrashRequest: trash.list_trash,
    TrashRestoreRequest: trash.restore,
    TrashEmptyRequest: trash.empty,
    DevicesRequest: devices.devices,
    RevokeDeviceRequest: devices.revoke,
    MakeTokenRequest: devices.make_token,
    RotateRequest: devices.rotate,
    ReloadTokenRequest: devices.reload_token,
}

# What to do, where the server's own words do not say it.
_ADVICE: dict[type[Problem], str] = {
    Forbidden: "ask whoever owns it",
    NotFound: "check the name, and that it is still shared with you",
    QuotaExceeded: "empty the trash, or ask for more room",
    RateLimited: "try again in a minute",
    Unauthorized: "log in again with `nearline login`",
}


async def answer(context: CommandContext, request: AccountRequest, report: Report) -> Answered:
    """Carry the request out. Raises `Failure` with one line for the person, or NearlineError."""
    try:
        return await ANSWERERS[type(request)](context, request, report)
    except Unreachable as error:
        raise Failure(
            f"the server has to be asked, and cannot be ({error}); try again when"
            " `nearline status` says online"
        ) from error
    except Refused as error:
        raise Failure(f"the server refused: {_advised(error)}") from error


def _advised(refused: Refused) -> str:
    otherwise = "try again later" if refused.retry is Retry.LATER else "check what you asked for"
    return advised(str(refused), _ADVICE.get(type(refused.problem), otherwise))

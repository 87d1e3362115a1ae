"""Finds the endpoint of a request, and answers: with what it returns, or why not.

Knows: statuses of refusals. Must not know: what any endpoint does.

Every refusal is a `Problem` with the status of `errors.RULES`; what is not foreseen is logged with
its traceback and answered 500 with a Problem that tells nothing.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import structlog
from sqlalchemy.exc import OperationalError
from uvicorn.protocols.utils import ClientDisconnected

from remote.protocol.errors import BadRequest, NotFound, Problem, Refused, Unavailable
from server.api.endpoint import WEBSOCKET, Endpoint
from server.api.exchange import Request, Response, Socket
from server.http.bodies import GONE_STATUS, ClientGone, Receive, TooSlow
from server.http.problems import Send, header, refuse
from server.http.redaction import shown_path
from server.http.request_target import is_host
from server.http.routing import Routes
from server.service import Service

log = structlog.get_logger("nearline.api")

# The route of what leads nowhere.
UNKNOWN = "unknown"

_LATE = Unavailable(message="the request's body did not arrive in time; send it again")
_GONE = Unavailable(message="the client went away before its request had arrived")
_BUSY = Unavailable(message="the server's database is busy; try later")
_UNFORESEEN = Unavailable(message="the server failed; its log says why")

# The code with which a socket is closed when something was not foreseen.
_FAILED = 4500


class Api:
    """Answers connections by `endpoints`. Concurrency: the event loop."""

    def __init__(self, service: Service, endpoints: tuple[Endpoint, ...]) -> None:
        self._service, self._endpoints = service, endpoints
        self._routes = Routes((item.method, item.path, item) for item in endpoints)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> str:
        """Answer one connection; returns the route's name for the metrics."""
        targets, values = self._routes.find(scope["path"])
        method = WEBSOCKET if scope["type"] == "websocket" else scope["method"]
        found = targets.get(method)
        if not is_host(header(scope, b"host")):
            await self._refuse(scope, send, BadRequest(message="the Host header is not valid"))
        elif found is not None and method == WEBSOCKET:
            socket = Socket(self._service, self._endpoints, scope, receive, send)
            await self._converse(found, values, socket)
            return found.path
        elif found is not None:
            request = Request(self._service, self._endpoints, scope, receive)
            await self._answer(found, values, request, send)
            return found.path
        elif not targets or method == WEBSOCKET:
            await self._refuse(scope, send, NotFound(message="there is no such endpoint"))
        elif method == "OPTIONS":
            allowed = ", ".join(sorted({*targets, "OPTIONS"} - {WEBSOCKET}))
            await Response(status=204, headers={"allow": allowed}).send(send)
        else:
            problem = BadRequest(message=f"this endpoint does not answer {method}")
            await self._refuse(scope, send, problem, 405)
        return UNKNOWN

    async def _answer(
        self, endpoint: Endpoint, values: Sequence[str], request: Request, send: Send
    ) -> None:
        scope = request.scope
        try:
            response = await _answered(endpoint, values, request)
        except Refused as error:
            await self._refuse(scope, send, error.problem)
        except TooSlow:
            await self._refuse(scope, send, _LATE, 408)
        except ClientGone:  # nobody reads it; the log and the metrics have the status
            await self._refuse(scope, send, _GONE, GONE_STATUS)
        except OperationalError as error:  # locked by a backup, or the disk is full
            log.error("database_unavailable", error=str(error.orig))
            await self._refuse(scope, send, _BUSY, 503)
        except Exception:
            log.exception("request_failed", path=shown_path(scope["path"]))
            await self._refuse(scope, send, _UNFORESEEN, 500)
        else:
            await response.send(send)

    async def _converse(self, endpoint: Endpoint, values: Sequence[str], socket: Socket) -> None:
        scope = socket.scope
        try:
            await endpoint.handler(socket, **endpoint.arguments(values, scope["query_string"]))
        except Refused as error:  # before it was accepted
            await refuse(scope, socket.send, error.problem)
        except ClientDisconnected:
            return  # it went while it was accepted or told something: nobody is there to be told
        except Exception:
            log.exception("socket_failed", path=shown_path(scope["path"]))
            await socket.send({"type": "websocket.close", "code": _FAILED, "reason": ""})

    async def _refuse(
        self,
        scope: MutableMapping[str, Any],
        send: Send,
        problem: Problem,
        status: int | None = None,
    ) -> None:
        kind = str(type(problem).__struct_config__.tag)
        self._service.metrics.refusals.labels(kind).inc()
        await refuse(scope, send, problem, status=status)


async def _answered(endpoint: Endpoint, values: Sequence[str], request: Request) -> Response:
    arguments = endpoint.arguments(values, request.scope["query_string"])
    if endpoint.body is not None and endpoint.body_name is not None:
        body = await request.message(endpoint.body, public=endpoint.public)
        arguments[endpoint.body_name] = body
    answer = await endpoint.handler(request, **arguments)
    if isinstance(answer, Response):
        return answer
    return Response(status=204) if answer is None else request.reply(answer)

"""What every request passes first: API keys and limits. It counts them for Prometheus."""

import hmac
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WITHOUT_KEY = ("/healthz", "/docs", "/redoc", "/openapi.json")
RETRY_SECONDS = 2
ERROR_TYPES = {401: "authentication_error", 404: "not_found_error"}


class Limits(NamedTuple):
    """What the server accepts."""

    keys: tuple[str, ...] = ()  # without any, none is needed
    body_bytes: float = 64e6  # of one request
    megapixels: float = 50  # of one photo
    waiting: int = 64  # requests at once, those that run included


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error in the form that OpenAI's clients read."""
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)


class Gate:
    """ASGI middleware that refuses what is beyond the limits, and counts all requests."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits, self.running = app, limits, 0
        self._requests, self._seconds = Counter[str](), defaultdict[str, float](float)  # by Prometheus' labels

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status, size = time.monotonic(), 499, 0  # 499 as in nginx: the client has left

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.limits.body_bytes:
                raise HTTPException(413, f"the request is larger than {self.limits.body_bytes / 1e6:g} MB")
            return message

        uses_model = scope["path"].startswith("/v1/")
        app = self._refusal(scope, uses_model) or self.app
        self.running += uses_model
        try:
            await app(scope, limited, counted)
        finally:
            self.running -= uses_model
            route = getattr(scope.get("route"), "path", "other")
            self._requests[labels := f'{{route="{route}",status="{status}"}}'] += 1
            self._seconds[labels] += time.monotonic() - began

    def _refusal(self, scope: Scope, uses_model: bool) -> JSONResponse | None:
        """The error for a request that is not let in."""
        if scope["path"] in WITHOUT_KEY:
            return None
        given = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ")
        matches = [hmac.compare_digest(key.encode(), given) for key in self.limits.keys]  # always all of them
        if matches and not any(matches):
            text = "no valid API key: expected the header Authorization: Bearer KEY"
            return error_response(401, text, {"WWW-Authenticate": "Bearer"})
        if uses_model and self.running >= self.limits.waiting:
            text = f"{self.running} requests wait already"
            return error_response(503, text, {"Retry-After": str(RETRY_SECONDS)})
        return None

    def metrics(self, **counters: int) -> str:
        """All counters and those given, in Prometheus' text format."""
        lines = ["# TYPE anomalygpt_running gauge", f"anomalygpt_running {self.running}"]
        samples: dict[str, Mapping[str, float]] = {name: {"": number} for name, number in counters.items()}
        for name, values in (samples | {"requests": self._requests, "request_seconds": self._seconds}).items():
            lines += [f"# TYPE anomalygpt_{name}_total counter"]
            lines += [f"anomalygpt_{name}_total{labels} {value}" for labels, value in values.items()]
        return "\n".join(lines) + "\n"

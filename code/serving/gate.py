"""What every request passes first: API keys and limits. It counts them for Prometheus."""

import hmac
import math
import time
from collections import Counter, defaultdict
from typing import NamedTuple

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WITHOUT_KEY = ("/healthz", "/docs", "/redoc", "/openapi.json")
MAX_CLIENTS = 10_000  # whose rates are remembered
RETRY_SECONDS = "2"
ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Limits(NamedTuple):
    """What the server accepts."""

    keys: tuple[str, ...] = ()  # without any, none is needed
    body_bytes: float = 64e6  # of one request
    megapixels: float = 50  # of one photo
    rate: float = 0  # requests per minute and client, which is its key or else its address; 0: any number
    waiting: int = 64  # requests at once, those that run included


def error_response(status: int, message: str, **headers: str) -> JSONResponse:
    """An error in the form that OpenAI's clients read."""
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, {name.replace("_", "-"): value for name, value in headers.items()})


class Gate:
    """ASGI middleware that refuses what is beyond the limits, and counts all requests."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits, self.running = app, limits, 0
        self._requests: Counter[tuple[str, int]] = Counter()  # by route and status
        self._seconds: dict[str, float] = defaultdict(float)  # by route
        self._allowance: dict[str, tuple[float, float]] = {}  # client -> requests left, and when that was so

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
                raise HTTPException(413, self._too_large)
            return message

        uses_model = scope["path"].startswith("/v1/")
        app = self._refusal(scope, uses_model) or self.app
        self.running += uses_model
        try:
            await app(scope, limited, counted)
        finally:
            self.running -= uses_model
            route = getattr(scope.get("route"), "path", "other")
            self._requests[route, status] += 1
            self._seconds[route] += time.monotonic() - began

    def _refusal(self, scope: Scope, uses_model: bool) -> JSONResponse | None:
        """The error for a request that is not let in."""
        if scope["path"] in WITHOUT_KEY:
            return None
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        matches = [key for key in self.limits.keys if hmac.compare_digest(key.encode(), given)]  # compares with all
        client = matches[0] if matches else (scope.get("client") or ("",))[0]
        if seconds := self._wait(client):
            text = f"more than {self.limits.rate:g} requests per minute"
            return error_response(429, text, Retry_After=str(math.ceil(seconds)))
        if self.limits.keys and not matches:
            text = "no valid API key: expected the header Authorization: Bearer KEY"
            return error_response(401, text, WWW_Authenticate="Bearer")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.body_bytes:
            return error_response(413, self._too_large, Connection="close")
        if uses_model and self.running >= self.limits.waiting:
            return error_response(503, f"{self.running} requests wait already", Retry_After=RETRY_SECONDS)
        return None

    @property
    def _too_large(self) -> str:
        return f"the request is larger than {self.limits.body_bytes / 1e6:g} MB"

    def _wait(self, client: str) -> float:
        """Seconds until the client may send its next request; 0 if this one is allowed, which is then counted."""
        rate, now = self.limits.rate, time.monotonic()
        if not rate:
            return 0
        left, then = self._allowance.pop(client, (rate, now))
        left = min(rate, left + (now - then) * rate / 60)
        self._allowance[client] = left - (left >= 1), now
        if len(self._allowance) > MAX_CLIENTS:
            del self._allowance[next(iter(self._allowance))]  # the one that has been away longest
        return 0 if left >= 1 else (1 - left) * 60 / rate

    def metrics(self, **counters: int) -> str:
        """All counters and those given, in Prometheus' text format."""
        lines = ["# TYPE anomalygpt_running gauge", f"anomalygpt_running {self.running}"]
        samples: dict[str, dict[str, float]] = {name: {"": number} for name, number in counters.items()}
        samples["requests"] = {
            f'{{route="{route}",status="{status}"}}': number for (route, status), number in self._requests.items()
        }
        samples["request_seconds"] = {f'{{route="{route}"}}': seconds for route, seconds in self._seconds.items()}
        for name, values in samples.items():
            lines += [f"# TYPE anomalygpt_{name}_total counter"]
            lines += [f"anomalygpt_{name}_total{labels} {value}" for labels, value in values.items()]
        return "\n".join(lines) + "\n"

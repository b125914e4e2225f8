"""The server around one predictor: inspection, parts, and OpenAI's chat completions; keys, limits and counters.

A part is a file of saved references, in a folder, that is used by name; one thread owns the model.
"""

import hmac
import io
import json
import re
import time
import uuid
from base64 import b64decode, b64encode
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import Depends, FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from PIL import Image
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.concurrency import iterate_in_threadpool
from starlette.datastructures import UploadFile as FormFile
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anomalygpt.config.settings import GenerationSettings, PhotoSettings
from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import DatasetError
from anomalygpt.errors import UserError, collected_warnings
from anomalygpt.inference.answers import class_in_prompt
from anomalygpt.inference.predictor import Predictor, with_result
from anomalygpt.inference.references import SUFFIX, saved_photo_settings
from anomalygpt.inference.results import ImageResult, Prediction, prediction
from anomalygpt.inference.session import MAX_REFERENCES, NO_ANSWER

NO_PART = "default"  # photos are compared with the text features
NAME = r"^\w[\w .()（）\-]{0,59}$"
MAX_LOADED = 8  # parts: 60 MB each with the compact model, hundreds with ImageBind
BATCH = 8  # photos in one pass of the encoder
Label = Literal["good", "bad", "neither"]
PartName = Annotated[str, Field(pattern=NAME)]
Decoded = BeforeValidator(lambda photo: from_data_uri(photo) if isinstance(photo, str) else photo)
Uploads = Annotated[list[UploadFile], File(max_length=MAX_REFERENCES)]

WITHOUT_KEY = ("/healthz", "/docs", "/redoc", "/openapi.json")
ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def from_data_uri(uri: str) -> bytes:
    """The content of a base64 data URI. Raises HTTPException (400) for anything else: nothing is fetched."""
    with suppress(ValueError):
        if found := re.match(r"data:[^,]{0,100};base64,", uri):
            return b64decode(uri[found.end() :], validate=True)
    text = f"{uri[:60]!r} is not fetched: send the photo itself in base64, as in data:image/png;base64,iVBOR…"
    raise HTTPException(400, text)


def read_photo(data: bytes, name: str, megapixels: float, settings: PhotoSettings | None = None) -> Image.Image:
    """Decodes a photo from its file's bytes; ``info["source"]`` is its name, ``info["warnings"]`` is how it was read.

    ``settings``: see ``photos.load_image``. Raises HTTPException: 413 for too many megapixels, 422 if it can't be read.
    """
    with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        with Image.open(io.BytesIO(data)) as header:
            found = header.width * header.height / 1e6
        if found > megapixels:
            raise HTTPException(413, f"{name}: {found:.1f} megapixels; at most {megapixels:g} are accepted")
    with NamedTemporaryFile(prefix="photo_") as file:
        file.write(data)
        file.flush()
        try:
            with collected_warnings() as warnings:
                photo = load_image(Path(file.name), settings)
        except DatasetError as error:
            text = str(error).replace(file.name, name).replace(Path(file.name).name, name)
            raise HTTPException(422, text) from None
    photo.info = {"source": name, "warnings": [each.replace(file.name, name) for each in warnings]}
    return photo


class Parts:
    """The parts in a folder, one file of saved references each. Only the model's thread may load, teach or delete.

    The ``predictor`` has no references; others with the same model are made from it.
    """

    def __init__(self, folder: Path, predictor: Predictor) -> None:
        self.folder, self._without_references = folder, predictor
        self._loaded: dict[tuple[Path, int], Predictor] = {}  # by file and when it was written

    def names(self) -> list[str]:
        """The names of all parts, sorted."""
        names = (path.stem for path in self.folder.glob(f"*{SUFFIX}"))
        return sorted(name for name in names if name != NO_PART and re.fullmatch(NAME, name))

    def _path(self, name: str, *, exists: bool = True) -> Path:
        path = self.folder / (name + SUFFIX)
        if exists and not path.is_file():
            raise HTTPException(404, f"no part {name!r}: PUT /v1/parts/NAME teaches one; {NO_PART!r} has none")
        return path

    def photo_settings(self, name: str) -> PhotoSettings | None:
        """How photos of a part are read: as its references were; None: as the server's settings say."""
        return None if name == NO_PART else saved_photo_settings(self._path(name))

    def predictor(self, name: str) -> Predictor:
        """The predictor with a part's references."""
        if name == NO_PART:
            return self._without_references
        path = self._path(name)
        predictor = self._loaded.get((path, path.stat().st_mtime_ns))
        if predictor is None:
            predictor = self._without_references.without_references()
            predictor.set_references((), path)
        self._keep(path, predictor)
        return predictor

    def _keep(self, path: Path, predictor: Predictor) -> None:
        """Keeps a part that its file holds, too, and drops those that were not used for longest."""
        key = path, path.stat().st_mtime_ns
        self._loaded.pop(key, None)
        self._loaded = dict(list(self._loaded.items())[1 - MAX_LOADED :]) | {key: predictor}

    def teach(self, name: str, photos: Sequence[Image.Image]) -> dict[str, Any]:
        """Encodes and saves good photos in place of what the part was before; returns what :meth:`describe` does."""
        if name == NO_PART:
            raise HTTPException(400, f"{NO_PART!r} can't name a part: it stands for none")
        path, predictor = self._path(name, exists=False), self._without_references.without_references()
        with collected_warnings() as warnings:
            predictor.set_references(photos)
        predictor.save_references(path)
        self._keep(path, predictor)
        return self.describe(name) | {"warnings": sum((photo.info["warnings"] for photo in photos), warnings)}

    def correct(self, name: str, photo: Image.Image | None, good: bool | None = None) -> dict[str, Any]:
        """Counts a photo as good or bad, or by None as neither, from now on; without a photo withdraws all that."""
        path, predictor = self._path(name), self.predictor(name).copy()  # a full disk leaves the part as it was
        if photo:
            predictor.feedback(predictor.inspect(photo), good)
        else:
            predictor.forget_feedback()
        predictor.save_references(path)
        self._keep(path, predictor)
        return self.describe(name)

    def describe(self, name: str) -> dict[str, Any]:
        """A part's name, its number of references, and what they are worth, in lines for people."""
        report = self.predictor(self._path(name).stem).report()  # of a file: ``default`` has none
        return {"name": name, "references": len(report.names), "report": report.lines()}

    def forget(self, name: str) -> None:
        """Deletes a part and its file."""
        self._path(name).unlink()


class Limits(NamedTuple):
    """What the server accepts."""

    keys: tuple[str, ...] = ()  # without any, none is needed
    body_bytes: float = 64e6  # of one request
    megapixels: float = 50  # of one photo
    rate: float = 0  # requests per minute and client; 0: any number
    waiting: int = 64  # requests at once, those that run included


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error in the form that OpenAI's clients read."""
    kind = ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error}, status, headers)


class Inspection(BaseModel):
    """What is wanted of a photo, which is a form's file, or in JSON a data URI."""

    model_config = ConfigDict(extra="forbid")
    photo: Annotated[bytes, Decoded, WithJsonSchema({"type": "string", "format": "binary"})]
    part: PartName = Field(NO_PART, description="a part that was taught, or ``default``")
    class_name: str | None = Field(None, max_length=60, description="what the photo shows, as in 'screw'")
    question: str | None = Field(None, max_length=2000, description="without one there is no answer in words")
    map: Literal["png", "tiff"] | None = Field(None, description="overlay, or 32-bit float map, in base64")


KINDS = ("multipart/form-data", "application/json")
BODY = {"required": True, "content": {kind: {"schema": Inspection.model_json_schema()} for kind in KINDS}}


async def read_inspection(request: Request) -> Inspection:
    """What is wanted of which photo, from a form or JSON."""
    if not request.headers.get("content-type", "").lower().startswith(KINDS[0]):
        return Inspection.model_validate_json(await request.body())
    async with request.form(max_files=1, max_fields=10) as form:
        given = [(name, await value.read() if isinstance(value, FormFile) else value) for name, value in form.items()]
    return Inspection.model_validate({name: value for name, value in given if value or name == "photo"})


def map_file(result: ImageResult, kind: str) -> str:
    """A photo's map in base64, as ``predict.py`` writes it: the overlay as PNG, or the float map as TIFF."""
    picture = result.plot() if kind == "png" else Image.fromarray(result.map)
    picture.save(file := io.BytesIO(), kind)
    return b64encode(file.getvalue()).decode()


class Content(BaseModel):
    """A piece of a message: a text, or a photo as a data URI."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: dict[Literal["url", "detail"], str] = {}


class ChatMessage(BaseModel):
    """A turn of the conversation; system and developer messages are not read."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Content]


class ChatRequest(BaseModel):
    """A question with what precedes it; other fields are ignored. How it is sampled is by default the server's."""

    model: PartName = Field(NO_PART, description="the name of a part, or ``default``")
    messages: list[ChatMessage] = Field(min_length=1)
    n: Literal[1] = 1
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_new_tokens: int | None = Field(None, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens"))


def read_messages(messages: Sequence[ChatMessage]) -> tuple[bytes, str, list[tuple[str, str]]]:
    """The latest photo's file, the question, and what was said about that photo before. Raises HTTPException (400)."""
    photo, history, asked = "", list[tuple[str, str]](), list[str]()
    for message in messages:
        pieces = [Content(type="text", text=message.content)] if isinstance(message.content, str) else message.content
        text = "\n".join(piece.text for piece in pieces if piece.text)
        photos = [piece.image_url.get("url", "") for piece in pieces if piece.type == "image_url"]
        if message.role == "user":
            if photos:
                photo, history, asked = photos[-1], [], []
            asked += [text] if text else []
        elif message.role == "assistant":
            history.append(("\n".join(asked), text))
            asked = []
    if not photo:
        raise HTTPException(400, "no photo: expected an image_url with a data URI in a message of the user's")
    if messages[-1].role != "user":
        raise HTTPException(400, f"the last message is the {messages[-1].role}'s; expected the user's")
    return from_data_uri(photo), "\n".join(asked), history


def _record(found: Prediction) -> dict[str, Any]:
    return {**found.to_dict(), "warnings": found.image.photo.info["warnings"]}


class Service:
    """The routes. What needs the model runs in its thread, in the order in which it came, answers piece by piece."""

    def __init__(self, predictor: Predictor, parts: Parts, megapixels: float) -> None:
        self.predictor, self.parts, self.megapixels = predictor, parts, megapixels
        self.photos, self.batches = 0, 0  # that many were inspected
        self._thread = ThreadPoolExecutor(1, "model")
        self._waiting: list[SimpleNamespace] = []  # photos; those with the same key are inspected together

    def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call in the model's thread."""
        return self._thread.submit(function, *arguments).result()

    def _read(self, file: UploadFile, settings: PhotoSettings | None = None) -> Image.Image:
        return read_photo(file.file.read(), Path(file.filename or "photo").name, self.megapixels, settings)

    def _inspect(self, data: bytes, part: str, class_name: str | None, question: str) -> ImageResult:
        """The result of a photo's file, as ``Predictor.predict`` has it."""
        photo = read_photo(data, "the photo", self.megapixels, self.parts.photo_settings(part))
        named = class_name or class_in_prompt(question, self.predictor.settings.text_class_rule)
        self._waiting.append(job := SimpleNamespace(key=(part, named), photo=photo, found=Future()))
        self._run(self._inspect_oldest)  # that one or an earlier call takes this photo
        return job.found.result()

    def _inspect_oldest(self) -> None:
        """Inspects the photo that waits longest, if any, with others like it."""
        batch = [job for job in self._waiting if job.key == self._waiting[0].key][:BATCH]
        if not batch:
            return
        for job in batch:
            self._waiting.remove(job)
        (part, class_name), photos = batch[0].key, [job.photo for job in batch]
        self.photos, self.batches = self.photos + len(batch), self.batches + 1
        try:
            for job, result in zip(batch, self.parts.predictor(part).inspect_batch(photos, class_name), strict=True):
                job.found.set_result(result)
        except Exception as error:
            for job in batch:
                job.found.set_exception(error)

    def _pieces(self, answer: Generator[str, None, Prediction]) -> Generator[Any, None, None]:
        """The pieces of ``Predictor.stream``, then what it returns; generation stops when this is closed."""
        pieces, piece = with_result(answer), ""
        try:
            while isinstance(piece, str):
                piece = self._run(next, pieces)
                yield piece
        finally:
            self._thread.submit(pieces.close)

    def _require_words(self) -> None:
        if self.predictor.language_model is None:
            raise HTTPException(501, NO_ANSWER)

    def _sampling(self, body: ChatRequest) -> Predictor:
        """The predictor, with a language model that samples as the request says."""
        given = body.model_dump(include={*GenerationSettings.model_fields}, exclude_none=True)
        predictor, model = copy(self.predictor), copy(self.predictor.language_model)
        assert model is not None  # see _require_words
        model.settings = model.settings.model_copy(update=given)
        predictor.language_model = model
        return predictor

    def inspect(self, wanted: Annotated[Inspection, Depends(read_inspection)]) -> JSONResponse:
        """Inspects a photo: verdict, probability, regions, on request the map and the answer to a question."""
        if wanted.question:
            self._require_words()
        question = wanted.question or detection_question(wanted.class_name, with_description=False)
        result = self._inspect(wanted.photo, wanted.part, wanted.class_name, question)
        found = prediction(result, "", "", self.predictor.settings.verdict)
        if wanted.question:
            *_, found = self._pieces(self.predictor.stream(result, question))
        record = {"part": wanted.part, **_record(found)}
        if wanted.map:
            record["map"] = map_file(result, wanted.map)
        return JSONResponse(record)

    def chat(self, body: ChatRequest) -> Response:
        """Answers a question about the latest photo of the messages, by OpenAI's protocol."""
        self._require_words()
        data, question, history = read_messages(body.messages)
        question = question or detection_question(None, with_description=False)
        result = self._inspect(data, body.model, None, " ".join([*(asked for asked, _ in history), question]))
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        answer = self._pieces(self._sampling(body).stream(result, question, history))
        if body.stream:
            return StreamingResponse(self._events(about, answer), media_type="text/event-stream")
        *_, found = answer
        message = {"role": "assistant", "content": found.answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        own = {"object": "chat.completion", "choices": [choice], "findings": _record(found)}
        return JSONResponse({**about, **own})

    async def _events(self, about: dict[str, Any], answer: Generator[Any, None, None]) -> AsyncIterator[str]:
        def event(**content: Any) -> str:
            return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

        def chunk(delta: dict[str, str], reason: str | None = None, **others: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return event(**about, object="chat.completion.chunk", choices=[choice], **others)

        yield chunk({"role": "assistant", "content": ""})
        try:
            async for piece in iterate_in_threadpool(answer):
                if isinstance(piece, str):
                    yield chunk({"content": piece})
                else:
                    yield chunk({}, "stop", findings=_record(piece))
        except UserError as error:
            yield event(error={"message": str(error), "type": "server_error"})
        finally:  # also when the client has left
            answer.close()
        yield "data: [DONE]\n\n"

    def teach(self, name: PartName, photos: Uploads) -> dict[str, Any]:
        """Teaches a part by photos of good ones, in place of what it was before."""
        return self._run(self.parts.teach, name, list(map(self._read, photos)))

    def correct(self, name: PartName, photo: UploadFile, label: Annotated[Label, Form()]) -> dict[str, Any]:
        """Says of a photo of a part that it is good or bad, or withdraws that by ``neither``; the verdict learns."""
        image = self._read(photo, self.parts.photo_settings(name))
        return self._run(self.parts.correct, name, image, {"good": True, "bad": False}.get(label))

    def forget_corrections(self, name: PartName) -> None:
        """Withdraws all that was said of photos of a part."""
        self._run(self.parts.correct, name, None)

    def part(self, name: PartName) -> dict[str, Any]:
        """A part that was taught, and what its references are worth."""
        return self._run(self.parts.describe, name)

    def forget(self, name: PartName) -> None:
        """Deletes a part."""
        self._run(self.parts.forget, name)

    def list_parts(self) -> dict[str, list[str]]:
        """The names of all parts."""
        return {"parts": self.parts.names()}

    def models(self) -> dict[str, Any]:
        """What ``model`` can be in a chat: ``default`` and all parts."""
        about = {"object": "model", "created": 0, "owned_by": "anomalygpt"}
        return {"object": "list", "data": [{"id": name, **about} for name in (NO_PART, *self.parts.names())]}


class Gate:
    """ASGI middleware that refuses what is beyond the limits, and counts all requests."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits, self.running, self.began = app, limits, 0, time.monotonic()
        self._minute, self._sent = 0, Counter[str]()  # requests of each client in the current minute
        self._counted = defaultdict[str, float](int)  # by Prometheus' names and labels

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
            self._counted[f'requests_total{{route="{route}",status="{status}"}}'] += 1
            self._counted[f'request_seconds_total{{route="{route}",status="{status}"}}'] += time.monotonic() - began

    def _refusal(self, scope: Scope, uses_model: bool) -> JSONResponse | None:
        """The error for a request that is not let in."""
        if scope["path"] in WITHOUT_KEY:
            return None
        given = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ")
        matches = [key for key in self.limits.keys if hmac.compare_digest(key.encode(), given)]  # compares with all
        client = matches[0] if matches else (scope.get("client") or ("",))[0]
        minute, seconds = divmod(int(time.monotonic() - self.began), 60)
        if minute != self._minute:
            self._minute, self._sent = minute, Counter()
        self._sent[client] += 1
        if self.limits.rate and self._sent[client] > self.limits.rate:
            text = f"more than {self.limits.rate:g} requests per minute"
            return error_response(429, text, {"Retry-After": str(60 - seconds)})
        if self.limits.keys and not matches:
            text = "no valid API key: expected the header Authorization: Bearer KEY"
            return error_response(401, text, {"WWW-Authenticate": "Bearer"})
        if uses_model and self.running >= self.limits.waiting:
            return error_response(503, f"{self.running} requests wait already", {"Retry-After": "2"})
        return None

    def metrics(self, **counters: int) -> str:
        """All counters and those given, in Prometheus' text format."""
        samples = {"running": self.running, **counters, **self._counted}
        return "".join(f"anomalygpt_{name} {value}\n" for name, value in samples.items())


def build_app(predictor: Predictor, folder: Path, limits: Limits) -> Gate:
    """The server as an ASGI application; the predictor has no references, the folder holds the parts."""
    service = Service(predictor, Parts(folder, predictor), limits.megapixels)
    failure: dict[str, Any] = {"description": "an error in the form of OpenAI's, {error: {message, type}}"}
    app = FastAPI(title="AnomalyGPT", responses={"4XX": failure, "5XX": failure})
    gate = Gate(app, limits)
    app.post("/v1/inspect", openapi_extra={"requestBody": BODY})(service.inspect)
    app.get("/v1/parts")(service.list_parts)
    app.put("/v1/parts/{name}")(service.teach)
    app.get("/v1/parts/{name}")(service.part)
    app.delete("/v1/parts/{name}", status_code=204)(service.forget)
    app.post("/v1/parts/{name}/feedback")(service.correct)
    app.delete("/v1/parts/{name}/feedback", status_code=204)(service.forget_corrections)
    app.post("/v1/chat/completions")(service.chat)
    app.get("/v1/models")(service.models)

    @app.get("/healthz")  # async, so that neither waits for a thread
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        return gate.metrics(photos_total=service.photos, batches_total=service.batches)

    async def failed(_: Request, error: Any) -> Response:
        """Any error as OpenAI's clients read it."""
        if isinstance(error, AnyHTTPException):
            return error_response(error.status_code, str(error.detail), error.headers)
        if isinstance(error, RequestValidationError | ValidationError):
            faults = [": ".join([*map(str, each["loc"]), each["msg"]]) for each in error.errors()[:3]]
            return error_response(400, "; ".join(faults))
        if isinstance(error, UserError):  # else a damaged part, a full disk, a language model that can't be reached
            return error_response(422 if isinstance(error, DatasetError) else 500, str(error).replace(f"{folder}/", ""))
        return error_response(500, f"{type(error).__name__}: see the server's log")

    for kind in (AnyHTTPException, RequestValidationError, ValidationError, UserError, Exception):
        app.add_exception_handler(kind, failed)
    return gate

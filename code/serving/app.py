"""The server's routes: inspection, parts, and OpenAI's chat completions, around one predictor."""

import io
import json
import time
import uuid
from asyncio import to_thread
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Form, HTTPException, Request, UploadFile
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile as FormFile
from starlette.exceptions import HTTPException as AnyHTTPException

from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.errors import UserError
from anomalygpt.inference.answers import class_in_prompt
from anomalygpt.inference.results import ImageResult, Prediction, prediction
from anomalygpt.inference.session import MAX_REFERENCES, NO_ANSWER
from anomalygpt.inference.visualize import overlay
from anomalygpt.serving.gate import Gate, Limits, error_response
from anomalygpt.serving.messages import ChatRequest, from_data_uri, read_messages, read_photo
from anomalygpt.serving.parts import NAME, NO_PART, ModelThread, Parts

if TYPE_CHECKING:
    from anomalygpt.config.settings import PhotoSettings
    from anomalygpt.inference.predictor import Predictor

History = list[tuple[str, str]]
Label = Literal["good", "bad", "neither"]
PartName = Annotated[str, InPath(pattern=NAME)]


class Inspection(BaseModel):
    """What is wanted of a photo."""

    model_config = ConfigDict(extra="forbid")
    part: str = Field(NO_PART, description="a part that was taught, or ``default``")
    class_name: str | None = Field(None, max_length=60, description="what the photo shows, as in 'screw'")
    question: str | None = Field(None, max_length=2000, description="without one there is no answer in words")
    map: Literal["png", "tiff"] | None = Field(None, description="overlay, or 32-bit float map, in base64")


class JsonInspection(Inspection):
    """The same with the photo, a data URI."""

    photo: str


FORM = Inspection.model_json_schema()
FORM["properties"]["photo"] = {"type": "string", "format": "binary"}
BODY = {"multipart/form-data": {"schema": FORM | {"required": ["photo"]}}}
BODY["application/json"] = {"schema": JsonInspection.model_json_schema()}
MESSAGE = {"type": "object", "properties": {"message": {"type": "string"}, "type": {"type": "string"}}}
ERROR = {"type": "object", "properties": {"error": MESSAGE}, "required": ["error"]}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "Error", "content": {"application/json": {"schema": ERROR}}} for status in ("4XX", "5XX")
}


def map_file(result: ImageResult, kind: str) -> str:
    """A photo's map in base64, as ``predict.py`` writes it: the overlay as PNG, or the float map as TIFF."""
    picture = Image.fromarray(result.map)
    if kind == "png" and result.photo:
        picture = overlay(result.photo, result.map, result.threshold, result.regions)
    picture.save(file := io.BytesIO(), kind)
    return b64encode(file.getvalue()).decode()


async def read_inspection(request: Request) -> tuple[bytes, Inspection]:
    """A photo's file and what is wanted, from a form or JSON."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        wanted = JsonInspection.model_validate_json(await request.body())
        return from_data_uri(wanted.photo), wanted
    async with request.form(max_files=1, max_fields=10) as form:
        fields = {name: value for name, value in form.items() if name != "photo" and value}
        if not isinstance(file := form.get("photo"), FormFile):
            raise HTTPException(400, "no photo: expected a file in the form's field 'photo'")
        return await file.read(), Inspection.model_validate(fields)


class Service:
    """The routes."""

    def __init__(self, predictor: "Predictor", parts: Parts, megapixels: float) -> None:
        self.predictor, self.parts, self.megapixels = predictor, parts, megapixels
        self.model = ModelThread(parts)

    async def _read(self, data: bytes, name: str, settings: "PhotoSettings | None") -> Image.Image:
        return await to_thread(read_photo, data, name, settings, self.megapixels)

    async def _inspect(self, data: bytes, part: str, class_name: str | None, question: str) -> ImageResult:
        """The result of a photo's file, as ``Predictor.predict`` has it."""
        photo = await self._read(data, "the photo", self.parts.photo_settings(part))
        named = class_name or class_in_prompt(question, self.predictor.settings.text_class_rule)
        return await self.model.inspect(part, named, photo)

    def _require_words(self) -> None:
        if self.predictor.language_model is None:
            raise HTTPException(501, NO_ANSWER)

    async def _answer(self, result: ImageResult, question: str, history: History) -> Prediction:
        *_, found = [piece async for piece in self.model.pieces(self.predictor.stream(result, question, history))]
        return found

    async def inspect(self, request: Request) -> JSONResponse:
        """Inspects a photo: verdict, probability, regions, on request the map and the answer to a question."""
        data, wanted = await read_inspection(request)
        if wanted.question:
            self._require_words()
        question = wanted.question or detection_question(wanted.class_name, with_description=False)
        result = await self._inspect(data, wanted.part, wanted.class_name, question)
        found = prediction(result, "", "", self.predictor.settings.verdict)
        if wanted.question:
            found = await self._answer(result, question, [])
        record = {"part": wanted.part, **found.to_dict()}
        if wanted.map:
            record["map"] = await to_thread(map_file, result, wanted.map)
        return JSONResponse(record)

    async def chat(self, body: ChatRequest) -> Response:
        """Answers a question about the latest photo of the messages, by OpenAI's protocol."""
        self._require_words()
        data, question, history = read_messages(body.messages)
        question = question or detection_question(None, with_description=False)
        result = await self._inspect(data, body.model, None, " ".join([*(asked for asked, _ in history), question]))
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        if body.stream:
            return StreamingResponse(self._events(about, result, question, history), media_type="text/event-stream")
        found = await self._answer(result, question, history)
        message = {"role": "assistant", "content": found.answer}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        own = {"object": "chat.completion", "choices": [choice], "findings": found.to_dict()}
        return JSONResponse({**about, **own})

    async def _events(
        self, about: dict[str, Any], result: ImageResult, question: str, history: History
    ) -> AsyncIterator[str]:
        def event(**content: Any) -> str:
            return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

        def chunk(delta: dict[str, str], reason: str | None = None, **others: Any) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            return event(**about, object="chat.completion.chunk", choices=[choice], **others)

        yield chunk({"role": "assistant", "content": ""})
        try:
            async with aclosing(self.model.pieces(self.predictor.stream(result, question, history))) as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        yield chunk({"content": piece})
                    else:
                        yield chunk({}, "stop", findings=piece.to_dict())
        except UserError as error:
            yield event(error={"message": str(error), "type": "server_error"})
        yield "data: [DONE]\n\n"

    async def teach(self, name: PartName, photos: list[UploadFile]) -> dict[str, Any]:
        """Teaches a part by photos of good ones, in place of what it was before."""
        if len(photos) > MAX_REFERENCES:
            raise HTTPException(400, f"{len(photos)} photos are too many: {MAX_REFERENCES} at most")
        good = [await self._read(await file.read(), Path(file.filename or "photo").name, None) for file in photos]
        return await self.model.run(self.parts.teach, name, good)

    async def correct(self, name: PartName, photo: UploadFile, label: Annotated[Label, Form()]) -> dict[str, Any]:
        """Says of a photo of a part that it is good or bad, or withdraws that by ``neither``; the verdict learns."""
        settings = self.parts.photo_settings(name)
        image = await self._read(await photo.read(), Path(photo.filename or "photo").name, settings)
        return await self.model.run(self.parts.correct, name, image, {"good": True, "bad": False}.get(label))

    async def forget_corrections(self, name: PartName) -> None:
        """Withdraws all that was said of photos of a part."""
        await self.model.run(self.parts.correct, name, None)

    async def part(self, name: PartName) -> dict[str, Any]:
        """A part that was taught, and what its references are worth."""
        return await self.model.run(self.parts.describe, name)

    async def forget(self, name: PartName) -> None:
        """Deletes a part."""
        await self.model.run(self.parts.forget, name)

    def list_parts(self) -> dict[str, list[str]]:
        """The names of all parts."""
        return {"parts": self.parts.names()}

    def models(self) -> dict[str, Any]:
        """What ``model`` can be in a chat: ``default`` and all parts."""
        about = {"object": "model", "created": 0, "owned_by": "anomalygpt"}
        return {"object": "list", "data": [{"id": name, **about} for name in (NO_PART, *self.parts.names())]}


def build_app(predictor: "Predictor", folder: Path, limits: Limits) -> Gate:
    """The server as an ASGI application.

    Args:
        predictor: without references.
        folder: of the parts.
    """
    service = Service(predictor, Parts(folder, predictor), limits.megapixels)
    app = FastAPI(title="AnomalyGPT", responses=ERRORS)
    gate = Gate(app, limits)
    app.post("/v1/inspect", openapi_extra={"requestBody": {"required": True, "content": BODY}})(service.inspect)
    app.get("/v1/parts")(service.list_parts)
    app.put("/v1/parts/{name}")(service.teach)
    app.get("/v1/parts/{name}")(service.part)
    app.delete("/v1/parts/{name}", status_code=204)(service.forget)
    app.post("/v1/parts/{name}/feedback")(service.correct)
    app.delete("/v1/parts/{name}/feedback", status_code=204)(service.forget_corrections)
    app.post("/v1/chat/completions")(service.chat)
    app.get("/v1/models")(service.models)

    @app.get("/healthz")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> str:
        return gate.metrics(photos=service.model.photos, batches=service.model.batches)

    async def failed(_: Request, error: Any) -> Response:
        """Any error as OpenAI's clients read it."""
        if isinstance(error, AnyHTTPException):
            return error_response(error.status_code, str(error.detail), error.headers)
        if isinstance(error, RequestValidationError | ValidationError):
            faults = [": ".join([*map(str, each["loc"]), each["msg"]]) for each in error.errors()[:3]]
            return error_response(400, "; ".join(faults))
        if isinstance(error, UserError):  # a damaged part, a full disk, a language model that can't be reached
            return error_response(500, str(error).replace(f"{folder}/", ""))
        return error_response(500, f"{type(error).__name__}: see the server's log")

    for kind in (AnyHTTPException, RequestValidationError, ValidationError, UserError, Exception):
        app.add_exception_handler(kind, failed)
    return gate

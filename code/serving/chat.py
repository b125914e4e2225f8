"""OpenAI's chat-completions protocol: requests, and the chunks of a stream."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import HTTPException
from pydantic import BaseModel, Field

from anomalygpt.serving.parts import NO_PART, from_data_uri


class Content(BaseModel):
    """A piece of a message: a text, or a photo as a data URI."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: dict[Literal["url", "detail"], str] = {}


class Message(BaseModel):
    """A turn of the conversation; system and developer messages are not read."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Content]

    def pieces(self) -> tuple[str, list[str]]:
        """Its text, and its photos' data URIs."""
        if isinstance(self.content, str):
            return self.content, []
        photos = [piece.image_url.get("url", "") for piece in self.content if piece.type == "image_url"]
        return "\n".join(piece.text for piece in self.content if piece.text), photos


class ChatRequest(BaseModel):
    """A question with what precedes it. Other fields are ignored: how answers are sampled is the server's setting."""

    model: str = Field(NO_PART, description="the name of a part, or ``default``")
    messages: list[Message] = Field(min_length=1)
    n: Literal[1] = 1
    stream: bool = False
    stream_options: dict[str, bool] | None = None


def read_messages(messages: Sequence[Message]) -> tuple[bytes, str, list[tuple[str, str]]]:
    """The latest photo's file, the question, and the earlier (question, answer) pairs about that photo.

    Raises:
        HTTPException: 400 if there is no photo, or if the last message is not the user's.
    """
    photo, history, asked = "", list[tuple[str, str]](), list[str]()
    for message in messages:
        text, photos = message.pieces()
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


def chunk(about: dict[str, Any], delta: dict[str, str] | None, reason: str | None = None, **others: Any) -> str:
    """A server-sent event with a piece of an answer; without ``delta`` it has no choice."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return event({**about, "object": "chat.completion.chunk", "choices": choices, **others})


def event(content: dict[str, Any]) -> str:
    """A server-sent event of JSON."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"

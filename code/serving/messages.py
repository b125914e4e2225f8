"""What requests hold: photos, and the messages of OpenAI's chat-completions protocol."""

import re
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Literal

from fastapi import HTTPException
from PIL import Image
from pydantic import BaseModel, Field

from anomalygpt.datasets.photos import load_image
from anomalygpt.datasets.records import DatasetError
from anomalygpt.serving.parts import NO_PART

if TYPE_CHECKING:
    from anomalygpt.config.settings import PhotoSettings


def from_data_uri(uri: str) -> bytes:
    """The content of a base64 data URI. Raises HTTPException (400) for anything else: nothing is fetched."""
    with suppress(ValueError):
        if found := re.match(r"data:[^,]{0,100};base64,", uri):
            return b64decode(uri[found.end() :], validate=True)
    text = f"{uri[:60]!r} is not fetched: send the photo itself in base64, as in data:image/png;base64,iVBOR…"
    raise HTTPException(400, text)


def read_photo(data: bytes, name: str, settings: "PhotoSettings | None", megapixels: float) -> Image.Image:
    """Decodes a photo from its file's bytes; ``info["source"]`` is its name.

    Args:
        settings: see ``photos.load_image``.

    Raises:
        HTTPException: 413 if it has more megapixels than allowed, 422 if it can't be read.
    """
    with suppress(OSError, ValueError, SyntaxError, Image.DecompressionBombError), Image.open(BytesIO(data)) as header:
        if (found := header.width * header.height / 1e6) > megapixels:
            raise HTTPException(413, f"{name}: {found:.1f} megapixels; at most {megapixels:g} are accepted")
    with NamedTemporaryFile(prefix="photo_") as file:
        file.write(data)
        file.flush()
        try:
            photo = load_image(Path(file.name), settings)
        except DatasetError as error:
            text = str(error).replace(file.name, name).replace(Path(file.name).name, name)
            raise HTTPException(422, text) from None
    photo.info = {"source": name}
    return photo


class Content(BaseModel):
    """A piece of a message: a text, or a photo as a data URI."""

    type: Literal["text", "image_url"]
    text: str = ""
    image_url: dict[Literal["url", "detail"], str] = {}


class Message(BaseModel):
    """A turn of the conversation; system and developer messages are not read."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Content]


class ChatRequest(BaseModel):
    """A question with what precedes it. Other fields are ignored: how answers are sampled is the server's setting."""

    model: str = Field(NO_PART, description="the name of a part, or ``default``")
    messages: list[Message] = Field(min_length=1)
    n: Literal[1] = 1
    stream: bool = False


def read_messages(messages: Sequence[Message]) -> tuple[bytes, str, list[tuple[str, str]]]:
    """The latest photo's file, the question, and the earlier (question, answer) pairs about that photo.

    Raises:
        HTTPException: 400 if there is no photo, or if the last message is not the user's.
    """
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

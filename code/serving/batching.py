"""The one thread that runs the model: photos that wait at the same time are inspected together."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from anomalygpt.inference.results import ImageResult, Prediction
    from anomalygpt.serving.parts import Parts

BATCH = 8  # photos in one pass of the encoder
Key = tuple[str, str]  # part and class name: photos that agree in both are inspected together


class ModelThread:
    """Runs what needs the model, in the order in which it came; answers take turns piece by piece.

    Attributes:
        photos, batches: how many were inspected so far.
    """

    def __init__(self, parts: "Parts") -> None:
        self.parts, self.photos, self.batches = parts, 0, 0
        self._executor = ThreadPoolExecutor(1, "model")
        self._lock = Lock()
        self._waiting: dict[Key, list[tuple[Image.Image, Future[ImageResult]]]] = {}

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of a call in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def inspect(self, part: str, class_name: str, photo: "Image.Image") -> "ImageResult":
        """The result of a photo, compared with a part's references."""
        result: Future[ImageResult] = Future()
        with self._lock:
            self._waiting.setdefault((part, class_name), []).append((photo, result))
        self._executor.submit(self._inspect_waiting, (part, class_name))
        return await asyncio.wrap_future(result)

    def _inspect_waiting(self, key: Key) -> None:
        with self._lock:
            waiting = self._waiting.pop(key, [])
            if waiting[BATCH:]:
                self._waiting[key] = waiting[BATCH:]  # for the next call: there is one per photo
        batch = [each for each in waiting[:BATCH] if each[1].set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            found = self.parts.predictor(key[0]).inspect_batch([photo for photo, _ in batch], key[1])
        except Exception as error:
            for _, result in batch:
                result.set_exception(error)
            return
        self.photos, self.batches = self.photos + len(batch), self.batches + 1
        for (_, result), each in zip(batch, found, strict=True):
            result.set_result(each)

    async def pieces(self, answer: "Generator[str, None, Prediction]") -> "AsyncGenerator[str | Prediction, None]":
        """The pieces of ``Predictor.stream``, then what it returns; generation stops when this is closed."""

        def step() -> "str | Prediction":
            try:
                return next(answer)
            except StopIteration as finished:
                return finished.value

        try:
            piece: Any = ""
            while isinstance(piece, str):
                piece = await self.run(step)
                yield piece
        finally:
            self._executor.submit(answer.close)

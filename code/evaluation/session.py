"""Measures cell after cell on the one path that users take, by one process or several, and keeps what is done."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from anomalygpt.datasets.dialogue import detection_question
from anomalygpt.datasets.loco import can_saturate
from anomalygpt.datasets.records import ImageRecord, first_offenders
from anomalygpt.datasets.regions import marks_position, positions_of
from anomalygpt.datasets.transforms import load_image, load_mask
from anomalygpt.errors import UserError
from anomalygpt.evaluation.measured import Measured, PhotoRow, Setting
from anomalygpt.evaluation.protocol import Cell, Plan, of_class, photo_name, photo_seed, tested
from anomalygpt.evaluation.results import CategoryResult, summarise
from anomalygpt.evaluation.sharing import SAVE_EVERY, Share, Work, measure_shared
from anomalygpt.evaluation.state import State
from anomalygpt.evaluation.truth import Resolution, choose_mask_rule, on_map, truth_about
from anomalygpt.inference.answers import parse_positions, parse_verdict
from anomalygpt.inference.predictor import Look, Prediction, Predictor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What numbers depend on besides the model and the plan.

    Attributes:
        root: the data's root, or the folder of their table.
        kind: how they are laid out.
        official: whether the config asks for the released code's geometry.
        resolution: measure on the ``map``'s pixels or on the ``photo``'s own.
        chat: whether the predictor answers questions.
    """

    root: Path
    kind: str
    official: bool = False
    resolution: Resolution = "map"
    chat: bool = True


class Session:
    """One evaluation.

    Args:
        predictor: keeps the references of the last cell afterwards. None will do where all photos were measured before.
        records: of all classes.
        state: where photos are kept that were measured.
        share: of this process; all processes must go through the same cells in the same order.
        on_photo: called after each photo of this process.
        save_every: seconds.
    """

    def __init__(
        self,
        predictor: Predictor | None,
        records: Sequence[ImageRecord],
        plan: Plan,
        settings: Settings,
        state: State[Measured],
        share: Share | None = None,
        on_photo: Callable[[], object] = lambda: None,
        save_every: float = SAVE_EVERY,
    ) -> None:
        self._predictor = predictor
        self.records = records
        self.plan = plan
        self.settings = settings
        self.state = state
        self.share = share or Share()
        self.on_photo = on_photo
        self.save_every = save_every
        self.saturated = settings.kind == "loco" and can_saturate(list(records))

    @property
    def predictor(self) -> Predictor:
        """The predictor.

        Raises:
            RuntimeError: there is none.
        """
        if self._predictor is None:
            raise RuntimeError("photos are left to be measured, and the session was given no predictor")
        return self._predictor

    def measure(self, cell: Cell) -> CategoryResult | None:
        """Measures what is not measured yet of a cell, and adds it up; None on all processes but the first.

        Raises:
            UserError: there is no test photo, or too few references.
            DatasetError: a photo or a mask can't be read.
            UserError: the state is damaged, or of other photos.
            OSError: the state can't be written.
        """
        photos = {self._name(record): record for record in tested(self.records, cell.class_name)}

        def measure(part: Measured, name: str) -> None:
            self._measure_photo(part, cell, name, photos[name])

        work = Work(lambda: self._set_references(cell), lambda: self.on_photo(), self.save_every)
        done = measure_shared(self.state, cell, list(photos), self.share, measure, work)
        if done is None:
            return None
        self._require_same_photos(done, photos)
        references = tuple(self._name(record) for record in self.plan.references(self.records, cell))
        return summarise(cell, references, done, self.settings.chat)

    def left(self, cell: Cell) -> int:
        """How many of a cell's photos have to be measured still, by all processes together."""
        if self.state.finished(cell) is not None:
            return 0
        return len(tested(self.records, cell.class_name)) - len(self.state.measured(cell))

    def _set_references(self, cell: Cell) -> None:
        torch.manual_seed(photo_seed(self.plan.seed, cell, cell.class_name))
        references = self.plan.references(of_class(self.records, cell.class_name), cell)
        self.predictor.set_references([load_image(record.image) for record in references])

    def _measure_photo(self, part: Measured, cell: Cell, name: str, record: ImageRecord) -> None:
        torch.manual_seed(photo_seed(self.plan.seed, cell, name))
        photo = load_image(record.image)
        look = self.predictor.look(photo, record.class_name)
        found = self.predictor.ask(look, asked(cell.class_name))
        setting = part.setting or self._setting(look)
        row = _row(name, record, look, found, self.predictor)
        if row.has_pixels:
            truth = truth_about(record, look, self.predictor.transform, setting.mask_rule, self.saturated)
            part.pixels.add(*truth)
            part.examples.offer(name, record.is_anomalous, photo, truth.mask, look)
        part.rows.append(row)  # last: a photo that has a row is not measured again
        part.setting = setting

    def _setting(self, look: Look) -> Setting:
        rule = choose_mask_rule(self.settings.kind, self.settings.official, self.settings.resolution)
        return Setting(self.predictor.transform.geometry, look.model_map.shape[-1], rule, self.saturated)

    def _name(self, record: ImageRecord) -> str:
        return photo_name(record, self.settings.root)

    def _require_same_photos(self, done: Measured, photos: dict[str, ImageRecord]) -> None:
        measured = Counter(row.photo for row in done.rows)
        other = sorted(measured.keys() ^ photos.keys())
        if other:
            raise UserError(
                f"{self.state.folder.parent}: holds a run on other photos ({first_offenders(other)}); "
                f"name another --out, or delete {self.state.folder} to start anew"
            )
        if max(measured.values()) > 1 or done.pixels.photos != sum(row.has_pixels for row in done.rows):
            raise UserError(
                f"{self.state.folder}: photos were counted twice or by half, as when two runs write there at once; "
                f"delete it to start anew"
            )


def asked(class_name: str) -> str:
    """The question that each photo is asked: the one that users are given for a named class."""
    return detection_question(class_name, with_description=False)


def _row(name: str, record: ImageRecord, look: Look, found: Prediction, predictor: Predictor) -> PhotoRow:
    said = parse_verdict(found.answer)
    named = parse_positions(found.answer)
    positions, holds = _positions(record, look, predictor, named)
    return PhotoRow(
        photo=name,
        defect=record.defect,
        is_anomalous=record.is_anomalous,
        has_pixels=not record.is_anomalous or record.mask is not None,
        score=look.score,
        threshold=look.threshold,
        probability=look.probability,
        verdict=found.is_anomalous,
        verdict_from=found.verdict_from,
        answer=found.answer,
        said=said,
        # Where the score won over the language model, the answer was given again, to agree with the score.
        own_said=said if found.answer_agrees else not look.is_anomalous,
        positions=positions,
        named=named,
        named_holds_defect=holds if said else None,
    )


def _positions(
    record: ImageRecord, look: Look, predictor: Predictor, named: tuple[str, ...]
) -> tuple[tuple[str, ...], bool | None]:
    """Where the defects are, on the photo as the model was shown it, and whether the first position named holds any."""
    if record.mask is None:
        return (), None
    mask = on_map(load_mask(record), predictor.transform, look.model_map.shape[-1], "as_seen")
    if not mask.any():
        return (), None
    return positions_of(mask), bool(named) and marks_position(mask, named[0])

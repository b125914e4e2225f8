"""How photos are talked about in training: what the conversations of a data set have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from anomalygpt.datasets.class_card import ClassCard, card_of
from anomalygpt.datasets.dialogue import DESCRIPTION_SHARE, Turn, conversation, defect_sentence, draw_language


@dataclass(frozen=True)
class Wording:
    """The choices that turn a class and its defects into a conversation.

    vary: draws the wording of questions; without it each conversation is the paper's single turn. follow_up: adds up
    to two more turns. languages: en or zh; one is drawn for each photo, a language that is named twice twice as often.
    description_share: how often a varied question says what a good part looks like. cards: what is known of classes
    beyond the tables, by their names.
    """

    vary: bool = True
    follow_up: bool = True
    languages: tuple[str, ...] = ("en",)
    description_share: float = DESCRIPTION_SHARE
    cards: Mapping[str, ClassCard] = field(default_factory=dict)

    def card(self, class_name: str) -> ClassCard:
        """What is known of a class; a blank card where nothing is."""
        return card_of(class_name, self.cards)

    def turns(
        self, class_name: str, positions: Sequence[str], share: float, defect: str | None, rng: np.random.Generator
    ) -> tuple[Turn, ...]:
        """A conversation about one photo.

        positions: one name a defect, none for a normal photo. share: of the photo's area that is marked, 0..1.
        defect: its name, empty for a normal photo; None where it has none, and then nobody asks for its kind.
        """
        language = draw_language(self.languages, rng)
        return conversation(
            class_name,
            positions,
            share,
            rng if self.vary else None,
            self.follow_up,
            language,
            self.description_share,
            words=self.card(class_name).words(language),
            defect=defect and defect_sentence(class_name, defect, language),
        )

"""Conversations about drawn findings as training samples: what they depend on, and what they never show."""

import numpy as np
import pytest
import torch

from anomalygpt.config.load import load_config
from anomalygpt.datasets.build import build_findings
from anomalygpt.datasets.findings_dialogue import FindingsBatch, FindingsConversations, draw_map


def test_a_sample_depends_on_seed_split_epoch_and_index_alone():
    first, again = (FindingsConversations(8, 16, seed=1)[3] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first[:2], again[:2], strict=True)) and first[2] == again[2]
    other_epoch = FindingsConversations(8, 16, seed=1)
    next_one = other_epoch[4]
    other_epoch.set_epoch(1)
    others = (other_epoch[3], next_one, FindingsConversations(8, 16, seed=2)[3])
    for embedding, _, turns in (*others, FindingsConversations(8, 16, seed=1, split="held_out")[3]):
        assert turns != first[2] and not torch.equal(embedding, first[0])


def test_a_batch_holds_unit_embeddings_maps_and_alternating_turns():
    data = FindingsConversations(24, 16, seed=0)
    batch = FindingsBatch.of([data[index] for index in range(24)])
    assert batch.embeddings.shape == (24, 16)
    assert torch.allclose(batch.embeddings.norm(dim=1), torch.ones(24))
    assert batch.maps.shape == (24, 1, 224, 224)
    assert batch.maps.dtype == batch.embeddings.dtype == torch.float32
    assert batch.maps.min() >= 0 and batch.maps.max() <= 1
    for turns in batch.conversations:
        assert [turn.role for turn in turns] == ["human", "assistant"] * (len(turns) // 2)
        assert turns[0].text.startswith("Findings: ")
        assert all("Findings: " not in turn.text for turn in turns[1:])


def test_a_defect_s_map_stands_out_and_a_good_one_s_does_not():
    rng = np.random.default_rng(0)
    good, defective = ([draw_map(bad, rng) for _ in range(40)] for bad in (False, True))
    assert max(drawn.max() - np.median(drawn) for drawn in good) < 0.3
    assert np.median([drawn.max() - np.median(drawn) for drawn in defective]) > 0.4


@pytest.mark.parametrize(("languages", "chinese"), [("[en]", 0), ("[zh]", 1), ("[en, zh]", 0.5)])
def test_the_config_gives_size_wordings_and_languages(languages, chinese):
    config = load_config("train_compact_3_words", ["data.findings=200", f"data.languages={languages}"])
    train, held_out = build_findings(config.data, 16, config.seed)
    assert (len(train), len(held_out)) == (200, 2)
    assert (train.split, held_out.split, train.chinese) == ("train", "held_out", chinese)
    answers = [train[index][2][1].text for index in range(60)]
    assert abs(np.mean([not text.isascii() for text in answers]) - chinese) < 0.2
    assert build_findings(config.data.model_copy(update={"validation_share": 0.0}), 16, 0)[1] is None

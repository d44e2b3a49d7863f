"""Memory with concepts: what is hidden changes nothing, what is there changes something."""

import dataclasses

import numpy as np
import pytest
import torch

from ddcap.data.concepts import NO_CONCEPT, ConceptTokens, ConceptVocabulary
from ddcap.model.autoregressive import AutoregressiveModel
from ddcap.model.concepts import ConceptEmbedding
from ddcap.model.ddcap import DDCapModel
from ddcap.model.features import ImageFeatures

WORDS = ("cat", "cup", "woman", "dog")


@pytest.fixture(params=["diffusion", "autoregressive"])
def seeing(request, config, perturbed, tiny_tokenizer):
    """A random model of either kind that sees concepts, and a function from features to its hidden states."""
    model = dataclasses.replace(config.model, length_difference=True)
    if request.param == "autoregressive":
        off = dict.fromkeys(["length_prediction", "concentrated_attention", "length_difference"], False)
        model = dataclasses.replace(model, kind="autoregressive", **off)
    config = dataclasses.replace(
        config, model=model, concepts=len(WORDS), vocabulary_size=tiny_tokenizer.vocabulary_size
    )
    kind = DDCapModel if request.param == "diffusion" else AutoregressiveModel
    made = perturbed(kind, config)
    made.set_vocabulary(ConceptVocabulary(WORDS, {}), tiny_tokenizer)
    tokens = torch.tensor([[3, 5, 7, 9], [4, 6, 8, 2]])

    @torch.no_grad()
    def hidden(features, use_image=None):
        if isinstance(made, AutoregressiveModel):
            return made(tokens, features, use_image)
        noised = tokens.clone()
        noised[:, 1] = made.mask_id
        keys_values = made.project_memory(features, use_image)
        return made(noised, torch.tensor([3, 5]), torch.tensor([4, 4]), keys_values)

    return made, hidden


@pytest.fixture
def concepts():
    return ConceptTokens(torch.tensor([[2, 0], [1, NO_CONCEPT]]), torch.tensor([[0.9, 0.31], [0.5, 0.0]]))


def test_a_hidden_image_counts_as_none(seeing, features, concepts):
    _, hidden = seeing
    both = dataclasses.replace(features, concepts=concepts)
    alone = ImageFeatures(None, None, concepts)
    hides = torch.tensor([False, True])
    torch.testing.assert_close(hidden(both, hides)[0], hidden(alone)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden(both, hides)[1], hidden(both)[1], rtol=1e-5, atol=1e-5)
    assert (hidden(both)[0] - hidden(alone)[0]).abs().max() > 1e-2


def test_rows_without_a_concept_change_nothing(seeing, features, concepts):
    _, hidden = seeing
    wider = ConceptTokens(
        torch.cat([concepts.ids, torch.full((2, 3), NO_CONCEPT)], dim=1),
        torch.cat([concepts.confidences, torch.full((2, 3), 0.7)], dim=1),
    )
    both = hidden(dataclasses.replace(features, concepts=concepts))
    torch.testing.assert_close(
        hidden(dataclasses.replace(features, concepts=wider)), both, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("change", ["ids", "confidences"])
def test_another_concept_and_another_confidence_are_seen(seeing, concepts, change):
    _, hidden = seeing
    changed = {
        "ids": torch.where(concepts.ids == NO_CONCEPT, NO_CONCEPT, 3 - concepts.ids),
        "confidences": concepts.confidences / 2,
    }
    other = dataclasses.replace(concepts, **{change: changed[change]})
    first, second = (hidden(ImageFeatures(None, None, one)) for one in (concepts, other))
    assert (first - second).abs().max() > 1e-3


def test_the_order_of_concepts_does_not_matter(seeing, concepts):
    _, hidden = seeing
    turned = ConceptTokens(concepts.ids.flip(1), concepts.confidences.flip(1))
    first, second = (hidden(ImageFeatures(None, None, one)) for one in (concepts, turned))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_concept_embedding_is_stored_with_its_words(seeing, tmp_path, tiny_tokenizer):
    model, _ = seeing
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.vocabulary.words == WORDS
    assert np.array_equal(again.spelling.pieces, model.spelling.pieces)
    assert torch.equal(again.concept_embedding.pieces, model.concept_embedding.pieces)
    spelled = tiny_tokenizer.encode_part("cat")[:4]
    assert again.concept_embedding.pieces[0, : len(spelled)].tolist() == spelled


def test_confidence_is_interpolated_between_its_levels():
    embedding = ConceptEmbedding(2, 4)
    table = torch.randn(6, 4)
    shares = torch.tensor([[0.3, 0.34, 0.4, 0.0, 1.0]])
    out, there = embedding(ConceptTokens(torch.zeros(1, 5, dtype=torch.long), shares), table)
    assert there.all()
    levels = out[0] - embedding.from_tokens(table[0])
    torch.testing.assert_close(levels[1], 0.6 * levels[0] + 0.4 * levels[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(levels[3], embedding.levels[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(levels[4], embedding.levels[-1], rtol=1e-4, atol=1e-5)

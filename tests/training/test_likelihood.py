"""The loss of a batch against a slow one: caption by caption, word by word, from the model's own parts."""

import copy
import dataclasses

import pytest
import torch
from whole_pass import ar_pass

from ddcap.data.batches import collate
from ddcap.data.concepts import ConceptTokens, ConceptVocabulary
from ddcap.model.features import ImageFeatures
from ddcap.model.loading import build_model, load_model
from ddcap.training.loss import Noise, caption_loss

# two captions of each of three images
ROWS = [[5, 9, 3, 0], [7, 0], [4, 4, 8, 6, 2, 0], [3, 8, 0], [9, 0], [2, 6, 7, 3, 0]]


@pytest.fixture(scope="module")
def model(tiny_model_folder):
    return load_model(tiny_model_folder).eval()


@pytest.fixture(scope="module")
def ar(tiny_ar_folder):
    ar = load_model(tiny_ar_folder).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # as it comes, its images hardly matter
        for parameter in ar.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return ar


@pytest.fixture(scope="module")
def batch(model):
    generator = torch.Generator().manual_seed(1)
    encoder = model.encoder
    features = [
        (
            torch.randn(encoder.memory_positions, encoder.memory_width, generator=generator),
            torch.randn(encoder.summary_width, generator=generator),
        )
        for _ in range(3)
    ]
    return collate(ROWS, ["one", "two", "three"], padding_id=0, features=features)


@pytest.fixture(scope="module")
def features(batch):
    return ImageFeatures(batch.memory, batch.summary)


@pytest.fixture(scope="module")
def noise(model):
    generator = torch.Generator().manual_seed(2)
    return Noise(
        image=torch.tensor([0.1, 0.9, 0.3]),
        timestep=torch.tensor([[3, 15], [9, 19], [0, 12]]),
        uniform=torch.rand(3, 2, 20, generator=generator),
        replacement=torch.randint(model.config.vocabulary_size, (3, 2, 20), generator=generator),
    )


def slow_word_losses(logits, words, smoothing):
    """-log p of each word; smoothed, the share `smoothing` of its weight is spread over all words."""
    losses = []
    for scores, word in zip(logits.double(), words, strict=True):
        log_probabilities = scores - scores.exp().sum().log()
        everything = -sum(log_probabilities) / len(log_probabilities)
        losses.append((1 - smoothing) * -log_probabilities[word] + smoothing * everything)
    return losses


def slow_loss(model, features, noise, dropped, smoothing):
    """Token and length loss of ROWS, where `dropped` says which of the images are not seen."""
    schedule = model.schedule
    token_losses, length_losses = [], []
    for row, words in enumerate(ROWS):
        image, caption = divmod(row, 2)
        t = int(noise.timestep[image, caption])
        noised = []
        for place, word in enumerate(words):
            uniform, other = (
                numbers[image, caption, place] for numbers in (noise.uniform, noise.replacement)
            )
            if uniform < schedule.cumulative_mask[t]:
                noised.append(model.mask_id)
            elif uniform < schedule.cumulative_mask[t] + model.mask_id * schedule.cumulative_replace[t]:
                noised.append(int(other))
            else:
                noised.append(word)
        own = ImageFeatures(features.memory[image : image + 1], features.summary[image : image + 1])
        seen = model.image_free_keys_values() if dropped[image] else model.project_memory(own)
        hidden = model(torch.tensor([noised]), torch.tensor([t]), torch.tensor([len(words)]), seen)
        logits = hidden[0] @ model.denoiser.token_embedding.weight.T
        token_losses += slow_word_losses(logits, words, smoothing)
        probabilities = model.length_logits(own)[0].double().softmax(dim=0)
        length_losses.append(-probabilities[len(words) - 1].log())  # class k means k + 1 tokens
    return sum(token_losses) / len(token_losses), sum(length_losses) / len(length_losses)


def assert_close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize(
    ("probability", "dropped"),
    [
        (0.0, [False, False, False]),
        (0.2, [True, False, False]),  # an image's number is under p with probability p
        (0.3, [True, False, False]),
        (0.5, [True, False, True]),
        (1.0, [True, True, True]),
    ],
)
def test_loss_equals_a_slow_loop(model, batch, features, noise, probability, dropped, smoothing):
    losses = caption_loss(
        model, batch, features, noise, image_free_probability=probability, label_smoothing=smoothing
    )
    token, length = slow_loss(model, features, noise, dropped, smoothing)
    assert_close(losses.token, token)
    assert_close(losses.length, length)
    with torch.no_grad():  # as validation computes it
        again = caption_loss(
            model, batch, features, noise, image_free_probability=probability, label_smoothing=smoothing
        )
    torch.testing.assert_close(again.token, losses.token.detach())


def test_the_slow_loop_tells_mistakes_apart(model, features, noise):
    one, *others = [
        slow_loss(model, features, noise, dropped, smoothing)[0].item()
        for dropped, smoothing in [
            ([True, False, True], 0.2),
            ([False, True, False], 0.2),
            ([False, False, False], 0.2),
            ([True, False, True], 0.0),
        ]
    ]
    assert all(abs(one - other) > 0.01 for other in others)


def test_images_that_are_dropped_are_learned_by_the_image_free_memory(model, batch, features, noise):
    for probability, is_learned in [(0.0, False), (0.5, True)]:
        model.zero_grad()
        caption_loss(model, batch, features, noise, image_free_probability=probability).token.backward()
        gradient = model.image_free_memory.grad
        assert (gradient is not None and bool(gradient.any())) == is_learned


@pytest.mark.parametrize("padding", ["hidden", "noised", "known"])
def test_a_captions_loss_does_not_depend_on_its_batch(model, batch, noise, padding):
    """Also where words attend to padding: there is as much of it, however long the others are."""
    changes = {"padding": padding, "concentrated_attention": False}
    seen = copy.deepcopy(model)
    seen.config = dataclasses.replace(model.config, model=dataclasses.replace(model.config.model, **changes))
    total = 0.0
    for number in range(3):
        rows = ROWS[2 * number : 2 * number + 2]
        alone = collate(rows, ["one"], padding_id=0, features=[(batch.memory[number], batch.summary[number])])
        features = ImageFeatures(alone.memory, alone.summary)
        total += caption_loss(seen, alone, features, noise.of([number], model.device)).token * sum(
            map(len, rows)
        )
    together = caption_loss(seen, batch, ImageFeatures(batch.memory, batch.summary), noise).token
    torch.testing.assert_close(together, total / sum(map(len, ROWS)))


def test_captions_without_images_see_the_image_free_memory(model, batch, features, noise):
    losses = caption_loss(model, batch, None, noise)
    assert_close(losses.token, slow_loss(model, features, noise, [True] * 3, 0.0)[0])
    assert float(losses.length) == 0


def test_without_a_length_head_there_is_no_length_loss(model, batch, features, noise):
    with_head = caption_loss(model, batch, features, noise)
    assert_close(
        with_head.token, slow_loss(model, features, noise, [False] * 3, 0.0)[0]
    )  # nothing is dropped
    headless = copy.deepcopy(model)
    headless.length_head = None
    losses = caption_loss(headless, batch, features, noise)
    assert float(losses.length) == 0 and not losses.length.requires_grad
    torch.testing.assert_close(losses.token, with_head.token)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_of_an_autoregressive_model(ar, batch, features, smoothing):
    """Against its step by step form, which decoding uses."""
    token_losses = []
    for row, words in enumerate(ROWS):
        image = row // 2
        own = ImageFeatures(features.memory[image : image + 1], features.summary[image : image + 1])
        seen = ar.project_memory(own)
        logits, past = ar.first_logits(1, seen)
        for word in words:
            token_losses += slow_word_losses(logits, [word], smoothing)
            logits, past = ar.next_logits(torch.tensor([word]), seen, past)
    losses = caption_loss(ar, batch, features, None, label_smoothing=smoothing)
    assert_close(losses.token, sum(token_losses) / len(token_losses))
    assert float(losses.length) == 0
    others = ImageFeatures(features.memory.flip(0), features.summary)
    changed = caption_loss(ar, batch, others, None, label_smoothing=smoothing)
    assert abs(float(changed.token.detach() - losses.token.detach())) > 0.01


def test_an_autoregressive_model_with_concepts_does_without_a_dropped_image(ar, tiny_tokenizer, batch, noise):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        seeing = build_model(dataclasses.replace(ar.config, concepts=3)).eval()
        for parameter in seeing.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    seeing.set_vocabulary(ConceptVocabulary(("cat", "cup", "dog"), {}), tiny_tokenizer)
    concepts = ConceptTokens(torch.tensor([[2, 0], [1, 2], [0, 1]]), torch.tensor([[0.9, 0.3]] * 3))
    token_losses = []
    for row, words in enumerate(ROWS):
        image = slice(row // 2, row // 2 + 1)
        own = ConceptTokens(*(part[image] for part in vars(concepts).values()))
        is_dropped = noise.image[image] < 0.5
        features = (None, None) if is_dropped else (batch.memory[image], batch.summary[image])
        logits = ar_pass(seeing, torch.tensor([words]), ImageFeatures(*features, own))[0]
        token_losses += slow_word_losses(logits, words, 0.0)
    both = ImageFeatures(batch.memory, batch.summary, concepts)
    losses = caption_loss(seeing, batch, both, noise, image_free_probability=0.5)
    assert_close(losses.token, sum(token_losses) / len(token_losses))
    seen = caption_loss(seeing, batch, both, noise)
    assert abs(float(seen.token.detach() - losses.token.detach())) > 0.01


def test_padding_counts_for_nothing(model, batch, features, noise):
    padded = dataclasses.replace(batch, tokens=batch.tokens.masked_fill(batch.tokens == 0, 11))
    padded.tokens[torch.arange(6), batch.lengths - 1] = 0
    assert not torch.equal(padded.tokens, batch.tokens)
    for first, second in zip(
        caption_loss(model, batch, features, noise)[:2],
        caption_loss(model, padded, features, noise)[:2],
        strict=True,
    ):
        torch.testing.assert_close(first, second)

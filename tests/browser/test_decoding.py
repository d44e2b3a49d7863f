"""The page's decoding against Python's: the same numbers in, the same captions out."""

import base64

import numpy as np
import pytest
from safetensors.numpy import save

from ddcap import Captioner
from ddcap.data.concepts import ConceptSpelling
from ddcap.data.persons import Persons
from ddcap.decoding.allowed_tokens import Vocabulary
from ddcap.decoding.constraints import Constraints, normalised, words_of
from ddcap.decoding.predictor import ConceptEvidence, Predictor
from ddcap.decoding.pruning import Pruning
from ddcap.decoding.sampler import Drafts, denoise
from ddcap.decoding.schedulers.best_first import BestFirstScheduler
from ddcap.decoding.trace import evidence
from ddcap.decoding.words import words_in
from ddcap.model.quantization import quantise_state
from ddcap.model.step_request import StepRequest


@pytest.fixture(scope="module")
def captioner():
    return Captioner.from_pretrained(precision="float32")


@pytest.fixture(scope="module")
def pieces(captioner):
    tokenizer = captioner.tokenizer
    return {"pieces": tokenizer.pieces(range(tokenizer.vocabulary_size)), "end_id": tokenizer.end_id}


@pytest.fixture(scope="module")
def captions(captioner):
    """Random tokens, some of them MASK, some the end; and real captions."""
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, captioner.tokenizer.vocabulary_size + 1, 12).tolist() for _ in range(300)]
    for row in rows[::3]:
        row[int(generator.integers(0, 12))] = captioner.tokenizer.end_id
    texts = [
        "a snowboarder catches air beside two dogs",
        "t-shirts and a cat's toy",
        "catch the cat",
        "doghouse",
    ]
    return rows + [captioner.tokenizer.encode(text) for text in texts]


def test_tokens_spell_the_same_text(node, captioner, pieces, captions):
    code = """
const { Vocabulary } = await page("tokens.js");
const vocabulary = new Vocabulary(data.tokens);
tell(data.rows.map((ids) => [vocabulary.decode(ids), vocabulary.wordsIn(ids)]));
"""
    tokenizer = captioner.tokenizer
    found = node(code, tokens=pieces, rows=captions)
    assert [text for text, _ in found] == [tokenizer.decode(ids) for ids in captions]
    assert [words for _, words in found] == [words_in(ids, tokenizer) for ids in captions]


def test_texts_become_the_same_tokens(node, captioner):
    code = """
const { Vocabulary } = await page("tokens.js");
const vocabulary = new Vocabulary(data.tokens);
tell(data.texts.map((text) => vocabulary.encode(text)));
"""
    from ddcap.browser.export import _tokens

    texts = [
        *sorted(captioner.model.vocabulary.forms),
        "A man's café -- and the t-shirts, 24 zebras 'quoted' -",
        "supercalifragilistic snow-boarders",
        "",
    ]
    found = node(code, tokens=_tokens(captioner.tokenizer), texts=texts)
    assert len(texts) > 1000
    assert found == [captioner.tokenizer.encode_part(text) for text in texts]


def test_texts_are_compared_alike(node, captioner, pieces):
    code = """
const { plain, wordsOf, Vocabulary } = await page("tokens.js");
const { patternOf } = await page("constrained.js");
const vocabulary = new Vocabulary(data.tokens);
const pattern = patternOf(data.ban);
tell({
  words: data.texts.map((text) => [plain(text), wordsOf(text)]),
  banned: data.plain.map((text) => pattern.test(text)),
  usable: vocabulary.isUsable,
  begins: vocabulary.begins,
});
"""
    texts = ["A man's Café", "ÅNGSTRÖM naïve", "man-made, woman", "the 2nd dog", "ﬁre  İstanbul"]
    plain = [
        "a man stands",
        "a woman",
        "man-made",
        "man",
        "a picture\0 of",
        "a picture of it",
        "manly",
        "a\0man",
    ]
    ban = ("Man", "a picture of", "dog-house")
    found = node(code, texts=texts, ban=ban, plain=plain, tokens=pieces)
    assert found["words"] == [[normalised(text), words_of(text)] for text in texts]
    pattern, vocabulary = Constraints(ban=ban).pattern, Vocabulary(captioner.tokenizer)
    assert found["banned"] == [pattern.search(text) is not None for text in plain]
    assert found["usable"] == vocabulary.usable.tolist() and found["begins"] == vocabulary.begins.tolist()


@pytest.mark.parametrize(("persons", "absence"), [(None, 0.0), (-2.5, 0.0), (1.7, 0.5), (None, 1.5)])
def test_concept_scores_equal_pythons(node, captioner, captions, photos, persons, absence):
    code = """
const { Concepts, Evidence, seenIn } = await page("concepts.js");
const concepts = new Concepts(data.concepts, data.mask);
const evidence = new Evidence(seenIn(data.ids, data.shares), concepts, data.settings, data.persons);
tell(data.rows.map((ids) => {
  const added = new Float32Array(data.mask);
  evidence.addTo(added, ids);
  const places = [...added.keys()].filter((token) => added[token] !== 0);
  const named = [...concepts.named(ids)].sort((one, other) => one - other);
  return [named, places.map((token) => [token, added[token]]), evidence.said(ids)];
}));
"""
    from ddcap.browser.export import _spelling

    model = captioner.model
    seen = captioner.features([photos[0]]).concepts
    spelling = ConceptSpelling.of(model.vocabulary, captioner.tokenizer)
    concepts = {
        "words": model.vocabulary.words,
        "forms": model.vocabulary.forms,
        "persons": np.flatnonzero(spelling.persons).tolist(),
        "rates": {"prior": spelling.prior.tolist(), "unlisted": spelling.unlisted.tolist()},
        **_spelling(spelling),
    }
    settings = {"concept_bonus": 4.0, "repeat_penalty": 1.0, "absence": absence, "persons": 0.75}
    found = node(
        code,
        rows=captions,
        concepts=concepts,
        mask=model.mask_id,
        ids=seen.ids[0].tolist(),
        shares=seen.confidences[0].tolist(),
        settings=settings,
        persons=persons,
    )
    told = None
    if persons is not None:
        numbers = np.array([persons], dtype=np.float32)
        told = Persons(numbers, numbers, numbers, numbers)
    weights = {"bonus": 4.0, "repeat_penalty": 1.0, "absence": absence, "persons_weight": 0.75}
    evidence = ConceptEvidence.of(seen, spelling, model.mask_id, persons=told, **weights)
    some_named = 0
    for ids, (named, added, said) in zip(captions, found, strict=True):
        tokens = np.array([ids])
        expected = np.nonzero(spelling.named(tokens, model.mask_id)[0])[0].tolist()
        some_named += bool(expected)
        assert named == expected, ids
        wanted = evidence.log_probability(tokens)[0]
        assert [token for token, _ in added] == np.nonzero(wanted)[0].tolist()
        np.testing.assert_allclose([value for _, value in added], wanted[wanted != 0], rtol=1e-5, atol=1e-5)
        assert said == pytest.approx(float(evidence.said(tokens)[0]), abs=1e-5)
    assert some_named > 50


STEPS = """
const { decodeBestFirst } = await page("best_first.js");
const told = [];
const predictor = { maskId: data.mask, predict: (tokens, timesteps, lengths, asked) => {
  told.push({ tokens, timesteps, lengths, asked });
  return data.recorded[told.length - 1];
} };
const { tokens, lengths, settings, diffusionSteps } = data;
const rows = await decodeBestFirst(predictor, tokens, lengths, settings, { diffusionSteps });
const places = (steps) => steps.map((guesses) => guesses.map(({ position }) => position));
const plain = ({ tokens, confidences, steps }) => ({ tokens, confidences, steps: places(steps) });
tell({ told, rows: rows.map(plain) });
"""


class Recorder:
    """A denoiser that records what it is asked and what it says, to be played back to the page."""

    self_conditions = False

    def __init__(self, own):
        self.own, self.vocabulary_size = own, own.vocabulary_size
        self.recorded, self.asked = [], []

    def likeliest(self, tokens, timestep, lengths, positions, added, scale):
        chosen, log_probability = self.own.likeliest(tokens, timestep, lengths, positions, added, scale)
        asked, recorded = [], []
        for row, own in enumerate(positions):  # some have a position several times; the page has it once
            places, first = np.unique(own, return_index=True)
            found = {"chosen": chosen[row, first], "logProbability": log_probability[row, first]}
            asked.append(places.tolist())
            recorded.append({name: values.tolist() for name, values in found.items()})
        self.recorded.append(recorded)
        self.asked.append([*(one.tolist() for one in (tokens, timestep, lengths)), asked])
        return chosen, log_probability

    def looks_at_all(self, mask_id):
        """Whether every MASK was predicted in every step."""
        blanks = sum(row.count(mask_id) for tokens, *_ in self.asked for row in tokens)
        return blanks == sum(len(row) for *_, asked in self.asked for row in asked)


@pytest.mark.parametrize(
    ("steps", "settings"),
    [
        (10, {"distinct": True}),
        (4, {"distinct": True}),
        (4, {"distinct": False}),
        (None, {"distinct": True}),
        (1, {"distinct": True}),
        (None, {"distinct": False}),
        (10, {"distinct": True, "focus": 3}),
        (10, {"distinct": True, "focus": 1}),
        (10, {"distinct": False, "focus": 3}),
        (4, {"distinct": True, "focus": 3}),
        (None, {"distinct": True, "focus": 2}),
        (None, {"distinct": False, "focus": 1}),
    ],
)
def test_best_first_steps_on_recorded_numbers(node, captioner, photos, steps, settings):
    """What the default's graphs say of a photograph, recorded in Python and played back to the page."""
    model = captioner.model
    recorder = Recorder(model.denoising_steps(captioner.features([photos[1]]), with_image_free=False))
    lengths = np.array([11, 12, 10, 13, 9])
    tokens = np.where(np.arange(13) < lengths[:, None], model.mask_id, 0)
    tokens[2, 3] = captioner.tokenizer.encode_part("dog")[0]
    scheduler = BestFirstScheduler(model.config.diffusion.steps, model.mask_id, **settings)
    result = denoise(Predictor(recorder, lengths), Drafts(tokens, lengths, 5), scheduler, steps)
    found = node(
        STEPS,
        mask=model.mask_id,
        recorded=recorder.recorded,
        tokens=tokens.tolist(),
        lengths=lengths.tolist(),
        settings={"steps": steps, **settings},
        diffusionSteps=model.config.diffusion.steps,
    )
    assert recorder.looks_at_all(model.mask_id) == ("focus" not in settings)
    assert [[*one.values()] for one in found["told"]] == recorder.asked
    assert [row["tokens"] for row in found["rows"]] == result.tokens.tolist()
    np.testing.assert_allclose([row["confidences"] for row in found["rows"]], result.confidences, rtol=1e-6)
    for number, row in enumerate(found["rows"]):
        for step, positions in enumerate(row["steps"]):
            changed = np.nonzero(result.history[step, number] != result.history[step + 1, number])[0]
            assert sorted(positions) == changed.tolist()


PRUNED = """
const { decodeBestFirst } = await page("best_first.js");
const { Pruning } = await page("pruning.js");
let step = 0;
const predictor = { maskId: data.mask, predict: () => data.recorded[step++] };
const { tokens, lengths, settings, diffusionSteps } = data;
const score = ({ length, confidences }) =>
  confidences.slice(0, length).reduce((sum, value) => sum + Math.log(value), 0) / length ** 1.2;
const pruning = new Pruning(data.prune, score);
const told = { dropped: [], listed: [] };
const follower = { drops: (rows) => pruning.drops(rows), step: (rows) => {
  pruning.step(rows);
  told.dropped.push([...pruning.dropped].sort());
  const isMask = ({ tokens, predicted }) => predicted.every(({ position }) => tokens[position] === data.mask);
  const listed = rows.filter(({ predicted }) => predicted !== undefined);
  told.listed.push(listed.length > 0 && listed.every(isMask));
  for (const one of rows) delete one.predicted;
} };
await decodeBestFirst(predictor, tokens, lengths, settings, { diffusionSteps, pruning: follower });
tell(told);
"""


@pytest.mark.parametrize("settings", [{}, {"focus": 1}, {"focus": 3}])
@pytest.mark.parametrize("prune", [[], [4, 4, 2], [3, 3, 3, 1], [2]])
def test_pruning_keeps_pythons_candidates(node, captioner, photos, prune, settings):
    """After each step of a photograph's candidates, on numbers recorded in Python."""
    model = captioner.model
    recorder = Recorder(model.denoising_steps(captioner.features([photos[2]]), with_image_free=False))
    dropped = []

    class Told(Pruning):
        def step(self, predicted):
            super().step(predicted)
            dropped.append(np.flatnonzero(~self.survives).tolist())

    lengths = np.array([11, 12, 10, 13, 9])
    tokens = np.where(np.arange(13) < lengths[:, None], model.mask_id, 0)
    pruning = Told(prune or (5,), 5, 5, lambda _, sure: evidence(sure, lengths, 1.2), wanted=5)
    settings = {"distinct": True, **settings}
    scheduler = BestFirstScheduler(model.config.diffusion.steps, model.mask_id, **settings)
    denoise(Predictor(recorder, lengths), Drafts(tokens, lengths, 5), scheduler, 10, pruning=pruning)
    found = node(
        PRUNED,
        mask=model.mask_id,
        recorded=recorder.recorded,
        tokens=tokens.tolist(),
        lengths=lengths.tolist(),
        settings={"steps": 10, **settings},
        diffusionSteps=model.config.diffusion.steps,
        prune=prune,
    )
    assert found["dropped"] == dropped and len(dropped) >= 10
    assert len(dropped[-1]) == 5 - (prune[-1] if prune else 5)
    drops = [len(now) > len(before) for before, now in zip([[], *dropped], dropped, strict=False)]
    assert found["listed"] == drops  # predictions are listed where candidates are dropped only


@pytest.mark.parametrize("hidden", [9, None])
def test_a_step_computes_what_pythons_does(node, hidden):
    code = """
const { placesOf } = await page("step_request.js");
tell(data.all.map(([tokens, lengths, asked]) => placesOf(tokens, lengths, asked, data.hidden)));
"""
    generator, batches, expected = np.random.default_rng(0), [], []
    for _ in range(20):
        tokens, lengths = generator.integers(0, 10, (4, 7)), generator.integers(1, 8, 4)
        first = generator.integers(0, 7, 4)
        more = generator.integers(0, 7, (4, 3)) * generator.integers(0, 2, (4, 3))
        positions = np.maximum(first[:, None], more)  # some twice, so that captions have unequal numbers
        request, _ = StepRequest.at(tokens, first, lengths, positions, hidden)
        asked = [np.unique(own).tolist() for own in positions]
        batches.append([tokens.tolist(), lengths.tolist(), asked])
        expected.append({"rows": request.rows.tolist(), "asked": request.asked.tolist()})
    assert node(code, all=batches, hidden=hidden) == expected


def test_weights_are_unpacked_as_in_python(node):
    code = """
const { Tensors } = await page("weights.js");
const bytes = Buffer.from(data.file, "base64");
const tensors = new Tensors(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
const graph = { bytes: data.size, constants: data.constants };
tell(Buffer.from(tensors.constantsOf(graph)).toString("base64"));
"""
    generator = np.random.default_rng(0)
    large = generator.standard_normal((300, 256)).astype(np.float32) * generator.random((300, 1), np.float32)
    large[7] = 0
    state = {"large": large, "small": generator.standard_normal((40, 5)).astype(np.float32)}
    state["tiny"] = np.array([6e-8, -3e-5, 65504, np.inf, -0.0, 1 / 3], np.float32).reshape(2, 3)
    stored = {**quantise_state(state), "plain": large, "numbers": np.arange(10)}
    whole = stored["large"].astype(np.float32) * stored["large#scale"][:, None]
    wanted = [
        (("large", "value", False), whole),
        (("large", "value", True), whole.T),
        (("plain", "value", True), large.T),
        (("small", "value", True), stored["small"].astype(np.float32).T),
        (("tiny", "value", False), stored["tiny"].astype(np.float32)),
        (("numbers", "value", False), stored["numbers"]),
    ]
    constants, offset, expected = [], 0, b""
    for constant, value in wanted:
        constants.append([*constant, offset])
        content = np.ascontiguousarray(value).tobytes()
        expected += content
        offset += len(content)
    file = base64.b64encode(save(stored)).decode()
    found = base64.b64decode(node(code, file=file, size=offset, constants=constants))
    for (name, form, _, start), (_, value) in zip(constants, wanted, strict=True):
        size = value.size * value.itemsize
        assert found[start : start + size] == expected[start : start + size], (name, form)

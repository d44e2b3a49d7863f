"""The plugs of the one sampler: another scheduler, a judge, an editor, somebody who watches."""

import numpy as np
import pytest
import torch

from ddcap.arrays import to_host
from ddcap.captioner import Captioner
from ddcap.decoding.caption import build_captions
from ddcap.decoding.finishing import Candidates, finish
from ddcap.decoding.generate import constrained_captions, start_tokens, whole_captions
from ddcap.decoding.infilling import infill, parse_template
from ddcap.decoding.sampler import Drafts, Sampler, denoise
from ddcap.decoding.schedulers.interface import SchedulerOutput
from ddcap.settings import DecodingSettings

END = 0
SETTINGS = DecodingSettings(candidates=4)


def sampler_of(model, features, settings=SETTINGS, **more):
    return Sampler(model, features, settings, END, **more)


@pytest.fixture(scope="module")
def default():
    return Captioner.from_pretrained()


class RightToLeft:
    """A scheduler that is not the package's: the last MASK first, one a step."""

    reads_logits = False

    def set_timesteps(self, num_inference_steps, sample, lengths):  # noqa: ARG002
        self.left = to_host(sample == self.mask_id).sum(axis=1)
        self.timesteps = np.zeros((int(self.left.max()), len(self.left)), dtype=np.int64)

    def __init__(self, mask_id):
        self.mask_id = mask_id

    @property
    def is_done(self):
        return not self.left.any()

    @property
    def running(self):
        return self.left > 0

    def timestep(self):
        return np.minimum(self.left, 7)

    def positions(self, sample, rows):  # noqa: ARG002
        return torch.as_tensor(np.maximum(self.left[rows] - 1, 0))[:, None]

    def step(self, model_output, timestep, sample, rows, *, generator=None, allowed=None):  # noqa: ARG002
        probability = torch.zeros(sample.shape)
        probability.scatter_(1, model_output.positions, model_output.log_probability.exp())
        after = sample.scatter(1, model_output.positions, model_output.tokens)
        self.left = self.left - (self.left > 0)
        return SchedulerOutput(torch.where(sample == self.mask_id, after, sample), probability)


def test_a_new_scheduler_runs_in_the_same_loop(tiny_model, features):
    sampler = sampler_of(tiny_model, features)
    lengths = torch.tensor([6, 4, 5])
    drafts = Drafts(start_tokens(lengths, tiny_model.mask_id), lengths)
    result = denoise(sampler.predictor(drafts), drafts, RightToLeft(tiny_model.mask_id))
    assert (result.tokens != tiny_model.mask_id).all()
    assert [int((row == tiny_model.mask_id).sum()) for row in result.history[:, 0]] == [6, 5, 4, 3, 2, 1, 0]
    for step in range(6):
        assert (result.history[step + 1, 0, 5 - step :] != tiny_model.mask_id).all()
    assert (result.confidences[0] == result.step_confidences.amax(dim=0)[0]).all()


class Likes:
    """A judge that likes one token, and notes what it is shown."""

    def __init__(self, token, gain=1000.0):
        self.token, self.gain, self.seen = token, gain, []

    def score(self, tokens, lengths, features):
        self.seen.append((tokens, lengths, features))
        return self.gain * (tokens == self.token).any(axis=1).astype(np.float32)


class Shortest:
    """A judge to whom every token is improbable."""

    def score(self, tokens, lengths, features):  # noqa: ARG002
        return -1000.0 * (lengths**2).to(torch.float32)


def test_a_judge_ranks_candidates(tiny_model, features):
    plain, ruled = (
        whole_captions(sampler_of(tiny_model, features, judge=judge)) for judge in (None, Shortest())
    )
    assert torch.equal(plain.result.tokens, ruled.result.tokens)
    lengths = plain.result.lengths.view(3, 4)
    assert torch.equal(ruled.best().lengths, lengths.amin(dim=1))
    assert not torch.equal(plain.best().lengths, lengths.amin(dim=1))
    # its log-likelihood is divided by the tokens, as the sampler's
    own = plain.result.evidence(1.0)
    torch.testing.assert_close(ruled.scores, 0.5 * (own - 1000.0 * plain.result.lengths))
    squared = DecodingSettings(candidates=4, length_penalty=2.0)
    again = whole_captions(sampler_of(tiny_model, features, squared, judge=Shortest()))
    torch.testing.assert_close(again.scores, 0.5 * (again.result.evidence(2.0) - 1000.0))


def test_a_judge_ranks_constrained_and_infilled_captions(default, photos):
    features, tokenizer = default.features(photos[:1]), default.tokenizer
    sampler = Sampler(default.model, features, default.settings(), tokenizer.end_id)
    vocabulary = default.word_vocabulary
    found = constrained_captions(sampler, default_constraints(), vocabulary)
    rows = found.result.tokens.tolist()
    # a token that only another candidate than the best one has
    best = set(rows[found.row])
    token = next(word for ids in rows for word in ids if word not in best)
    judge = Likes(token)
    sampler = Sampler(default.model, features, default.settings(), tokenizer.end_id, judge=judge)
    assert token in rows[constrained_captions(sampler, default_constraints(), vocabulary).row]
    assert judge.seen[0][2] is features

    template = parse_template("a ___ in front of ___", tokenizer)
    arguments = (default.model, features, template, default.settings(exact_length=False), tokenizer.end_id)
    plain = infill(*arguments, tokenizer=tokenizer)
    rows = [set(row) for row in plain.result.tokens.tolist()]
    compared = np.flatnonzero(plain.scores > -np.inf)
    token = next(word for n in compared for word in rows[n] if word not in rows[plain.row])
    ruled = infill(*arguments, tokenizer=tokenizer, judge=Likes(token))
    assert token in rows[ruled.row] and token not in rows[plain.row]


def default_constraints():
    from ddcap.decoding.constraints import Constraints

    return Constraints(ban=("man",))


class Unsure:
    """An editor that hides the least sure words of each caption, so many times."""

    def __init__(self, times, below=1.0):
        self.times, self.below, self.seen = times, below, []

    def hide(self, result, rounds):
        self.seen.append(result)
        if rounds == self.times:
            return None
        lowest = result.confidences.min(axis=1, keepdims=True)
        return (
            result.confidences <= (lowest if isinstance(result.tokens, np.ndarray) else lowest.values)
        ) & (result.confidences < self.below)


def test_editing_keeps_what_scores_higher(tiny_model, features):
    plain = whole_captions(sampler_of(tiny_model, features))
    editor = Unsure(3)
    edited = whole_captions(sampler_of(tiny_model, features, editor=editor))
    before, after = plain.scores, edited.scores
    assert (after >= before).all() and (after > before).any()
    assert len(editor.seen) == 4
    for one, other in zip(editor.seen, editor.seen[1:], strict=False):
        assert (other.evidence() >= one.evidence()).all()
    is_same = after == before
    assert torch.equal(edited.result.tokens[is_same], plain.result.tokens[is_same])
    # the record holds together: it ends at the caption, and begins as before
    result = edited.result
    assert torch.equal(result.history[-1], result.tokens)
    assert torch.equal(result.history[: len(plain.result.history)], plain.result.history)
    assert len(result.history) == len(result.timesteps) + 1 == len(result.step_confidences) + 1


def test_an_edited_caption_has_a_trace_that_ends_at_it(tiny_model, features, tiny_tokenizer):
    edited = whole_captions(sampler_of(tiny_model, features, editor=Unsure(2))).result
    for caption in build_captions(edited, range(len(edited.tokens)), tiny_tokenizer):
        assert caption.trace.frames[-1] == caption.tokens
        assert all(event.token != " ▁" and event.probability > 0 for event in caption.trace.events)
        last = {event.position: event.probability for event in caption.trace.events}
        assert [last[place] for place in range(caption.length)] == list(caption.confidences)


def test_editing_hides_no_given_word(tiny_model, features, tiny_tokenizer):
    given = tiny_tokenizer.encode_part("dog")[0]
    lengths = torch.tensor([6, 6, 6])
    tokens = start_tokens(lengths, tiny_model.mask_id)
    tokens[:, 2] = given

    class Everything:
        def hide(self, result, rounds):
            return torch.ones_like(result.tokens, dtype=torch.bool) if rounds == 0 else None

    result = sampler_of(tiny_model, features, editor=Everything()).fill(Drafts(tokens, lengths))
    assert (result.history[:, :, 2] == given).all() and (result.confidences[:, 2] == 1).all()


def test_edited_captions_still_obey(default, photos):
    vocabulary, constraints = default.word_vocabulary, default_constraints()
    features = default.features(photos[:2])
    found = {}
    for editor in (None, Unsure(2)):
        sampler = Sampler(
            default.model, features, default.settings(), default.tokenizer.end_id, editor=editor
        )
        best = constrained_captions(sampler, constraints, vocabulary).best()
        found[editor] = finish([Candidates(best, 1, None)], default.tokenizer, images=2)
    for captions in found.values():
        assert not any("man" in caption.text.split() for (caption,) in captions)


def test_a_watcher_sees_every_step(default, photos):
    seen = []
    watched = Captioner(default.model, default.tokenizer, watch=lambda tokens: seen.append(tokens.copy()))
    (result,) = watched.caption_each([photos[0]], candidates=1, include=["dog"])
    (plain,) = default.caption_each([photos[0]], candidates=1, include=["dog"])
    assert result.captions[0].text == plain.captions[0].text
    left = [int((tokens == default.model.mask_id).sum()) for tokens in seen]
    assert len(left) == len(result.captions[0].trace.frames) + 1  # one look more, to place the word
    assert left == sorted(left, reverse=True) and left[-1] > 0

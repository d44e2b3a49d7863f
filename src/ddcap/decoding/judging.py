"""The model's judge at work: it scores finished captions, and says which of their words to write again.

Shapes: I images, C captions (a multiple of I, grouped by image), L positions.
"""

from __future__ import annotations

from ddcap.arrays import Array, array_namespace, device
from ddcap.decoding.trace import DecodingResult
from ddcap.model.features import ImageFeatures
from ddcap.model.protocol import CaptioningModel, CaptionJudge


class ModelJudge:
    """Log-likelihoods of captions read from left to right; see `decoding.finishing.Judge`.

    Args:
        model: with a judge.
        end_id: the end token; what stands behind the first one does not count.
    """

    def __init__(self, model: CaptioningModel, end_id: int) -> None:
        self._model, self._end_id = model, end_id

    def log_probabilities(self, tokens: Array, lengths: Array, features: ImageFeatures) -> Array:
        """(C, L) of every token up to a caption's end; 0 behind it."""
        judge: CaptionJudge | None = self._model.caption_judge(features)
        assert judge is not None  # `DecodingSettings.check_model`
        found = judge.log_probabilities(tokens)
        xp = array_namespace(found)
        ended = xp.cumulative_sum(xp.astype(tokens == self._end_id, xp.int64), axis=1)
        is_behind = ended - xp.astype(tokens == self._end_id, xp.int64) > 0
        places = xp.arange(tokens.shape[1], device=device(tokens))
        return xp.where((places < lengths[:, None]) & ~is_behind, found, xp.zeros_like(found))

    def score(self, tokens: Array, lengths: Array, features: ImageFeatures) -> Array:
        """(C,) log-likelihoods."""
        xp = array_namespace(tokens)
        return xp.sum(self.log_probabilities(tokens, lengths, features), axis=1)


class UnlikelyWords:
    """Hides the word that the judge finds least likely, with its neighbours; see `decoding.sampler.Editor`.

    A round that follows hides the next unlikely one, so that a word which came back is not tried again.
    Compare with remasking by the sampler's own probabilities, which lack the words that came later.

    Args:
        judge: of the model.
        features: of I images.
        rounds: in all.
        reach: neighbours on either side that are hidden with a word.
    """

    def __init__(self, judge: ModelJudge, features: ImageFeatures, rounds: int, reach: int = 1) -> None:
        self._judge, self._features, self._rounds, self._reach = judge, features, rounds, reach

    def hide(self, result: DecodingResult, rounds: int) -> Array | None:
        """(C, L) True at the positions to fill again; None when all rounds are done."""
        if rounds >= self._rounds:
            return None
        xp = array_namespace(result.tokens)
        found = self._judge.log_probabilities(result.tokens, result.lengths, self._features)
        order = xp.argsort(found, axis=1, stable=True)
        worst = order[:, min(rounds, order.shape[1] - 1), None]
        places = xp.arange(result.tokens.shape[1], device=device(result.tokens))
        is_near = xp.abs(places - worst) <= self._reach
        return is_near & (places < result.lengths[:, None] - 1)  # a caption keeps its length

import numpy as np

from ddcap.model.step_request import StepRequest

MASK = 9
TOKENS = np.array([[1, MASK, MASK, 2], [MASK, 3, 0, 0]])  # the second caption has two tokens
TIMES, LENGTHS = np.array([5, 7]), np.array([4, 2])


def test_rows_are_the_words_and_what_is_asked_for():
    request, which = StepRequest.at(TOKENS, TIMES, LENGTHS, np.array([[2, 2], [0, 1]]), MASK)
    assert request.rows.tolist() == [0, 2, 3, 4, 5]  # the MASK at place 1 and the padding are left out
    assert request.asked.tolist() == [2, 4, 5]
    assert which.tolist() == [[0, 0], [1, 2]]


def test_all_real_positions_are_rows_where_masks_are_attended_to():
    request, which = StepRequest.at(TOKENS, TIMES, LENGTHS, np.array([[2], [0]]), None)
    assert request.rows.tolist() == [0, 1, 2, 3, 4, 5] and request.asked.tolist() == [2, 4]
    assert which.tolist() == [[0], [1]]


def test_joined_passes_ask_for_the_same_positions():
    """The first one has two captions of its image, the second one caption each of two, which is longer."""
    one, _ = StepRequest.at(TOKENS, TIMES, LENGTHS, np.array([[1, 2], [0, 0]]), MASK)
    longer = np.array([[MASK, 4, 5, 6, 7], [1, 2, MASK, 8, MASK]])
    other, _ = StepRequest.at(longer, np.array([1, 2]), np.array([5, 5]), np.array([[0, 0], [2, 4]]), MASK)
    joined = StepRequest.joined([one, other], [1, 2])
    assert joined.tokens.shape == (6, 5)  # two of each of three images
    words = joined.tokens.reshape(-1)
    assert words[joined.asked].tolist() == [MASK] * 6
    parts = [TOKENS.reshape(-1)[one.rows], longer.reshape(-1)[other.rows]]
    assert words[joined.rows].tolist() == np.concatenate(parts).tolist()
    caption, position = np.divmod(joined.asked, 5)
    assert caption.tolist() == [0, 0, 1, 2, 4, 4] and position.tolist() == [1, 2, 0, 0, 2, 4]
    assert joined.timestep[caption].tolist() == [5, 5, 7, 1, 2, 2]
    assert joined.lengths[caption].tolist() == [4, 4, 2, 5, 5, 5]
    assert np.isin(joined.asked, joined.rows).all() and (np.diff(joined.rows) > 0).all()

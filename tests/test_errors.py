import pickle

import pytest

from ddcap.errors import DataError, MissingExtraError, TrainingInterruptedError


@pytest.mark.parametrize(
    "error",
    [
        DataError("a.json: no such file; check data.root"),
        TrainingInterruptedError("stopped by SIGTERM", 143),
        MissingExtraError("training", "train"),
    ],
)
def test_an_error_travels_between_processes_as_it_is(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)

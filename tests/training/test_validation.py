import threading

import pytest
import torch

from ddcap.data.batches import CaptionData, PixelSource
from ddcap.data.records import load_karpathy
from ddcap.machine import Processes
from ddcap.model.loading import load_model
from ddcap.recipe import DataSettings
from ddcap.settings import DecodingSettings
from ddcap.training import validation
from ddcap.training.validation import Validation, validate


@pytest.fixture
def tiny_model(tiny_model_folder):
    return load_model(tiny_model_folder)


@pytest.fixture
def data(tiny_model, tiny_tokenizer, captions_json, photos):
    records = load_karpathy(captions_json, photos[0].parent)
    source = PixelSource([record.path for record in records], tiny_model.encoder.preprocessing)
    return CaptionData(records, tiny_tokenizer, source, DataSettings(workers=0), 12)


def test_processes_share_the_images_and_each_counts_once(tiny_model, tiny_tokenizer, data, monkeypatch):
    monkeypatch.setattr(validation, "_IMAGES_AT_ONCE", 2)
    settings = {"images": 5, "samples": 5, "device": torch.device("cpu")}
    alone = validate(tiny_model, data, tiny_tokenizer, DecodingSettings(), **settings)
    assert len(alone.samples) == 5
    barrier, mine, results = threading.Barrier(3), [None] * 3, [None] * 3

    def work(index):
        def gather(value):
            mine[index] = value
            barrier.wait(60)
            return list(mine)

        processes = Processes(3, index, gather)
        results[index] = validate(
            tiny_model, data, tiny_tokenizer, DecodingSettings(), processes=processes, **settings
        )

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(captions) for _, captions, _ in mine] == [2, 2, 1]  # no image twice
    for result in results:
        assert result.samples == alone.samples and result.cider == alone.cider
        assert result.loss == pytest.approx(alone.loss) and result.length_loss == pytest.approx(
            alone.length_loss
        )


def test_a_model_is_chosen_by_cider_else_by_loss_and_never_by_a_few_images():
    def score(cider, images):
        return Validation(2.0, 1.0, cider, [], images).score

    assert score(30.0, 10) == 30.0
    assert score(None, 10) == -2.0
    assert score(30.0, 9) is None and score(None, 1) is None

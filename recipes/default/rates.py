"""Measure how often people name concepts that the tagger does not list, for `decoding.absence`.

    python recipes/default/rates.py MODEL dataset.json IMAGES [FOLDER ...]

writes the rates into MODEL/concepts.json. The images are those of the split train, of the named folders
(`filepath`) if there are any: name what the tagger was not trained on.
"""

import sys
from pathlib import Path

import numpy as np

from ddcap.captioner import Captioner
from ddcap.data.concepts import ConceptRates
from ddcap.data.records import load_records
from ddcap.evaluation.calibration import features_of


def main() -> None:
    """Read the arguments, tag the images, write the file."""
    model, json_path, images, *folders = sys.argv[1:]
    captioner = Captioner.from_pretrained(model)
    vocabulary = captioner.model.vocabulary
    records = load_records(json_path, images, "train")
    wanted = [record for record in records if not folders or record.path.parent.name in folders]
    features = features_of(captioner, [record.path for record in wanted])
    if len(features) != len(wanted):
        sys.exit("an image cannot be read; run ddcap data check")
    named = np.zeros((len(wanted), len(vocabulary)), dtype=np.float32)
    for row, record in enumerate(wanted):
        for concept, share in vocabulary.shares(record.captions).items():
            named[row, concept] = share
    ids = np.concatenate([np.asarray(one.concepts.ids) for one in features])
    vocabulary.rates = ConceptRates.measure(ids, named)
    vocabulary.save(Path(model))
    print(f"{len(wanted)} images")


if __name__ == "__main__":
    main()

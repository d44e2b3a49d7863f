"""Give a model a detector and a second tagger, which sees what the detector finds.

    python recipes/default/second_tagger.py MODEL detector.onnx dataset.json IMAGES CACHE TAGGER FOLDER ...

The graph detector.onnx is that of `detector.py`. It becomes MODEL/detector.onnx, which reads the pixels of
the model's image encoder and its summary, and tells the image's concepts and persons. MODEL/concepts.json
gets the concepts that are persons, and MODEL/config.json says that there is a detector. Encoded images are
cached in the folder CACHE. The folder TAGGER gets what training on these concepts needs: every training
image's, by a tagger that has not seen it, and how they are wrong (`encoder.tagger`).

The second tagger is of the same kind as the first (`ddcap.training.tagger`), and has as evidence also, for
each of the detector's categories, the logit of its surest box and the log of the number of boxes expected.
What is told is the mean of both taggers' logits. Persons are calibrated on 600 images,
drawn with a fixed seed. How often concepts go unlisted (`decoding.absence`) is measured on the images of the
named folders (`filepath`), which the first tagger has not seen, by second taggers that have not seen them.
"""

import copy
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from detector_graph import PERSON, Look, Tell, composed, exported, for_any_number, found_of
from torch import Tensor, nn

from ddcap.data.concepts import ConceptRates, ConceptVocabulary
from ddcap.data.feature_cache import FeatureCache
from ddcap.data.images import load_image
from ddcap.data.records import CaptionedImage, load_records
from ddcap.decoding.confidence import Logistic
from ddcap.evaluation.hallucination import names_person, thing_words
from ddcap.files import write_text
from ddcap.model.concepts import Tagger, strongest
from ddcap.model.config import CONFIG_NAME
from ddcap.model.detector import Detector
from ddcap.model.loading import load_model
from ddcap.publishing import find_model
from ddcap.recipe import TaggerSettings
from ddcap.training import tagger as training

_CLASS_WORDS = Path(__file__).parent / "class_words.json"
_CALIBRATED = 600  # images


def mean_of(first: Tagger, second: Tagger) -> Tagger:
    """One tagger whose logits are the mean of two; the second one knows more evidence, at the end."""
    size, more = first.hidden.in_features, second.hidden.in_features
    width = first.hidden.out_features + second.hidden.out_features
    both = Tagger(more, first.output.out_features, classes_at=first.classes_at, width=width).eval()
    for name in ("name_class", "name_concept", "name_weight"):
        assert torch.allclose(getattr(first, name), getattr(second, name), atol=1e-3), name  # may be rounded
        getattr(both, name).copy_(getattr(first, name))
    with torch.no_grad():
        both.mean.copy_(second.mean)
        both.scale.copy_(second.scale)
        # the first one's own mean and scale become those of the second
        weight = first.hidden.weight * first.scale
        bias = first.hidden.bias + weight @ (second.mean[:size] - first.mean)
        weight = nn.functional.pad(weight / second.scale[:size], (0, more - size))
        both.hidden.weight.copy_(torch.cat([weight, second.hidden.weight]))
        both.hidden.bias.copy_(torch.cat([bias, second.hidden.bias]))
        both.output.weight.copy_(torch.cat([first.output.weight, second.output.weight], dim=1) / 2)
        both.output.bias.copy_((first.output.bias + second.output.bias) / 2)
        both.from_names.copy_((first.from_names + second.from_names) / 2)
    return both


def trained(
    first: Tagger, seen: Tensor, records: list[CaptionedImage], vocabulary: ConceptVocabulary
) -> tuple[Tagger, Tensor, Tensor]:
    """The second tagger; then the logits (R, N) of those that have not seen an image, and what is named."""
    settings = TaggerSettings()
    names = training.read_class_words(_CLASS_WORDS, vocabulary)
    named = training.named_shares(records, vocabulary)
    data = training.Evidence(seen.unsqueeze(1), named, torch.ones_like(named, dtype=torch.bool))
    logits = training.logits_by_folds(first, names, data, settings)[:, 0]
    return training.fit(first, names, data, settings), logits, named


class Eyes:
    """What a model sees with, and the detector that is given to it.

    Args:
        model: name or folder.
        graph: path of detector.onnx.
    """

    def __init__(self, model: str, graph: str) -> None:
        self.folder = find_model(model)
        self.model = load_model(self.folder).eval()
        self.encoder, self.vocabulary = self.model.encoder, self.model.vocabulary
        self.preprocessing = self.model.preprocessing
        self.network = onnx.load(graph)
        notes = {entry.key: entry.value for entry in self.network.metadata_props}
        self.anchors = torch.tensor(json.loads(notes.pop("anchors")))
        self.notes = notes
        self.look = Look(self.preprocessing)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self.network.SerializeToString(), options)

    @torch.no_grad()
    def image(self, record: CaptionedImage) -> np.ndarray:
        """(1, 3, 300, 300) what the detector is given of an image."""
        pixels = torch.from_numpy(self.preprocessing(load_image(record.path)))[None]
        return self.look(pixels).numpy()

    def logits(self, record: CaptionedImage) -> Tensor:
        """(1, A, 1 + C) of an image's boxes."""
        (logits,) = self._session.run(["logits"], {"image": self.image(record)})
        return torch.from_numpy(logits)

    def detector(self, tagger: Tagger, slope: float, offset: float, prior: float) -> Detector:
        """The graph."""
        kept, size = self.model.config.encoder.concepts, self.preprocessing.size
        summary = torch.zeros(2, self.encoder.summary_width)
        raw = {
            "boxes": torch.zeros(2, len(self.anchors), 1, 4),
            "logits": torch.zeros(2, len(self.anchors), 91),
            "summary": summary,
        }
        tell = Tell(tagger, kept, self.anchors, slope, offset, prior)
        network = for_any_number(copy.deepcopy(self.network))
        with torch.no_grad():
            looking = exported(self.look, {"pixels": torch.zeros(2, 3, size, size)}, ["image"])
            whole = composed(looking, network, exported(tell, raw, list(Detector.OUTPUTS)))
        onnx.helper.set_model_props(whole, self.notes)
        return Detector(whole.SerializeToString(), threads=1)

    def finish(self, tagger: Tagger, records: list[CaptionedImage], person_logits: Tensor) -> None:
        """Calibrate persons, and write everything into the model's folder.

        Args:
            tagger: the mean of both.
            records: training images.
            person_logits: (R,) of each image's surest box.
        """
        persons = [word for word in self.vocabulary.words if names_person(thing_words().mentions(word))]
        numbers = {self.vocabulary.number(word) for word in persons}
        chosen = list(range(len(records)))
        random.Random(0).shuffle(chosen)
        scores, is_named = [], []
        for row in chosen[:_CALIBRATED]:
            for caption in records[row].captions:
                scores.append(float(person_logits[row]))
                is_named.append(not numbers.isdisjoint(self.vocabulary.find(caption)))
        fitted = Logistic.fit(np.array(scores)[:, None], np.array(is_named))
        slope, offset, prior = float(fitted.weights[0]), fitted.bias, float(np.mean(is_named))
        print(f"a person in {prior:.3f} of the captions; {slope:.3f} x log-odds {offset:+.3f}")
        self.detector(tagger, slope, offset, prior).save(self.folder)
        self.vocabulary.persons = tuple(persons)
        self.vocabulary.save(self.folder)
        config = replace(self.model.config, persons=True)
        write_text(self.folder / CONFIG_NAME, json.dumps(config.to_dict(), indent=2) + "\n")


def main() -> None:
    """Read the arguments, train, write the files."""
    model, graph, json_path, images, cache, output, *folders = sys.argv[1:]
    eyes = Eyes(model, graph)
    records = load_records(json_path, images, "train")
    features = FeatureCache(cache, eyes.encoder, [record.path for record in records], 1)
    summary = torch.stack([features.read(row, 0)[1].float() for row in range(len(records))])
    found, persons = [], []
    for number, record in enumerate(records):
        logits = eyes.logits(record)
        found.append(found_of(logits)[0])
        persons.append(logits[0, :, 1 + PERSON].max())
        if number % 1000 == 0:
            print(f"{number} of {len(records)} images looked at", flush=True)
    seen = torch.cat([summary, torch.stack(found)], dim=1)
    second, logits, named = trained(eyes.encoder.tagger, seen, records, eyes.vocabulary)
    # all of the encoder: a finished model's is rounded, and not the one that its package brings
    weights = {name: value.contiguous() for name, value in eyes.encoder.state_dict().items()}
    kept, unseen = eyes.model.config.encoder.concepts, logits.sigmoid().unsqueeze(1)
    training.save_tagging(Path(output), weights, eyes.vocabulary, records, unseen, named, kept)
    fresh = torch.tensor([record.path.parent.name in folders for record in records])
    with torch.no_grad():
        told = (eyes.encoder.tagger(summary[fresh]) + logits[fresh]) / 2
    listed = strongest(told.sigmoid(), kept)
    eyes.vocabulary.rates = ConceptRates.measure(listed.ids.numpy(), named[fresh].numpy())
    eyes.finish(mean_of(eyes.encoder.tagger, second), records, torch.stack(persons))


if __name__ == "__main__":
    main()

"""Metrics that need more than captions: METEOR and SPICE a Java, CLIPScore a CLIP."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ddcap.data.images import Preprocessing, load_image
from ddcap.errors import CheckpointError, DDCapError, MissingExtraError
from ddcap.evaluation.metrics import MetricScore
from ddcap.evaluation.tokenization import (
    complaint,
    java_command,
    java_environment,
    java_problem,
    java_version,
)

# METEOR 1.5 by the Java program that `pycocoevalcap` brings along, spoken to as it does. Source: Denkowski
# and Lavie, Meteor Universal (2014). The score of a corpus comes from the summed counts of its images: it is
# not the mean of their scores.

_SECONDS_TO_START, _SECONDS_PER_IMAGE = 120, 2  # far over what a slow machine takes; then the program hangs


def meteor(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, MetricScore]:
    """METEOR of tokenised captions.

    Args:
        captions: image id to the tokenised caption.
        references: image id to tokenised human captions; covers `captions`.

    Raises:
        DDCapError: if Java is missing, or the program fails.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.meteor import meteor as program
    except ImportError:
        raise MissingExtraError("METEOR", "eval") from None
    problem = java_problem()
    if problem:
        raise DDCapError(problem)
    jar = Path(program.__file__).parent / program.METEOR_JAR
    # pycocoevalcap's class waits for ever once the program has failed, and takes the user's decimal comma
    command = java_command("-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm")
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            cwd=jar.parent,
            env=java_environment(),
        )
        watchdog = threading.Timer(_SECONDS_TO_START + _SECONDS_PER_IMAGE * len(captions), process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            assert process.stdin is not None and process.stdout is not None
            return {"METEOR": MetricScore(_converse(process.stdin, process.stdout, captions, references))}
        except (OSError, ValueError):  # it has gone, or answers with something that is no number
            process.kill()
            process.wait()
            messages.seek(0)
            reason = complaint(messages.read().decode(errors="replace"))
            raise DDCapError(f"METEOR's Java program failed ({reason}); mend the Java installation") from None
        finally:
            watchdog.cancel()
            process.kill()
            process.communicate()


def _converse(
    requests: IO[bytes],
    answers: IO[bytes],
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
) -> float:
    """Ask for the counts of each image, then for the score of all of them; one line, one answer."""

    def ask(request: str) -> str:
        requests.write(f"{request}\n".encode())
        requests.flush()
        answer = answers.readline().decode().strip()
        if not answer:
            raise ValueError("no answer")
        return answer

    counts = [
        ask(" ||| ".join(["SCORE", *map(_plain, references[image]), _plain(caption)]))
        for image, caption in captions.items()
    ]
    ask(" ||| ".join(["EVAL", *counts]))  # the first image's score ...
    for _ in captions:  # ... the others', and at last the score of all
        score = float(answers.readline())
    return score


def _plain(caption: str) -> str:
    return caption.replace("|||", "").replace("  ", " ")


# SPICE by the Java program that `pycocoevalcap` brings along, with CoreNLP's jars from a given folder.
# Source: Anderson et al., SPICE: Semantic Propositional Image Caption Evaluation (2016). The score is the
# mean of the images' F-scores.

JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_ARCHIVE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"


def spice(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], corenlp: str | Path | None
) -> dict[str, MetricScore]:
    """SPICE of tokenised captions.

    The program writes the images' scores by a JavaScript engine that Java dropped with version 15. There,
    unless a `nashorn-core` jar (and the `asm` jars it needs) lies in `corenlp` too, only the mean is read, to
    three decimals.

    Args:
        captions: image id to the tokenised caption.
        references: image id to tokenised human captions; covers `captions`.
        corenlp: folder of CoreNLP 3.6.0's jars; nothing is ever downloaded.

    Raises:
        DDCapError: if Java or a jar is missing, or the program fails.
        MissingExtraError: if pycocoevalcap is not installed.
    """
    try:
        from pycocoevalcap.spice import spice as program
    except ImportError:
        raise MissingExtraError("SPICE", "eval") from None
    problem = java_problem() or _jar_problem(corenlp)
    if problem or corenlp is None:
        raise DDCapError(str(problem))
    scorer = Path(program.__file__).parent / program.SPICE_JAR
    jars = [str(scorer), *sorted(str(jar.absolute()) for jar in Path(corenlp).glob("*.jar"))]
    has_javascript = java_version() < 15 or any("nashorn" in jar for jar in jars)
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "captions.json", Path(folder) / "scores.json"
        entries = [
            {"image_id": image, "test": caption, "refs": list(references[image])}
            for image, caption in captions.items()
        ]
        question.write_text(json.dumps(entries), encoding="utf-8")
        arguments = [str(question), *(["-out", str(answer), "-silent"] if has_javascript else [])]
        command = java_command(
            "-Xmx8G", "-cp", os.pathsep.join(jars), "edu.anu.spice.SpiceScorer", *arguments
        )
        done = subprocess.run(
            command, capture_output=True, text=True, env=java_environment(), cwd=folder, check=False
        )
        if done.returncode:
            raise DDCapError(
                f"SPICE's Java program failed ({complaint(done.stderr)}); check the jars in {corenlp}"
            )
        if not has_javascript:
            return {"SPICE": MetricScore(read_printed_mean(done.stdout))}
        try:
            results = json.loads(answer.read_text(encoding="utf-8"))
            scores = {entry["image_id"]: float(entry["scores"]["All"]["f"]) for entry in results}
            each = [scores[image] for image in captions]
        except (OSError, ValueError, KeyError, TypeError) as error:  # a file of another's making
            reason = f"{type(error).__name__}: {error}"
            raise DDCapError(
                f"SPICE's Java program left no scores ({reason}); check the jars in {corenlp}"
            ) from None
    return {"SPICE": MetricScore(sum(each) / len(each), each)}


def read_printed_mean(printed: str) -> float:
    """The mean F-score over all tuples, from what the program prints for people.

    Raises:
        DDCapError: if it is not there.
    """
    found = re.search(r"All tuples\s+f-score:\s+([\d.]+)", printed)
    if found is None:
        raise DDCapError("SPICE's Java program printed no score; check the jars in the CoreNLP folder")
    return float(found[1])


def _jar_problem(corenlp: str | Path | None) -> str | None:
    """Why the folder does not do."""
    if corenlp is None:
        return f"needs CoreNLP 3.6.0; unpack {_ARCHIVE} and give its folder by --corenlp"
    missing = [jar for jar in JARS if not (Path(corenlp) / jar).is_file()]
    if missing:
        return f"{corenlp}: has no {' and no '.join(missing)}; unpack {_ARCHIVE} and give its folder"
    return None


# CLIPScore and RefCLIPScore with a CLIP of the user's choice. Source: Hessel et al., CLIPScore: A Reference-
# free Evaluation Metric for Image Captioning (2021). They used ViT-B/32; another CLIP gives other numbers.

PROMPT = "A photo depicts "
WEIGHT = 2.5
_AT_ONCE = 64


class ClipScorer:
    """CLIPScore = w max(cos(image, caption), 0); it takes captions as written, not their tokenised words.

    Args:
        name: folder or Hub id of a CLIP with its tokenizer.
        device: where to run it.

    Raises:
        CheckpointError: if there is no such CLIP.
        DDCapError: if there is no such device.
        MissingExtraError: if transformers is not installed.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        try:
            from transformers import AutoTokenizer, CLIPModel
            from transformers.utils import logging as transformers_logging
        except ImportError:
            raise MissingExtraError("CLIPScore", "clip") from None
        from safetensors import SafetensorError

        self.name = name
        self._pictures: dict[Path, Tensor] = {}
        transformers_logging.disable_progress_bar()
        try:
            loaded: Any = CLIPModel.from_pretrained(name, output_loading_info=True)
            model, loading = loaded
            if loading["missing_keys"]:  # transformers would fill them with random numbers
                raise ValueError(f"it has no {min(loading['missing_keys'])}")
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(
                f"{name}: no CLIP with a tokenizer could be loaded ({reason}); give a folder or Hub id of one"
            ) from None
        try:
            self.model = model.eval().to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise DDCapError(f"device {device!r}: not to be had here ({reason}); use cpu") from None
        self.preprocessing = Preprocessing(
            model.config.vision_config.image_size,
            "crop",
            mean=(0.48145466, 0.4578275, 0.40821073),
            std=(0.26862954, 0.26130258, 0.27577711),
        )

    def score(
        self,
        captions: Mapping[str, str],
        references: Mapping[str, Sequence[str]],
        images: Mapping[str, Path],
    ) -> dict[str, MetricScore]:
        """CLIPScore and RefCLIPScore.

        Args:
            captions: image id to caption.
            references: image id to human captions.
            images: image id to the picture's file.

        Raises:
            ImageError: if a picture cannot be read.
        """
        image_ids = list(captions)
        pictures = self.image_features([images[image] for image in image_ids])  # (I, D)
        texts = self.text_features(list(captions.values()))  # (I, D)
        counts = [len(references[image]) for image in image_ids]
        others = self.text_features([text for image in image_ids for text in references[image]])  # (R, D)
        to_image = WEIGHT * (pictures * texts).sum(1).clamp(min=0).double()  # (I,)
        of_references = (others * texts.repeat_interleave(torch.tensor(counts), dim=0)).sum(1)  # (R,)
        to_reference = torch.stack([part.max() for part in of_references.split(counts)]).clamp(min=0)  # (I,)
        total = to_image + to_reference
        harmonic = torch.where(total > 0, 2 * to_image * to_reference / total.clamp(min=1e-12), 0.0)
        return {"CLIPScore": _score(to_image), "RefCLIPScore": _score(harmonic)}

    @torch.inference_mode()
    def image_features(self, images: Sequence[Path]) -> Tensor:
        """Unit vectors (I, D) of pictures; each is looked at once, however many captions are scored."""
        new = [image for image in dict.fromkeys(images) if image not in self._pictures]
        for start in range(0, len(new), _AT_ONCE):
            some = new[start : start + _AT_ONCE]
            pixels = torch.stack([self.preprocessing(load_image(image)) for image in some])  # (B, 3, H, W)
            output = self.model.vision_model(pixel_values=pixels.to(self.model.device))
            features = self.model.visual_projection(output.pooler_output).cpu()  # (B, D)
            self._pictures.update(zip(some, features, strict=True))
        return _normalized([torch.stack([self._pictures[image] for image in images])])

    @torch.inference_mode()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors (I, D) of captions behind the prompt, cut at CLIP's longest text."""
        longest = self.model.config.text_config.max_position_embeddings
        parts = []
        for start in range(0, len(captions), _AT_ONCE):
            texts = [PROMPT + caption for caption in captions[start : start + _AT_ONCE]]
            tokens = self.tokenizer(
                texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
            ).to(self.model.device)
            output = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            parts.append(self.model.text_projection(output.pooler_output).cpu())
        return _normalized(parts)


def _normalized(parts: list[Tensor]) -> Tensor:
    features = torch.cat(parts).float()
    return features / features.norm(dim=1, keepdim=True)


def _score(values: Tensor) -> MetricScore:
    each = values.tolist()
    return MetricScore(float(np.mean(each)), each)

"""CLIPScore and RefCLIPScore with a CLIP of the user's choice.

Source: Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning (2021). They used
ViT-B/32; another CLIP gives other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddcap.data.images import CLIP_MEAN_STD, Preprocessing, load_image
from ddcap.errors import CheckpointError, DDCapError, MissingExtraError
from ddcap.evaluation.metrics import MetricScore

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
        self._images: dict[Path, Tensor] = {}
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
                f"{name}: cannot load a CLIP with a tokenizer ({reason}); give a folder or Hub id of one"
            ) from None
        try:
            self.model = model.eval().to(device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise DDCapError(f"device {device!r}: not available here ({reason}); use cpu") from None
        self.preprocessing = Preprocessing(model.config.vision_config.image_size, "crop", *CLIP_MEAN_STD)

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
            images: image id to the image's file.

        Raises:
            ImageError: if an image cannot be read.
        """
        image_ids = list(captions)
        seen = self.image_features([images[image] for image in image_ids])  # (I, D)
        texts = self.text_features(list(captions.values()))  # (I, D)
        counts = [len(references[image]) for image in image_ids]
        others = self.text_features([text for image in image_ids for text in references[image]])  # (R, D)
        to_image = WEIGHT * (seen * texts).sum(1).clamp(min=0).double()  # (I,)
        of_references = (others * texts.repeat_interleave(torch.tensor(counts), dim=0)).sum(1)  # (R,)
        to_reference = torch.stack([part.max() for part in of_references.split(counts)]).clamp(min=0)  # (I,)
        total = to_image + to_reference
        harmonic = torch.where(total > 0, 2 * to_image * to_reference / total.clamp(min=1e-12), 0.0)
        return {"CLIPScore": _score(to_image), "RefCLIPScore": _score(harmonic)}

    @torch.inference_mode()
    def image_features(self, images: Sequence[Path]) -> Tensor:
        """Unit vectors (I, D) of images; each is looked at once, however many captions are scored."""
        new = [image for image in dict.fromkeys(images) if image not in self._images]
        for start in range(0, len(new), _AT_ONCE):
            some = new[start : start + _AT_ONCE]
            pixels = torch.from_numpy(np.stack([self.preprocessing(load_image(image)) for image in some]))
            output = self.model.vision_model(pixel_values=pixels.to(self.model.device))
            features = self.model.visual_projection(output.pooler_output).cpu()  # (B, D)
            self._images.update(zip(some, features, strict=True))
        return _normalized([torch.stack([self._images[image] for image in images])])

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

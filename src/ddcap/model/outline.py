"""A model without weights, to compare a config with a file before anything is downloaded or allocated.

Everything here happens on torch's "meta" device, which knows shapes only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ddcap.errors import DDCapError
from ddcap.model.image_encoder import ImageEncoder, build_image_encoder
from ddcap.model.weights_file import Shapes, check_shapes
from ddcap.recipe import EncoderSettings, ModelSettings


class FrozenEncoderOutline(ImageEncoder):
    """Stands for an encoder whose weights are elsewhere: a file's shapes tell what it has to give.

    Sizes that the model makes no use of are 0.

    Args:
        shapes: of the model's file of weights.
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self.memory_width = _size(shapes, "memory_projection.0.weight", 1)
        # with concepts the image-free memory is one position, whatever an image has
        sees_concepts = "concept_embedding.pieces" in shapes
        self.memory_positions = 0 if sees_concepts else _size(shapes, "image_free_memory", 0)
        self.summary_width = _size(shapes, "length_head.mlp.0.weight", 1)

    def check_clip(self, architecture: dict[str, Any]) -> None:
        """Compare with a published CLIP, before its weights are read.

        Raises:
            RuntimeError: if they do not fit.
        """
        side = architecture["image_size"] // max(1, architecture["patch_size"])
        expected = {
            "number of vectors": (self.memory_positions, side * side),
            "memory width": (self.memory_width, architecture["hidden_size"]),
            "summary width": (self.summary_width, architecture["projection_dim"]),
        }
        for name, (ours, theirs) in expected.items():
            if ours and ours != theirs:
                raise RuntimeError(f"its encoder gives a {name} of {theirs} where the weights take {ours}")


def check_outline(
    build: Callable[[ImageEncoder], Any],
    encoder: EncoderSettings,
    model: ModelSettings,
    shapes: Shapes,
    architecture: dict[str, Any] | None,
    concepts: int = 0,
) -> None:
    """Compare what a config describes with the weights there are.

    Args:
        build: a model of the config around an encoder.
        encoder: the config's section.
        model: the config's section.
        shapes: of the model's file of weights.
        architecture: of an encoder that travels with the model, if its name alone is not enough.
        concepts: how many its tagger knows; the tagger is always in the model's file.

    Raises:
        RuntimeError: if they do not fit, or the config describes no model at all.
    """
    try:
        # a layer has tensors of its own, so there are no more layers than tensors: the loops below end soon
        layers = max(model.layers, int((architecture or {}).get("num_hidden_layers", 0)))
        if layers > len(shapes):
            raise RuntimeError(f"{layers} layers for {len(shapes)} tensors")
        with torch.device("meta"):
            outline = build(
                build_image_encoder(encoder, pretrained=False, architecture=architecture, concepts=concepts)
                if encoder.travels or encoder.concepts
                else FrozenEncoderOutline(shapes)
            )
        expected = {name: tuple(value.shape) for name, value in outline.stored_state().items()}
    except DDCapError:
        raise
    except Exception as error:  # sizes from strangers make the libraries raise whatever they trip over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(f"no model is made like this: {reason}") from None
    check_shapes(expected, shapes)


def _size(shapes: Shapes, name: str, dimension: int) -> int:
    """A size of a tensor, 0 if it is not there: `check_shapes` will say so."""
    shape = shapes.get(name, ())
    return shape[dimension] if dimension < len(shape) else 0

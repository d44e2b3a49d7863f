// The model's ONNX graphs at work on one image; as src/ddcap/model/onnx_model.py.
//
// Shapes: K captions of the image, L positions, N of all K * L computed, n of these asked for, P positions of its
// memory, V words.

import { Concepts, seenIn } from "./concepts.js";
import { placesOf } from "./step_request.js";
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
    this.hidden = description.concentrated_attention ? this.maskId : null; // a token that nobody attends to
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

  /**
   * Logits (n x V) with the image and, if there is a guidance, without, of captions one after the other.
   *
   * @param {number[][]} tokens (K x L)
   * @param {number[]} timesteps of each caption
   * @param {number[]} lengths of each
   * @param {number[][]} asked positions of each, in ascending order
   */
  async logits(tokens, timesteps, lengths, asked) {
    const images = this.scale === null ? 1 : 2;
    const [captions, longest] = [tokens.length, tokens[0].length];
    const places = placesOf(tokens, lengths, asked, this.model.hidden);
    const twice = (values, ...dims) => {
      const flat = values.flat();
      return this.model.integers(images === 1 ? flat : [...flat, ...flat], [images, captions, ...dims]);
    };
    const inBoth = (own) => {
      const all = images === 1 ? own : [...own, ...own.map((place) => captions * longest + place)];
      return this.model.integers(all, [all.length]);
    };
    const { logits } = await this.model.run("step", {
      tokens: twice(tokens, longest),
      timestep: twice(timesteps),
      lengths: twice(lengths),
      rows: inBoth(places.rows),
      asked: inBoth(places.asked),
      ...this.memory,
    });
    const half = places.asked.length * this.model.maskId;
    return { own: logits.data.subarray(0, half), free: images === 1 ? null : logits.data.subarray(half) };
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
   * or, unless only these are wanted, to the logits (n x V) of all words.
   *
   * @returns {Promise<object[]>} of each caption `chosen` and `logProbability`, or `logits`
   */
  async predict(tokens, timesteps, lengths, asked, onlyLikeliest) {
    const { own, free } = await this.denoiser.logits(tokens, timesteps, lengths, asked);
    const [added, count, size] = [this.added(tokens, asked), asked.flat().length, this.maskId];
    if (!onlyLikeliest) {
      return splitBy(asked, this.together(own, free, added), size).map((logits) => ({ logits }));
    }
    // the graph takes as many positions of each caption: here each is a caption of its own
    const inputs = {
      logits: this.model.floats(own, [count, 1, size]),
      added: this.model.floats(added, [count, size]),
    };
    if (free !== null) {
      inputs.image_free = this.model.floats(free, [count, 1, size]);
      inputs.scale = this.model.floats([this.denoiser.scale], []);
    }
    const found = await this.model.run(free === null ? "choose" : "guided_choose", inputs);
    const logProbability = splitBy(asked, found.log_probability.data);
    return splitBy(asked, found.chosen.data).map((chosen, row) => ({ chosen, logProbability: logProbability[row] }));
  }

  /** (n x V) that is added to the logits: the same at all positions of a caption. */
  added(tokens, asked) {
    const size = this.maskId;
    const added = new Float32Array(asked.flat().length * size);
    splitBy(asked, added, size).forEach((ofCaption, row) => {
      const words = ofCaption.subarray(0, size);
      this.evidence?.addTo(words, tokens[row]);
      if (!this.mayEnd) words[this.model.vocabulary.endId] = -Infinity;
      for (let at = size; at < ofCaption.length; at += size) ofCaption.copyWithin(at, 0, size);
    });
    return added;
  }

  together(own, free, added) {
    const { scale } = this.denoiser;
    return own.map((value, at) => {
      const guided = free === null ? value : free[at] + Math.fround(scale * (value - free[at]));
      return guided + added[at];
    });
  }
}

/** The parts of each caption of `values`, `size` of them at each position that is asked for. */
function splitBy(asked, values, size = 1) {
  let from = 0;
  return asked.map(({ length }) => values.subarray(from, (from += length * size)));
}

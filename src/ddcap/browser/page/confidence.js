// How sure the model is, as calibrated probabilities; as src/ddcap/decoding/confidence.py.

const TINY = 1e-6;
const DOUBT = 0.3; // a word is doubtful if a smaller share of annotators would use it

const logistic = (inputs, weights, bias) =>
  1 / (1 + Math.exp(-inputs.reduce((sum, value, place) => sum + value * weights[place], bias)));

export class Confidence {
  /**
   * @param {import("./weights.js").Tensors} tensors of confidence.safetensors
   * @param {import("./concepts.js").Concepts | undefined} concepts
   */
  constructor(tensors, concepts) {
    this.concepts = concepts;
    [this.centre, this.directions, this.spread] = ["centre", "directions", "spread"]
      .map((name) => tensors.values(name).numbers);
    this.parts = {};
    for (const name of ["sure", "faithful", "known", "word"]) {
      if (!tensors.has(`${name}.weights`)) continue;
      const [weights, bias] = ["weights", "bias"].map((part) => tensors.values(`${name}.${part}`).numbers);
      this.parts[name] = (inputs) => logistic(inputs, weights, bias[0]);
    }
  }

  /** Probability that an image is of a kind that the model knows. */
  known({ outputs, seen }) {
    const { data, dims: [, positions, width] } = outputs.memory;
    const offset = Float64Array.from({ length: width }, (_, column) => {
      let sum = 0;
      for (let row = 0; row < positions; row++) sum += data[row * width + column];
      return sum / positions - this.centre[column];
    });
    let [along, beside] = [0, 0];
    const rest = Float64Array.from(offset);
    this.spread.forEach((spread, row) => {
      const direction = this.directions.subarray(row * width, (row + 1) * width);
      const share = direction.reduce((sum, value, column) => sum + value * offset[column], 0);
      along += (share / spread) ** 2;
      direction.forEach((value, column) => (rest[column] -= share * value));
    });
    for (const value of rest) beside += value ** 2;
    return this.parts.known([Math.log(along + TINY), Math.log(beside + TINY), ...(seen ? muchOf(outputs) : [])]);
  }

  /**
   * @param {object} found the decoded caption
   * @param {string} text of it
   * @param {Array<object>} tokens of it before its end
   * @param {object} features of the image
   */
  judge(found, text, tokens, features) {
    const confidences = found.confidences.slice(0, found.length);
    const score = confidences.reduce((sum, value) => sum + Math.log(Math.max(value, 1e-30)), 0) / found.length;
    const least = Math.log(Math.min(...confidences.map((value) => Math.max(value, TINY))));
    const inputs = [score, least, found.length];
    const shares = new Map(features.seen ?? []);
    if (this.concepts) {
      const said = this.concepts.find(text).reduce((sum, concept) => sum + (shares.get(concept) ?? 0), 0);
      inputs.push(...muchOf(features.outputs), said);
    }
    const known = this.known(features);
    const [sure, faithful] = ["sure", "faithful"].map((name) => known * this.parts[name](inputs));
    return { known, sure, faithful, doubtful: this.doubtful(text, found, tokens, shares) };
  }

  /** Words that people probably would not have used. */
  doubtful(text, found, tokens, shares) {
    if (!this.parts.word || !this.concepts) return [];
    const sureness = []; // of each word: the product of its tokens'
    tokens.forEach(({ piece }, position) => {
      if (piece.startsWith(" ") || sureness.length === 0) sureness.push(1);
      sureness[sureness.length - 1] *= found.confidences[position];
    });
    const doubtful = new Map();
    text.split(/\s+/).forEach((word, place) => {
      const concept = this.concepts.number(word);
      if (concept === undefined || place >= sureness.length) return;
      const share = shares.get(concept) ?? 0;
      const inputs = [Math.log(Math.max(sureness[place], TINY)), share, Math.log(share + 0.01)];
      doubtful.set(word, this.parts.word(inputs) < DOUBT);
    });
    return [...doubtful].filter(([, isDoubtful]) => isDoubtful).map(([word]) => word);
  }
}

/** Confidence of the surest concept, mean of the three surest, and the sum of all. */
function muchOf({ confidences }) {
  const sorted = Array.from(confidences.data).sort((one, other) => other - one);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const few = sorted.slice(0, 3);
  return [sorted[0], sum(few) / few.length, sum(sorted)];
}

// Words that are not to stand in a caption; as src/ddcap/decoding/constraints.py and constrained.py.
//
// A token is refused if no caption that obeys could come of it any more.

import { wordsOf } from "./tokens.js";

/** Finds banned words and phrases in a plain text; what stands beside a MASK counts as a whole word. */
export function patternOf(banned) {
  for (const phrase of banned) {
    if (wordsOf(phrase).length === 0) throw new Error(`“${phrase}” contains no letter or digit; give words`);
  }
  const spelled = [...new Set(banned.map((phrase) => wordsOf(phrase).join("[^a-z0-9\\0]+")))];
  if (spelled.length === 0) return null;
  spelled.sort((one, other) => other.length - one.length || (one < other ? -1 : 1));
  return new RegExp(`(?<![a-z0-9])(?:${spelled.join("|")})(?![a-z0-9])`);
}

/** The `count` lengths nearest to `length` that leave room; none is far shorter than need be. */
export function lengthsNear(length, count, longest) {
  const shortest = 2; // a word and the end token
  const middle = Math.min(Math.max(length, shortest), longest);
  const fitting = [];
  for (let other = Math.max(shortest, Math.floor((middle * 2) / 3)); other <= longest; other++) fitting.push(other);
  fitting.sort((one, other) => Math.abs(one - middle) - Math.abs(other - middle) || other - one);
  return fitting.slice(0, count);
}

/** One caption on its way: which tokens may be committed where. */
export class ConstrainedCaption {
  /**
   * @param {RegExp | null} pattern of what is banned
   * @param {import("./tokens.js").Vocabulary} vocabulary
   * @param {number[]} tokens given ones and MASK, the end token last
   * @param {number[]} starts positions whose token begins a word
   */
  constructor(pattern, vocabulary, tokens, starts) {
    [this.pattern, this.vocabulary, this.tokens] = [pattern, vocabulary, [...tokens]];
    this.starts = new Set([0, ...starts]);
    const found = pattern?.exec(this.text());
    if (found) throw new Error(`the given words contain “${found[0].trim()}”, which is banned`);
  }

  text(position = -1, token = 0) {
    const { plain, endId } = this.vocabulary;
    return this.tokens
      .map((one, at) => (at === position ? plain[token] : one === endId ? "" : plain[one]))
      .join("");
  }

  isPossible(position, token) {
    return this.vocabulary.isUsable[token] && (!this.starts.has(position) || this.vocabulary.begins[token]);
  }

  allows(position, token) {
    return this.isPossible(position, token) && !this.pattern?.test(this.text(position, token));
  }

  /**
   * Commit the surest tokens that are allowed; of a position whose token is refused, its next one competes.
   *
   * @param {number[]} asked positions of MASKs
   * @param {{logits: Float32Array}} prediction (n x V) at them
   * @param {number} quota tokens to commit
   * @param {boolean} distinct no token twice
   * @returns {{guesses: object[], predicted: () => object[]}} what is committed, the surest first, and what is
   *     predicted where MASK is left, without a look at what is allowed; see surest.js
   */
  commitSurest(asked, { logits }, quota, distinct) {
    const size = this.vocabulary.maskId;
    const queue = asked.map((position, column) => {
      const scores = this.usableLogProbabilities(logits.subarray(column * size, (column + 1) * size));
      return { position, scores, order: null, ...likeliest(scores) };
    });
    const likeliestOnes = [...queue];
    const done = [];
    while (queue.length > 0 && done.length < quota) {
      queue.sort((one, other) => other.certainty - one.certainty || one.position - other.position);
      const best = queue[0];
      if (!this.allows(best.position, best.token)) {
        best.order ??= this.orderOf(best.position, best.scores);
        const next = best.order.next();
        if (next.done) queue.shift();
        else queue[0] = { ...best, token: next.value, certainty: exp(best.scores[next.value]) };
        continue;
      }
      queue.shift();
      if (distinct && done.some((other) => other.token === best.token)) continue;
      this.tokens[best.position] = best.token;
      done.push({ position: best.position, token: best.token, certainty: best.certainty });
    }
    if (done.length === 0) throw new Error("the banned words leave no word for a blank; ban fewer words");
    const predicted = () => likeliestOnes.filter(({ position }) => this.tokens[position] === this.vocabulary.maskId);
    return { guesses: done, predicted };
  }

  usableLogProbabilities(logits) {
    const { isUsable } = this.vocabulary;
    const scores = Float32Array.from(logits, (value, token) => (isUsable[token] ? value : -Infinity));
    const total = logSumExp(scores);
    return scores.map((value) => value - total);
  }

  /** Tokens that may stand at a position whatever they spell, the likeliest first. */
  orderOf(position, scores) {
    const tokens = [...scores.keys()].filter((token) => scores[token] > -Infinity && this.isPossible(position, token));
    return tokens.sort((one, other) => scores[other] - scores[one] || one - other).values();
  }
}

const exp = (value) => Math.fround(Math.exp(value));

function likeliest(scores) {
  let token = 0;
  for (let other = 1; other < scores.length; other++) if (scores[other] > scores[token]) token = other;
  return { token, certainty: exp(scores[token]) };
}

/** Log of the sum of exponentials; -Infinity counts as nothing. */
export function logSumExp(values) {
  let highest = -Infinity;
  for (const value of values) highest = Math.max(highest, value);
  let sum = 0;
  for (const value of values) sum += Math.exp(value - highest);
  return Math.log(sum) + highest;
}

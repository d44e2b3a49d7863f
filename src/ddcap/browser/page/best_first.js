// Best-first inference: each step commits the most certain tokens for good; as
// src/ddcap/decoding/schedulers/best_first.py.
//
// Shapes: K captions of one image, L positions, S steps, V words (the id V is MASK).

import { Focus } from "./focus.js";
import { dropDuplicates, topKConfident } from "./surest.js";

/** The t at which a caption of `length` tokens has `blanks` MASK positions left. */
export function timestepForMaskRatio(blanks, length, diffusionSteps) {
  return Math.min(Math.floor((blanks * diffusionSteps) / length), diffusionSteps - 1);
}

/** When how many positions of one caption are committed; known before the first step. */
export class Plan {
  /**
   * @param {number} blanks MASK positions
   * @param {number} length tokens
   * @param {number} diffusionSteps T
   * @param {number | null} steps asked for; null: one position a step
   */
  constructor(blanks, length, diffusionSteps, steps) {
    [this.blanks, this.length, this.diffusionSteps] = [blanks, length, diffusionSteps];
    this.steps = Math.min(Math.max(blanks, 1), steps ?? diffusionSteps);
  }

  /** Positions to be committed after so many steps. */
  done(steps) {
    return Math.floor((this.blanks * Math.min(steps, this.steps)) / this.steps);
  }

  /** Timestep and quota of a step; a caption that is behind runs at the t of what it has left. */
  at(step, blanks) {
    const planned = this.blanks - this.done(step);
    const timestep = timestepForMaskRatio(Math.max(blanks, planned), this.length, this.diffusionSteps);
    return { timestep, quota: blanks - (this.blanks - this.done(step + 1)) };
  }
}

/**
 * Fill every MASK; given words stay.
 *
 * @param {object} predictor for these captions, see model.js
 * @param {number[][]} captions token ids, each as long as the longest
 * @param {number[]} lengths of each
 * @param {{steps: number | null, distinct: boolean, focus?: number}} settings of decoding
 * @param {object} options `diffusionSteps` T; `constrained` the same captions where only some tokens are allowed;
 *     `pruning`, which is told of every step
 * @returns {Promise<Array<object>>} of each caption its tokens, their confidences, its steps and their plan
 */
export async function decodeBestFirst(
  predictor, captions, lengths, settings, { diffusionSteps, constrained, pruning },
) {
  const mask = predictor.maskId;
  // where a token is refused, another position may be the surest: look at all
  const looksAt = (constrained === undefined && settings.focus) || Infinity;
  const rows = captions.map((tokens, row) => {
    const blanks = blanksOf(tokens, mask).length;
    const confidences = new Array(tokens.length).fill(1);
    const plan = new Plan(blanks, lengths[row], diffusionSteps, settings.steps);
    const focus = new Focus(looksAt);
    return { row, tokens: [...tokens], length: lengths[row], confidences, blanks, plan, focus, steps: [] };
  });
  for (let step = 0; rows.some((one) => one.blanks > 0); step++) {
    const running = rows.filter((one) => one.blanks > 0);
    const longest = Math.max(...running.map((one) => one.length));
    const due = running.map((one) => one.plan.at(step, one.blanks));
    const asked = running.map((one, number) => one.focus.asked(blanksOf(one.tokens, mask), due[number].quota));
    const noised = running.map((one) => one.tokens.slice(0, longest));
    const predictions = await predictor.predict(
      noised, due.map((one) => one.timestep), running.map((one) => one.length), asked,
      constrained === undefined,
    );
    const isPruned = pruning?.drops(rows) ?? false;
    running.forEach((one, number) => {
      const { quota } = due[number];
      const { guesses, predicted } = constrained === undefined
        ? commitSurest(one.focus, asked[number], predictions[number], quota, settings.distinct)
        : constrained[one.row].commitSurest(asked[number], predictions[number], quota, settings.distinct);
      if (isPruned) one.predicted = predicted();
      for (const { position, token, certainty } of guesses) {
        one.tokens[position] = token;
        one.confidences[position] = certainty;
      }
      one.blanks -= guesses.length;
      one.steps.push(guesses);
    });
    pruning?.step(rows);
  }
  return rows;
}

/** Positions of MASKs. */
function blanksOf(tokens, mask) {
  return [...tokens.keys()].filter((position) => tokens[position] === mask);
}

/** What a step commits of a caption, the surest first, and what is predicted where MASK is left; see surest.js. */
function commitSurest(focus, asked, { chosen, logProbability }, quota, distinct) {
  const guesses = asked.map((position, column) => (
    { position, token: Number(chosen[column]), certainty: Math.fround(Math.exp(logProbability[column])) }));
  let committed = topKConfident(guesses, quota);
  if (distinct) committed = dropDuplicates(committed);
  focus.note(guesses);
  focus.committed(committed);
  return { guesses: committed, predicted: () => focus.predicted() };
}

// Best-first inference: each step commits the most certain tokens for good; as
// src/ddcap/decoding/schedulers/best_first.py.
//
// Shapes: K captions of one image, L positions, n of them still MASK, S steps, V words (the id V is MASK).

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

/** Positions by certainty, the surest first; of equals, the first. */
function topKConfident(positions, certainty, quota) {
  return [...positions].sort((one, other) => certainty[other] - certainty[one] || one - other).slice(0, quota);
}

/** Positions, the surest first, without those whose word is that of a surer one. */
function dropDuplicates(committed, words) {
  return committed.filter((position, rank) =>
    committed.slice(0, rank).every((surer) => words[surer] !== words[position]));
}

/**
 * Fill every MASK; given words stay.
 *
 * @param {object} predictor for these captions, see model.js
 * @param {number[][]} captions token ids, each as long as the longest
 * @param {number[]} lengths of each
 * @param {{steps: number | null, distinct: boolean}} settings of decoding
 * @param {object} options `diffusionSteps` T; `constrained` the same captions where only some tokens are allowed;
 *     `pruning`, which is told of every step
 * @returns {Promise<Array<object>>} of each caption its tokens, their confidences, its steps and their plan
 */
export async function decodeBestFirst(
  predictor, captions, lengths, settings, { diffusionSteps, constrained, pruning },
) {
  const mask = predictor.maskId;
  const rows = captions.map((tokens, row) => {
    const blanks = tokens.filter((token) => token === mask).length;
    const confidences = new Array(tokens.length).fill(1);
    const plan = new Plan(blanks, lengths[row], diffusionSteps, settings.steps);
    return { row, tokens: [...tokens], length: lengths[row], confidences, blanks, plan, steps: [] };
  });
  for (let step = 0; rows.some((one) => one.blanks > 0); step++) {
    const running = rows.filter((one) => one.blanks > 0);
    const longest = Math.max(...running.map((one) => one.length));
    const most = Math.max(...running.map((one) => one.blanks));
    const asked = running.map((one) => masksFirst(one.tokens.slice(0, longest), mask).slice(0, most));
    const due = running.map((one) => one.plan.at(step, one.blanks));
    const noised = running.map((one) => one.tokens.slice(0, longest));
    const prediction = await predictor.predict(
      noised, due.map((one) => one.timestep), running.map((one) => one.length), asked,
      constrained === undefined,
    );
    const isPruned = pruning?.drops(rows) ?? false;
    running.forEach((one, number) => {
      const { guesses, predicted } = constrained === undefined
        ? surest(one, asked[number], prediction, number, due[number].quota, settings.distinct, mask)
        : constrained[one.row].commitSurest(
          asked[number], prediction, number, due[number].quota, settings.distinct);
      if (isPruned) {
        one.predicted = predicted().filter(({ position }) => guesses.every((guess) => guess.position !== position));
      }
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

function masksFirst(tokens, mask) {
  const places = tokens.map((_, place) => place);
  return [...places.filter((place) => tokens[place] === mask), ...places.filter((place) => tokens[place] !== mask)];
}

/** What a step commits of a caption, the surest first, and what it predicts: position, token and certainty. */
function surest(one, asked, { chosen, logProbability }, number, quota, distinct, mask) {
  const [words, certainty] = [[], []];
  asked.forEach((position, column) => {
    const at = number * asked.length + column;
    words[position] = Number(chosen[at]);
    certainty[position] = Math.fround(Math.exp(logProbability[at]));
  });
  const blanks = asked.filter((position) => one.tokens[position] === mask);
  let committed = topKConfident(blanks, certainty, quota);
  if (distinct) committed = dropDuplicates(committed, words);
  const told = (position) => ({ position, token: words[position], certainty: certainty[position] });
  return { guesses: committed.map(told), predicted: () => blanks.map(told) };
}

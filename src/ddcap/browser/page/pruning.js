// Pruning: which of an image's candidates go on; as src/ddcap/decoding/pruning.py.
//
// The page offers all candidates as drafts, so those that are dropped are finished too, and rank behind.

export class Pruning {
  /**
   * @param {number[]} plan how many go on after the first step, the second, and so on; then the last number holds
   * @param {(caption: object) => number} score of a caption: tokens, length, confidences
   */
  constructor(plan, score) {
    [this.plan, this.score, this.steps, this.dropped] = [plan, score, 0, new Set()];
  }

  /** Whether the next step drops any of these captions. */
  drops(rows) {
    return this.plan[this.steps] < rows.length - this.dropped.size;
  }

  /** After a step of captions; if it drops any, each with what was `predicted` in place of its MASKs. */
  step(rows) {
    const drops = this.drops(rows);
    const left = this.plan[this.steps++];
    if (!drops) return;
    const going = rows.filter((one) => !this.dropped.has(one.row));
    const scores = new Map(going.map((one) => [one.row, this.score(filled(one))]));
    // of equals, the first stay
    going.sort((one, other) => scores.get(other.row) - scores.get(one.row) || one.row - other.row);
    for (const one of going.slice(left)) this.dropped.add(one.row);
  }
}

/** The caption if all its MASKs became what was predicted. */
function filled({ tokens, length, confidences, predicted, blanks }) {
  if (blanks === 0) return { tokens, length, confidences };
  const guess = { tokens: [...tokens], length, confidences: [...confidences] };
  for (const { position, token, certainty } of predicted) {
    guess.tokens[position] = token;
    guess.confidences[position] = certainty;
  }
  return guess;
}

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

  /** After a step of captions, each with what was `predicted` in place of its MASKs; of equals, the first stay. */
  step(rows) {
    const going = rows.filter((one) => !this.dropped.has(one.row));
    const left = this.plan[this.steps++] ?? going.length;
    if (left >= going.length) return;
    const scores = new Map(going.map((one) => [one.row, this.score(filled(one))]));
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

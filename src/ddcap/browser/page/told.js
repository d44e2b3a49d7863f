// A decoded caption as the interface draws it; as src/ddcap/gradio_page/shown.py.

/**
 * @param {object} found of generate.js: tokens, length, confidences, steps, plan
 * @param {import("./model.js").Model} model
 * @param {object} features of the image
 * @param {import("./confidence.js").Confidence | null} confidence
 * @returns {object} see interface/caption_view.js
 */
export function told(found, model, features, confidence) {
  const { vocabulary } = model;
  const { pieces, endId } = vocabulary;
  const text = vocabulary.decode(found.tokens.slice(0, found.length));
  const stepOf = new Map(found.steps.flatMap((guesses, step) => guesses.map(({ position }) => [position, step + 1])));
  const ids = vocabulary.untilEnd(found.tokens.slice(0, found.length));
  const judged = confidence?.judge(found, text, ids.map((token) => ({ piece: pieces[token] })), features) ?? {};
  const words = vocabulary.wordsIn(ids).map((positions) => {
    const tokens = positions.map((position) => ({
      piece: pieces[ids[position]].trim(),
      step: stepOf.get(position) ?? 0,
      probability: found.confidences[position],
    }));
    const word = tokens.map(({ piece }) => piece).join("");
    return { tokens, given: tokens.every(({ step }) => step === 0), doubtful: judged.doubtful?.includes(word) ?? false };
  });
  const end = stepOf.get(found.tokens.indexOf(endId)) ?? 0;
  return { text, steps: found.steps.length, planned: found.plan.steps, end, words, ...judged };
}

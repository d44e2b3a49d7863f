// What both pages say of a caption: numbers, verdicts, names for screen readers.

const LIMITS = [0.25, 0.5, 0.75, 0.9]; // between the five colours of certainty
const UNKNOWN = 0.5; // below it, images of this kind are not known to the model

export const DOUBTFUL = "under 30 % of annotators would use this word";

/** A probability for people; none is written as certain that is not. */
export function percent(share) {
  const rounded = Math.round(100 * share);
  if (rounded === 0) return "under 1 %";
  return rounded === 100 && share < 1 ? "over 99 %" : `${rounded} %`;
}

/** Which of the five colours a certainty has, from 1. */
export function levelOf(certainty) {
  return LIMITS.filter((limit) => certainty >= limit).length + 1;
}

/**
 * What is to be thought of a caption.
 *
 * @param {object} caption see caption_view.js
 * @returns {{kind: "guess" | "chance" | "changed" | "", text: string}}
 */
export function verdictOf({ sure, known, isChanged }) {
  if (known !== null && known !== undefined && known < UNKNOWN) {
    return { kind: "guess", text: "Only a guess: the model has not seen images like this" };
  }
  if (isChanged) return { kind: "changed", text: "Changed by you: there is no estimate for this caption" };
  if (sure === null || sure === undefined) return { kind: "", text: "" };
  return { kind: "chance", text: `${percent(sure)} chance to score above the median human caption (CIDEr)` };
}

export const textOf = (word) => word.tokens.map(({ piece }) => piece).join("");
export const certaintyOf = (word) => word.tokens.reduce((product, { probability }) => product * probability, 1);
export const stepOf = (word) => Math.max(...word.tokens.map(({ step }) => step));

/** Where a word comes from, and how certain the model was of it. */
export function originOf(word) {
  if (word.isYours) return "your word";
  const certainty = word.given && word.certainty === undefined ? "" : percent(word.certainty ?? certaintyOf(word));
  if (word.isChosen) return `${certainty}, chosen by you`;
  if (word.given) return certainty ? `${certainty} certain, kept` : "given";
  return `${certainty} certain, step ${stepOf(word)}`;
}

/** What a step wrote. */
export function writtenAt(caption, step) {
  if (step === 0) return "only blanks";
  const tokens = caption.words.flatMap((word) => word.tokens.filter((token) => token.step === step));
  tokens.sort((one, other) => other.probability - one.probability);
  const said = tokens.map(({ piece, probability }) => `${piece} ${percent(probability)}`);
  if (caption.end === step) said.push("the end");
  return said.join(", ");
}

/** Why a caption took more steps than were set. */
export function moreSteps({ steps, planned }) {
  if (!planned || steps <= planned) return "";
  const more = steps - planned;
  return `${planned} steps were set; ${more === 1 ? "one more was" : `${more} more were`} needed, since no word is `
    + "written twice in one step.";
}

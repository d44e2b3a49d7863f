// Features of an image to a caption: choose lengths, decode a caption of each, keep the likeliest; as
// src/ddcap/decoding/generate.py and infilling.py.

import { decodeBestFirst, timestepForMaskRatio } from "./best_first.js";
import { Evidence, withoutConcepts } from "./concepts.js";
import { ConstrainedCaption, lengthsNear, logSumExp, patternOf } from "./constrained.js";
import { Predictor } from "./model.js";
import { Pruning } from "./pruning.js";

const WIDEST_BLANK = 4; // tokens tried for a blank
const MOST_CANDIDATES = 64; // combinations of widths decoded at once
const MOST_COMPARED = 16; // of which are compared by pseudo-likelihood

/** The model's settings with those that are wished for; a length that is asked for is exact. */
export function settingsOf(model, { steps, guidance, length }) {
  const settings = { ...model.description.decoding };
  if (steps) settings.steps = steps;
  if (typeof guidance === "number") settings.guidance = guidance;
  return length ? { ...settings, length, exact_length: true, candidates: 1 } : settings;
}

/** What an image shows, as far as it is not banned. */
export function featuresWithout(model, features, ban) {
  if (ban.length === 0 || !model.concepts) return features;
  const numbers = ban.map((phrase) => model.concepts.number(phrase)).filter((one) => one !== undefined);
  return model.withConcepts(features, withoutConcepts(features.seen, numbers));
}

export async function prepared(model, features, settings) {
  const denoiser = await model.denoiser(features, settings.guidance);
  const { concept_bonus: bonus, repeat_penalty: penalty, concept_weight: weight, persons } = settings;
  const isAsked = (bonus || penalty || weight || persons) && features.seen;
  const evidence = isAsked ? new Evidence(features.seen, model.concepts, settings, features.persons) : null;
  return { denoiser, evidence };
}

/** Caption lengths, end token included: the fixed one and those around it, or the likeliest. */
async function chooseLengths(model, features, { length, length_rule: rule }, count) {
  if (typeof length === "number") return nearestLengths(length, count, model.longest);
  const logits = await model.lengthLogits(features);
  if (logits === null) return new Array(count).fill(model.longest);
  const ranked = [...logits.keys()].sort((one, other) => logits[other] - logits[one] || one - other);
  if (count > 1 || rule === "argmax") return ranked.slice(0, count).map((place) => place + 1);
  const highest = logits[ranked[0]];
  const weights = Array.from(logits, (value) => Math.exp(value - highest));
  const sum = weights.reduce((total, weight) => total + weight);
  return [Math.round(weights.reduce((mean, weight, place) => mean + (weight * (place + 1)) / sum, 0))];
}

/** The `count` lengths nearest to `length`, itself first, longer before shorter. */
function nearestLengths(length, count, longest) {
  const all = Array.from({ length: longest }, (_, place) => place + 1);
  all.sort((one, other) => Math.abs(one - length) - Math.abs(other - length) || other - one);
  return all.slice(0, count);
}

/**
 * Caption one image.
 *
 * @param {import("./model.js").Model} model
 * @param {object} features of the image
 * @param {object} wish `steps`, `guidance`, `length` and `ban`, all optional
 * @returns {Promise<object[]>} its captions, the likeliest first, and pruned ones last: tokens, length, confidences,
 *     steps, plan
 */
export async function caption(model, features, wish = {}) {
  const settings = settingsOf(model, wish);
  const ban = wish.ban ?? [];
  const pattern = patternOf(ban);
  const seen = featuresWithout(model, features, ban);
  const { denoiser, evidence } = await prepared(model, seen, settings);
  const { endId, maskId } = model.vocabulary;
  let lengths = await chooseLengths(model, seen, settings, pattern ? 1 : settings.candidates);
  if (pattern && !settings.exact_length) lengths = lengthsNear(lengths[0], settings.candidates, model.longest);
  const isExact = settings.exact_length || pattern !== null;
  const longest = Math.max(...lengths);
  // behind shorter candidates stands any word, and under constraints the end token
  const captions = lengths.map((length) => {
    const filler = pattern ? endId : 0;
    const tokens = [...new Array(length).fill(maskId), ...new Array(longest - length).fill(filler)];
    if (isExact) tokens[length - 1] = endId;
    return tokens;
  });
  const constrained = pattern
    ? captions.map((tokens, row) => new ConstrainedCaption(pattern, model.vocabulary, tokens.slice(0, lengths[row]), []))
    : undefined;
  const predictor = new Predictor(denoiser, evidence, !isExact);
  const score = (one) => likelihood(one, settings, evidence, endId);
  const pruning = new Pruning(settings.prune ?? [], score);
  const rows = await decodeBestFirst(
    predictor, captions, lengths, settings, { diffusionSteps: model.diffusionSteps, constrained, pruning });
  const scores = rows.map(score);
  const behind = (row) => Number(pruning.dropped.has(row));
  const order = [...rows.keys()].sort(
    (one, other) => behind(one) - behind(other) || scores[other] - scores[one] || one - other);
  return order.map((row) => rows[row]);
}

/** How likely the model finds a caption among its candidates. */
function likelihood({ tokens, length, confidences }, settings, evidence, endId) {
  let total = 0;
  for (const value of confidences.slice(0, length)) total += Math.log(Math.max(value, 1e-30));
  const score = total / length ** settings.length_penalty;
  if (evidence === null) return score;
  const end = tokens.indexOf(endId);
  const said = tokens.map((token, place) => (end >= 0 && place >= end ? endId : token));
  return score + settings.concept_weight * evidence.said(said);
}

/**
 * Fill the blanks of a caption: keep the given words, choose width and words of each blank.
 *
 * @param {import("./model.js").Model} model
 * @param {object} features of the image
 * @param {Array<number[] | number | null>} template token ids where words are given; where a blank is, its width, or
 *     null if that is not known
 * @param {object} wish `steps`, `guidance` and `ban`
 * @returns {Promise<object>} the likeliest filling: tokens, length, confidences, steps, plan
 */
export async function infill(model, features, template, wish = {}) {
  const settings = settingsOf(model, { steps: wish.steps, guidance: wish.guidance });
  const ban = wish.ban ?? [];
  const pattern = patternOf(ban);
  const seen = featuresWithout(model, features, ban);
  const { denoiser, evidence } = await prepared(model, seen, settings);
  const { endId, maskId } = model.vocabulary;
  const parts = [...template, [endId]];
  let filled = widthsOf(parts)
    .map((widths) => withWidths(parts, widths, maskId))
    .filter((tokens) => tokens.length <= model.longest);
  if (filled.length === 0) throw new Error(`the caption would be over ${model.longest} tokens; take words out`);
  const constrained = pattern
    ? filled.map((tokens) => new ConstrainedCaption(pattern, model.vocabulary, tokens, behindGiven(tokens, maskId)))
    : undefined;
  const lengths = filled.map((tokens) => tokens.length);
  const longest = Math.max(...lengths);
  const captions = filled.map((tokens) => [...tokens, ...new Array(longest - tokens.length).fill(endId)]);
  const predictor = new Predictor(denoiser, evidence, false);
  const rows = await decodeBestFirst(
    predictor, captions, lengths, settings, { diffusionSteps: model.diffusionSteps, constrained });
  const lengthLogits = await model.lengthLogits(seen);
  const ofLength = (row) => (lengthLogits === null ? 0 : lengthLogits[lengths[row] - 1]);
  const scores = rows.map((one, row) => fillScore(captions[row], one.confidences, maskId) + ofLength(row));
  const best = [...rows.keys()].sort((one, other) => scores[other] - scores[one] || one - other).slice(0, MOST_COMPARED);
  if (best.length === 1) return rows[best[0]];
  const plain = await model.denoiser(seen);
  const evidences = await pseudoLogLikelihoods(model, plain, best.map((row) => rows[row].tokens.slice(0, lengths[row])));
  const totals = evidences.map((value, place) => value + ofLength(best[place]));
  return rows[best[totals.indexOf(Math.max(...totals))]];
}

/** All combinations of the blanks' widths, narrow ones first. */
function widthsOf(parts) {
  let combinations = [[]];
  for (const part of parts) {
    if (Array.isArray(part)) continue;
    const choices = part === null ? Array.from({ length: WIDEST_BLANK }, (_, place) => place + 1) : [part];
    combinations = combinations.flatMap((widths) => choices.map((width) => [...widths, width]));
  }
  const sum = (widths) => widths.reduce((total, width) => total + width, 0);
  return combinations.sort((one, other) => sum(one) - sum(other)).slice(0, MOST_CANDIDATES);
}

function withWidths(parts, widths, maskId) {
  let blank = 0;
  return parts.flatMap((part) => (Array.isArray(part) ? part : new Array(widths[blank++]).fill(maskId)));
}

/** Positions of MASKs right behind a given token: there a new word begins. */
function behindGiven(tokens, maskId) {
  return [...tokens.keys()].filter((place) => place > 0 && tokens[place] === maskId && tokens[place - 1] !== maskId);
}

/** Mean log-probability of the filled tokens. */
function fillScore(before, confidences, maskId) {
  const filled = [...before.keys()].filter((place) => before[place] === maskId);
  return filled.reduce((sum, place) => sum + Math.log(Math.max(confidences[place], 1e-30)), 0) / filled.length;
}

/**
 * How well all words of captions fit: each token is predicted from all others and the image, with what
 * follows it in its word hidden. As src/ddcap/decoding/scoring.py.
 */
async function pseudoLogLikelihoods(model, denoiser, captions) {
  const { maskId } = model.vocabulary;
  const queries = captions.flatMap((ids, caption) =>
    model.vocabulary.wordsIn(ids).flatMap((unit) =>
      unit.map((position, place) => {
        const hidden = unit.slice(place);
        const noised = ids.map((token, at) => (hidden.includes(at) ? maskId : token));
        return { caption, noised, position, token: ids[position], hidden: hidden.length };
      })));
  const longest = Math.max(...captions.map((ids) => ids.length));
  const { own } = await denoiser.logits(
    queries.map(({ noised }) => [...noised, ...new Array(longest - noised.length).fill(0)]),
    queries.map(({ noised, hidden }) => timestepForMaskRatio(hidden, noised.length, model.diffusionSteps)),
    queries.map(({ noised }) => noised.length),
    queries.map(({ position }) => [position]),
  );
  const totals = new Array(captions.length).fill(0);
  queries.forEach(({ caption, token }, row) => {
    const logits = own.subarray(row * maskId, (row + 1) * maskId); // of V words
    totals[caption] += logits[token] - logSumExp(logits);
  });
  return totals;
}

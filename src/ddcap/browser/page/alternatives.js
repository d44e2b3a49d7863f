// What could stand in place of one word of a caption, and how likely each is; as word_alternatives in
// src/ddcap/choices.py.

import { timestepForMaskRatio } from "./best_first.js";
import { logSumExp, patternOf } from "./constrained.js";
import { featuresWithout, prepared, settingsOf } from "./generate.js";
import { Predictor } from "./model.js";
import { wordsOf } from "./tokens.js";

const MOST = 6; // words that are told
const BEAM = 16; // beginnings of words that are followed

/**
 * Words that fit between the others, the likeliest first, without the word that is there.
 *
 * The word is hidden, as one MASK, as two, and so on up to as many tokens as it has. The probability of a word is
 * that of its tokens, one after the other, of all that makes one word. A word that only adds tokens to a likelier one
 * is left out.
 *
 * @param {import("./model.js").Model} model
 * @param {object} features of the image
 * @param {string[]} words of the caption
 * @param {number} place of the word
 * @param {object} wish `guidance`, `ban`
 * @returns {Promise<Array<{word: string, probability: number}>>}
 */
export async function alternatives(model, features, words, place, wish = {}) {
  const { vocabulary } = model;
  const ban = wish.ban ?? [];
  const pattern = patternOf(ban);
  const settings = settingsOf(model, { guidance: wish.guidance });
  const { denoiser, evidence } = await prepared(model, featuresWithout(model, features, ban), settings);
  const predictor = new Predictor(denoiser, evidence, false);
  const before = vocabulary.encode(words.slice(0, place).join(" "));
  const after = [...vocabulary.encode(words.slice(place + 1).join(" ")), vocabulary.endId];
  const own = vocabulary.encode(words[place]).length;
  const found = new Map();
  for (let width = 1; width <= Math.max(2, own); width++) {
    if (before.length + width + after.length > model.longest) break;
    for (const { ids, probability } of await ofWidth(predictor, before, width, after)) {
      // else a likelier word with something added: "cup", "cupy"
      if (probability >= (found.get(`${ids[0]}`)?.probability ?? 0)) found.set(`${ids}`, { ids, probability });
    }
  }
  const total = [...found.values()].reduce((sum, { probability }) => sum + probability, 0);
  const isBanned = (word) => pattern?.test(wordsOf([...words.slice(0, place), word, ...words.slice(place + 1)].join(" ")).join(" "));
  const other = [...found.values()]
    .map(({ ids, probability }) => ({ word: vocabulary.decode(ids), probability: probability / total }))
    .filter(({ word }) => word !== words[place] && !isBanned(word));
  return other.sort((one, two) => two.probability - one.probability).slice(0, MOST);
}

/** Words of so many tokens as token ids, and the probability of each. */
async function ofWidth(predictor, before, width, after) {
  const { model } = predictor;
  const { vocabulary } = model;
  const length = before.length + width + after.length;
  let beams = [{ ids: [], probability: 1 }];
  for (let place = 0; place < width; place++) {
    const left = width - place;
    const rows = beams.map(({ ids }) => [...before, ...ids, ...new Array(left).fill(vocabulary.maskId), ...after]);
    const predictions = await predictor.predict(
      rows, rows.map(() => timestepForMaskRatio(left, length, model.diffusionSteps)), rows.map(() => length),
      rows.map(() => [before.length + place]), false);
    const longer = beams.flatMap(({ ids, probability }, row) => {
      const scores = predictions[row].logits;
      const sum = logSumExp(scores);
      return [...scores.keys()]
        .filter((token) => vocabulary.isUsable[token] && vocabulary.begins[token] === (place === 0))
        .map((token) => ({ ids: [...ids, token], probability: probability * Math.exp(scores[token] - sum) }));
    });
    longer.sort((one, other) => other.probability - one.probability);
    beams = left === 1 ? longer : longer.slice(0, BEAM);
  }
  return beams;
}

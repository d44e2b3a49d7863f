// Focus: a step looks only at those MASK positions where a word is likely to be committed; as
// src/ddcap/decoding/schedulers/focus.py.

import { topKConfident } from "./surest.js";

const REACH = 1; // positions to each side of a new word that are looked at again

/**
 * What was predicted of one caption, and where to look next: at the surest positions, and beside new words.
 *
 * Positions that were never looked at are looked at.
 */
export class Focus {
  /** @param {number} surest positions, at least as many as are to be committed; Infinity looks at all */
  constructor(surest) {
    this.surest = surest;
    this.last = new Map(); // by position: the last guess in place of each MASK
    this.wanted = new Set(); // positions to look at whatever the certainty
  }

  /** Which of the MASK positions to look at, where `quota` tokens will be committed. */
  asked(blanks, quota) {
    const guesses = blanks.map((position) => this.last.get(position) ?? { position, certainty: 0 });
    const surest = topKConfident(guesses, Math.max(this.surest, quota)).map(({ position }) => position);
    return blanks.filter(
      (position) => surest.includes(position) || this.wanted.has(position) || !this.last.has(position));
  }

  /** Store what a step predicts where it looks, see surest.js. */
  note(guesses) {
    for (const guess of guesses) {
      this.last.set(guess.position, guess);
      this.wanted.delete(guess.position);
    }
  }

  /** Look again beside the words that were committed, which are no MASKs any more. */
  committed(guesses) {
    for (const { position } of guesses) {
      this.last.delete(position);
      for (let beside = position - REACH; beside <= position + REACH; beside++) this.wanted.add(beside);
    }
  }

  /** The last guess in place of every MASK. */
  predicted() {
    return [...this.last.values()];
  }
}

// Text to token ids and back; as src/ddcap/data/tokenizer.py, Vocabulary in decoding/allowed_tokens.py and the
// templates of decoding/infilling.py.

const MASK = "\0"; // stands for a MASK in a text
const RUN = /[a-z0-9]+/g;
const BLANK = /_{2,}|\[(\d+)\]/g;
const BEGIN = "▁"; // begins a word, in the merges

/** A text without case and accents. */
export function plain(text) {
  return text.normalize("NFKD").replace(/\p{Mn}/gu, "").toLowerCase();
}

/** The runs of letters and digits in a text: "a man's" is a, man, s. */
export function wordsOf(text) {
  return plain(text).match(RUN) ?? [];
}

export class Vocabulary {
  /**
   * @param {object} tokens model.json's: `pieces`, what each token adds to a text; `end_id`; `merges`, the pairs
   *     that make longer tokens, in their order
   */
  constructor({ pieces, end_id: endId, merges = [] }) {
    this.endId = endId;
    this.maskId = pieces.length; // V
    this.pieces = [...pieces, MASK];
    this.plain = this.pieces.map(plain);
    this.begins = pieces.map((piece) => piece.startsWith(" "));
    this.isUsable = pieces.map((piece, token) => piece.trim() !== "" && !/[\ufffd\0]/.test(piece) && token !== endId);
    this.goesOn = pieces.map((piece) => /^[\p{L}\p{N}-]/u.test(piece));
    this.ids = new Map(pieces.map((piece, token) => [piece.replace(/^ /, BEGIN), token]));
    this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
  }

  /**
   * Token ids of a text that begins with a word, without the end token.
   *
   * Throws an error if a word has letters that no token has.
   */
  encode(text) {
    for (const word of text.split(/\s+/)) {
      if (/[\p{L}\p{N}]/u.test(plain(word).replace(RUN, ""))) {
        throw new Error(`“${word}” has letters that the model cannot write; use others`);
      }
    }
    const words = plain(text).replace(/[^a-z0-9'-]+/g, " ").replace(/(?<= |^)['-]+|['-]+(?= |$)/g, "").match(/[^ ]+/g);
    return (words ?? []).flatMap((word) => this.merged([BEGIN, ...word]).map((part) => this.ids.get(part)));
  }

  /** Byte-pair encoding: of all neighbours those merge first that were merged first in training. */
  merged(parts) {
    for (;;) {
      let [best, place] = [Infinity, -1];
      for (let at = 0; at + 1 < parts.length; at++) {
        const rank = this.ranks.get(`${parts[at]} ${parts[at + 1]}`) ?? Infinity;
        if (rank < best) [best, place] = [rank, at];
      }
      if (place < 0) return parts;
      parts.splice(place, 2, parts[place] + parts[place + 1]);
    }
  }

  /**
   * A sentence with blanks as the parts of a caption.
   *
   * @param {string} text `___` is a blank of any number of tokens, `[2]` one of two
   * @returns {Array<number[] | number | null>} token ids where words are given, else the width of the blank
   */
  parseTemplate(text) {
    const parts = [];
    let from = 0;
    for (const match of text.matchAll(BLANK)) {
      if (match[1] !== undefined && Number(match[1]) === 0) throw new Error("a blank of width 0; remove it, or write ___");
      parts.push(this.encode(text.slice(from, match.index)), match[1] === undefined ? null : Number(match[1]));
      from = match.index + match[0].length;
    }
    if (parts.length === 0) throw new Error("the sentence has no blank; write ___ where words are missing");
    parts.push(this.encode(text.slice(from)));
    return parts.filter((part) => !Array.isArray(part) || part.length > 0);
  }

  /** The text of token ids up to the first end token; MASKs are left out. */
  decode(ids) {
    return this.untilEnd(ids).filter((token) => token !== this.maskId).map((token) => this.pieces[token]).join("").trim();
  }

  /** Token ids before the first end token. */
  untilEnd(ids) {
    const end = ids.indexOf(this.endId);
    return end < 0 ? [...ids] : ids.slice(0, end);
  }

  /** Positions of each word of a caption, the end token as a word of its own. */
  wordsIn(ids) {
    const words = [];
    ids.forEach((token, position) => {
      const isFirst = this.pieces[token].startsWith(" ") || token === this.maskId || token === this.endId;
      if (words.length === 0 || isFirst) words.push([]);
      words.at(-1).push(position);
    });
    return words;
  }
}

// Token ids to text; as src/ddcap/data/tokenizer.py and Vocabulary in src/ddcap/decoding/constraints.py.

const MASK = "\0"; // stands for a MASK in a text
const RUN = /[a-z0-9]+/g;

/** A text without case and accents. */
export function plain(text) {
  return text.normalize("NFKD").replace(/\p{Mn}/gu, "").toLowerCase();
}

/** The runs of letters and digits in a text: "a man's" is a, man, s. */
export function wordsOf(text) {
  return plain(text).match(RUN) ?? [];
}

export class Vocabulary {
  /** @param {{pieces: string[], end_id: number}} tokens what each token adds to a text; model.json's */
  constructor({ pieces, end_id: endId }) {
    this.endId = endId;
    this.maskId = pieces.length; // V
    this.pieces = [...pieces, MASK];
    this.plain = this.pieces.map(plain);
    this.begins = pieces.map((piece) => piece.startsWith(" "));
    this.isUsable = pieces.map((piece, token) => piece.trim() !== "" && !/[\ufffd\0]/.test(piece) && token !== endId);
    this.goesOn = pieces.map((piece) => /^[\p{L}\p{N}-]/u.test(piece));
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

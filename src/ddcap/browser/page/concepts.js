// What is seen in an image has a say in what is written; as ConceptEvidence in
// src/ddcap/decoding/predictor.py and src/ddcap/data/concepts.py.
//
// Shapes: K captions, L positions, N concepts, V words.

const NO_CONCEPT = -1;
const AMONG_CANDIDATES = 0.1; // share of a detector's evidence for persons

/** The words of the concepts that a model sees, and how its tokens spell them. */
export class Concepts {
  /** @param {object} given model.json's "concepts" */
  constructor({ words, forms, spelling, goes_on: goesOn, longest, persons = [], rates = null }, maskId) {
    this.words = words;
    this.longest = longest; // tokens of a word
    this.goesOn = goesOn; // tokens that go on with a word
    this.maskId = maskId;
    this.numbers = new Map([...Object.entries(forms), ...words.map((word) => [word, word])]);
    const place = new Map(words.map((word, number) => [word, number]));
    for (const [form, word] of this.numbers) this.numbers.set(form, place.get(word));
    this.spelling = spelling.map(([concept, ...pieces]) => ({ concept, pieces }));
    this.rates = rates; // how often each is named: in any image (prior), and in those that do not list it (unlisted)
    this.persons = new Set(persons);
    const ofPersons = this.spelling.filter(({ concept, pieces }) => pieces.length === 1 && this.persons.has(concept));
    this.personTokens = new Set(ofPersons.map(({ pieces: [token] }) => token));
    this.byFirst = new Map();
    for (const form of this.spelling) {
      const [first] = form.pieces;
      if (!this.byFirst.has(first)) this.byFirst.set(first, []);
      this.byFirst.get(first).push(form);
    }
    this.forms = Map.groupBy ? Map.groupBy(this.spelling, (form) => form.concept) : grouped(this.spelling);
  }

  /** The concept that a word in any of its forms stands for. */
  number(word) {
    return this.numbers.get(word.trim().toLowerCase());
  }

  /** The concepts that a text names, each once. */
  find(text) {
    const words = text.toLowerCase().replaceAll("'s", "").match(/[a-z]+(?:-[a-z]+)*/g) ?? [];
    return [...new Set(words.map((word) => this.numbers.get(word)).filter((number) => number !== undefined))];
  }

  /** The concepts that a caption's tokens name; of a begun word a MASK may be the rest. */
  named(tokens) {
    const found = new Set();
    tokens.forEach((token, at) => {
      for (const { concept, pieces } of this.byFirst.get(token) ?? []) {
        const fits = pieces.every((piece, place) => {
          const there = tokens[at + place];
          return there === piece || (place > 0 && there === this.maskId);
        });
        const next = tokens[at + pieces.length];
        if (fits && !(next < this.maskId && this.goesOn[next])) found.add(concept); // "cat" is not in "catch"
      }
    });
    return found;
  }
}

function grouped(forms) {
  const groups = new Map();
  for (const form of forms) groups.set(form.concept, [...(groups.get(form.concept) ?? []), form]);
  return groups;
}

/** Pairs of a concept and its confidence, without the fillers. */
export function seenIn(ids, confidences) {
  return ids.map((concept, place) => [concept, confidences[place]]).filter(([concept]) => concept !== NO_CONCEPT);
}

/** The concepts as they are seen where some words are banned: theirs are not there. */
export function withoutConcepts(seen, numbers) {
  const found = new Map();
  for (const [concept, confidence] of seen) if (!found.has(concept)) found.set(concept, confidence);
  return [...found].filter(([concept]) => !numbers.includes(concept));
}

/** What an image's concepts say about its captions. */
export class Evidence {
  /**
   * @param {Array<[number, number]>} seen concepts with their confidences
   * @param {Concepts} concepts
   * @param {object} settings of decoding: concept_bonus, repeat_penalty, absence, persons
   * @param {number | null} persons what a detector says for persons (over 0) or against them; null without one
   */
  constructor(seen, concepts, settings, persons = null) {
    this.seen = new Map(seen);
    this.concepts = concepts;
    this.bonus = settings.concept_bonus;
    this.repeatPenalty = settings.repeat_penalty;
    this.against = settings.absence ? this.#speaksAgainst(settings.absence) : null; // (N,) 0 or less, or null
    this.againstWords = new Map(); // of a word that stands for several concepts the last one counts
    for (const { concept, pieces } of this.against ? concepts.spelling : []) {
      if (pieces.length === 1) this.againstWords.set(pieces[0], this.against[concept]);
    }
    this.personWeight = persons === null || !settings.persons ? 0 : Math.fround(settings.persons * persons);
  }

  get hasASay() {
    return Boolean(this.bonus || this.repeatPenalty || this.against || this.personWeight);
  }

  /** Of each concept the log of how likely it is named here against in any image, where that is less. */
  #speaksAgainst(weight) {
    const { prior, unlisted } = this.concepts.rates;
    return Float32Array.from(prior, (rate, concept) => {
      const chance = this.seen.get(concept) ?? unlisted[concept];
      return weight * Math.min(0, Math.log(Math.fround(chance)) - Math.log(Math.fround(rate)));
    });
  }

  /** Add to every position's log-probabilities (V), given the tokens so far. */
  addTo(added, tokens) {
    const named = this.concepts.named(tokens);
    for (const [concept, share] of this.seen) {
      if (named.has(concept)) continue;
      for (const { pieces: [first] } of this.concepts.forms.get(concept) ?? []) {
        added[first] = Math.max(added[first], this.bonus * share);
      }
    }
    const taken = new Set();
    for (const concept of named) {
      for (const { pieces } of this.concepts.forms.get(concept) ?? []) {
        if (pieces.length === 1) taken.add(pieces[0]);
      }
    }
    for (const token of taken) added[token] -= this.repeatPenalty;
    for (const [token, value] of this.againstWords) added[token] += value;
    if (this.personWeight < 0 || !this.namesPerson(named)) {
      for (const token of this.concepts.personTokens) added[token] += this.personWeight;
    }
  }

  namesPerson(named) {
    return [...named].some((concept) => this.concepts.persons.has(concept));
  }

  /** The confidences of all concepts that a caption names, added up. */
  said(tokens) {
    const named = this.concepts.named(tokens);
    let sum = this.namesPerson(named) ? AMONG_CANDIDATES * this.personWeight : 0;
    for (const concept of named) sum += (this.seen.get(concept) ?? 0) + (this.against?.[concept] ?? 0);
    return sum;
  }
}

// What both pages do: an image comes in, its caption is shown, words are changed, drafts are taken.
//
// Who computes is told apart by one object, the engine: `ask(request)` resolves with an answer. A request is
// {kind: "caption", image, ...wish}, {kind: "infill", image, template, ...wish} or {kind: "alternatives",
// image, words, place, ...wish}. Answers are {captions: [...]}, see caption_view.js, or {alternatives: [{word,
// probability}]}. An error may be `unreadable`: then the image is none.

import { CaptionView } from "./caption_view.js";
import { ImageInput } from "./image_input.js";
import { WordPanel } from "./word_panel.js";
import { textOf, certaintyOf } from "./words.js";

const GUIDANCES = [1, 1.2, 1.5, 2, 3];
const NUMBERS = [2, 3, 4, 5];

export class Interface {
  /**
   * @param {HTMLElement} root with the contents of body.html
   * @param {{ask: (request: object) => Promise<object>}} engine
   * @param {{promise?: string, offers?: string[], mostBytes?: number}} page what is special of a page: a sentence
   *     for its head; options that only one page has; how large a file may be
   */
  constructor(root, engine, { promise = "", offers = [], mostBytes = Infinity } = {}) {
    [this.root, this.engine, this.mostBytes] = [root, engine, mostBytes];
    this.find = (selector) => root.querySelector(selector);
    [this.image, this.captions, this.chosen, this.number] = [null, [], 0, 0];
    this.tried = new Set(); // words that were refilled: they do not come back
    this.view = new CaptionView(root, (place) => this.choose(place));
    this.panel = new WordPanel(root, {
      take: (place, word, probability) => this.replace(place, word, probability),
      refill: (place) => this.refill(place),
      close: (place) => this.closePanel(place),
    });
    this.input = new ImageInput(root, (file) => this.open(file), (message) => this.complain(message));
    this.find(".promise").textContent = promise;
    for (const part of root.querySelectorAll("[data-offer]")) part.hidden = !offers.includes(part.dataset.offer);
    this.find(".copy").addEventListener("click", () => this.copy());
    this.wishes = this.find(".wishes");
    this.wishes.addEventListener("change", () => this.again());
    this.wishes.addEventListener("submit", (event) => {
      event.preventDefault();
      this.again();
    });
    this.find(".sentence").addEventListener("submit", (event) => {
      event.preventDefault();
      this.fill(this.find(".sentence input").value, {});
    });
    this.input.takeWaiting();
  }

  /** What can be chosen, once it is known how long captions may be. */
  offer({ longest }) {
    const add = (name, values, text) => {
      const select = this.wishOf(name);
      if (select.options.length === 1) for (const value of values) select.add(new Option(text(value), value));
    };
    const from = (first) => Array.from({ length: longest - first + 1 }, (_, place) => first + place);
    add("steps", from(1), (steps) => (steps === 4 ? "4, fast" : `${steps}`));
    add("length", from(4), (length) => `${length - 1} tokens`); // the end is a token, too
    add("guidance", GUIDANCES, (scale) => (scale === 1 ? "off" : `${scale}`));
    add("num", NUMBERS, (number) => `${number} that differ`);
  }

  /** A field of the options. (A form's elements.length is their number.) */
  wishOf(name) {
    return this.wishes.elements.namedItem(name);
  }

  /** What is wished for, as an engine takes it. */
  wish() {
    const value = (name) => this.wishOf(name).value;
    const number = (name) => (value(name) ? Number(value(name)) : null);
    const words = (name) => value(name).split(",").map((word) => word.trim()).filter((word) => word !== "");
    return {
      steps: number("steps"), length: number("length"), guidance: number("guidance"), num: number("num"),
      include: words("include"), ban: words("ban"),
    };
  }

  open(file) {
    if (file.size > this.mostBytes) {
      const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
      this.refuse(`${file.name} has ${megabytes(file.size)} MB; at most ${megabytes(this.mostBytes)} MB can be sent.`);
      return;
    }
    this.image = file;
    this.forgetCaption();
    this.caption();
  }

  /** The image with other wishes. */
  again() {
    if (this.image !== null) this.caption();
  }

  async caption() {
    const answer = await this.ask({ kind: "caption", ...this.wish() });
    if (answer === null) return;
    this.tried.clear();
    this.captions = answer.captions;
    this.list(this.wishOf("num").value ? "All captions" : "Drafts of other lengths");
    this.show(0);
  }

  /** Fill the blanks of a sentence; the new caption stands before the others. */
  async fill(template, { ban = [], kept = null, focus }) {
    const wish = this.wish();
    const answer = await this.ask({ kind: "infill", template, ...wish, ban: [...wish.ban, ...ban] });
    if (answer === null) return;
    const [filled] = answer.captions;
    if (kept !== null) filled.words.forEach((word, place) => keep(word, kept, place, filled.words.length));
    this.add(filled, focus);
  }

  /** Something else in place of a word, of any number of tokens; what was tried does not come back. */
  refill(place) {
    const { words } = this.view.caption;
    const others = words.filter((_, other) => other !== place).map(textOf);
    this.tried.add(textOf(words[place]));
    const ban = [...this.tried].filter((word) => !others.includes(word));
    const kept = { before: words.slice(0, place), after: words.slice(place + 1) };
    this.fill(words.map((word, other) => (other === place ? "___" : textOf(word))).join(" "), { ban, kept, focus: place });
  }

  /** A word that a person takes or types in place of one. */
  replace(place, text, probability) {
    const taken = {
      tokens: [{ piece: text, step: 0, probability: probability ?? 1 }],
      given: true, doubtful: false, isYours: probability === undefined, isChosen: probability !== undefined,
      certainty: probability,
    };
    const words = this.view.caption.words.map((word, other) => (other === place ? taken : word));
    const { known, end, steps, planned } = this.view.caption;
    this.add({ text: words.map(textOf).join(" "), sure: null, known, end, steps, planned, words, isChanged: true }, place);
  }

  add(caption, focus) {
    this.captions = [caption, ...this.captions.filter(({ text }) => text !== caption.text)];
    this.list("Other captions");
    this.show(0, { focus });
  }

  show(number, how = {}) {
    this.chosen = number;
    this.panel.close();
    this.setState("shown");
    this.view.show(this.captions[number], how);
    this.view.mark(null);
    this.find(".drafts ol").childNodes.forEach((item, place) =>
      item.firstChild.setAttribute("aria-pressed", place === number));
  }

  /** The captions that can be taken instead. */
  list(title) {
    this.find(".drafts").hidden = this.captions.length < 2;
    this.find(".drafts h2").textContent = title;
    this.find(".drafts ol").replaceChildren(...this.captions.map(({ text }, place) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", () => this.show(place, { replays: false }));
      item.append(button);
      return item;
    }));
  }

  async choose(place) {
    if (this.panel.isFor(place)) {
      this.closePanel(place);
      return;
    }
    const { caption } = this.view;
    this.panel.open(place, caption.words[place]);
    this.view.mark(place);
    try {
      const request = { kind: "alternatives", words: caption.words.map(textOf), place, ...this.wish() };
      const { alternatives } = await this.engine.ask({ ...request, image: this.image });
      if (this.panel.isFor(place) && this.view.caption === caption) this.panel.fill(alternatives);
    } catch (error) {
      if (this.panel.isFor(place)) this.panel.tell(sentence(error.message));
    }
  }

  closePanel(place) {
    this.panel.close();
    this.view.mark(null);
    this.view.buttons[place]?.focus();
  }

  /** The answer to the newest request; null if it came too late, or there is none and it was said why. */
  async ask(request) {
    if (this.image === null) {
      this.complain("There is no image yet. Choose one, or try a sample.");
      return null;
    }
    const number = ++this.number;
    this.find(".problem").textContent = "";
    this.setState("waiting");
    try {
      const answer = await this.engine.ask({ ...request, image: this.image });
      return number === this.number ? answer : null;
    } catch (error) {
      if (number !== this.number) return null;
      if (error.unreadable) this.refuse(sentence(error.message));
      else this.complain(sentence(error.message));
      return null;
    }
  }

  complain(message) {
    this.find(".problem").textContent = message;
    this.setState(this.captions.length ? "shown" : "empty");
  }

  /** An image that is none: nothing of it stays, nor of the one before. */
  refuse(message) {
    this.number++;
    this.image = null;
    this.input.forget();
    this.forgetCaption();
    this.complain(message);
  }

  forgetCaption() {
    this.captions = [];
    this.tried.clear();
    this.panel.close();
    this.view.clear();
  }

  setState(state) {
    this.root.dataset.state = state;
    this.root.setAttribute("aria-busy", state === "waiting");
    const empty = this.find(".empty");
    empty.hidden = this.captions.length > 0;
    empty.textContent = state === "waiting" ? "Captioning the image …" : "The caption appears here, word by word.";
  }

  async copy() {
    const button = this.find(".copy");
    const { text } = this.view.caption;
    button.textContent = (await written(text)) ? "Copied" : "Not copied: select it below";
    setTimeout(() => (button.textContent = "Copy the caption"), 2000);
  }
}

/** A word that stayed in its place keeps what was known of it. */
function keep(word, { before, after }, place, count) {
  const fromEnd = count - 1 - place;
  const old = place < before.length ? before[place] : fromEnd < after.length ? after.at(-1 - fromEnd) : undefined;
  if (old === undefined || !word.given) return;
  const isGiven = old.given && old.certainty === undefined;
  Object.assign(word, { doubtful: old.doubtful, isYours: old.isYours, isChosen: old.isChosen });
  if (!isGiven) word.certainty = old.certainty ?? certaintyOf(old);
}

async function written(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedBySelection(text); // an insecure address has no clipboard
  }
}

function copiedBySelection(text) {
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

const sentence = (text) => {
  const first = text[0].toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(first) ? first : `${first}.`;
};

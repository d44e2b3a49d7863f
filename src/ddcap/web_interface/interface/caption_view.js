// A caption as both pages draw it: its words in colours of certainty, the steps in which they came, a verdict.
//
// A caption is {text, sure, known, steps, planned, end, words}: steps it took, steps that were planned, the step
// that wrote its end; a word is {tokens, given, doubtful}, a token {piece, step, probability}. What was given has
// step 0. See ddcap.gradio_page.shown and told.js of the page that computes in the browser.

import { DOUBTFUL, certaintyOf, levelOf, moreSteps, originOf, percent, stepOf, textOf, verdictOf, writtenAt } from "./words.js";

const PACE = 200; // milliseconds a step of the replay

export class CaptionView {
  /**
   * @param {HTMLElement} root of the interface
   * @param {(place: number) => void} onWord is told which word was chosen
   */
  constructor(root, onWord) {
    this.find = (selector) => root.querySelector(selector);
    [this.root, this.onWord, this.caption, this.timer, this.step] = [root, onWord, null, null, 0];
    this.row = this.find(".words");
    this.range = this.find(".replay input");
    this.range.addEventListener("input", () => {
      this.stop();
      this.goTo(Number(this.range.value));
    });
    this.find(".play").addEventListener("click", () => this.play());
    this.row.addEventListener("keydown", (event) => this.move(event));
  }

  /** Nothing is there that could be of another image. */
  clear() {
    this.stop();
    this.caption = null;
    this.row.replaceChildren();
    this.find(".spoken").textContent = "";
    this.find(".verdict").textContent = "";
    this.find(".result").hidden = true;
  }

  /**
   * @param {object} caption
   * @param {{replays?: boolean, focus?: number}} how whether its steps are played; the word to focus
   */
  show(caption, { replays = true, focus } = {}) {
    this.stop();
    this.caption = caption;
    this.buttons = caption.words.map((word, place) => this.buttonOf(word, place));
    this.row.replaceChildren(...this.buttons);
    this.range.max = caption.steps;
    this.find(".replay").hidden = caption.steps === 0;
    this.find(".result").hidden = false;
    const isStill = focus !== undefined || !replays || caption.steps === 0
      || matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (isStill) this.goTo(caption.steps);
    else this.play();
    if (focus !== undefined) this.buttons[Math.min(focus, this.buttons.length - 1)]?.focus();
  }

  buttonOf(word, place) {
    const button = document.createElement("button");
    button.type = "button";
    for (const name of ["text", "bar", "note"]) {
      const part = document.createElement("span");
      part.className = name;
      button.append(part);
    }
    button.addEventListener("click", () => {
      this.stop();
      this.goTo(this.caption.steps);
      this.onWord(place);
    });
    return button;
  }

  /** The caption as it was after a step. */
  goTo(step) {
    const { caption } = this;
    this.step = step;
    caption.words.forEach((word, place) => this.draw(word, this.buttons[place]));
    const what = writtenAt(caption, step);
    this.range.value = step;
    this.range.setAttribute("aria-valuetext", `step ${step} of ${caption.steps}: ${what}`);
    this.find(".step").textContent = `Step ${step} of ${caption.steps}`;
    this.find(".what").textContent = step < caption.steps ? what : [what, moreSteps(caption)].filter(Boolean).join(". ");
    this.judge();
  }

  draw(word, button) {
    const there = word.tokens.filter((token) => token.step <= this.step);
    const isWhole = there.length === word.tokens.length;
    const isFresh = this.step > 0 && this.step < this.caption.steps && stepOf(word) === this.step;
    const isDoubtful = isWhole && word.doubtful;
    const certainty = word.certainty ?? certaintyOf(word);
    const isGiven = word.isYours || (word.given && word.certainty === undefined);
    const level = isGiven ? "given" : `c${levelOf(certainty)}`;
    button.className = ["word", isWhole ? level : "blank", isFresh && "fresh", isDoubtful && "doubtful"].filter(Boolean).join(" ");
    button.disabled = !isWhole;
    const [text, , note] = button.children;
    text.textContent = there.length === 0 ? "·" : word.tokens.map((token) => (token.step <= this.step ? token.piece : "··")).join("");
    note.textContent = !isWhole ? "\u00a0" : isGiven ? (word.isYours ? "yours" : "given") : percent(certainty);
    const doubt = isDoubtful ? `; ${DOUBTFUL}` : "";
    button.setAttribute("aria-label", isWhole ? `${textOf(word)}: ${originOf(word)}${doubt}` : "not yet");
  }

  /** The verdict and the spoken caption come with the last word, not before. */
  judge() {
    const isDone = this.step === this.caption.steps;
    const { kind, text } = isDone ? verdictOf(this.caption) : { kind: "", text: "\u00a0" };
    const verdict = this.find(".verdict");
    verdict.className = `verdict ${kind}`;
    verdict.textContent = text;
    if (!isDone) return;
    const doubtful = this.caption.words.filter((word) => word.doubtful).map(textOf);
    const doubts = doubtful.length ? ` In doubt: ${doubtful.join(", ")}.` : "";
    const spoken = `Caption: ${this.caption.text}. ${text ? `${text}.` : ""}${doubts}`;
    if (this.find(".spoken").textContent !== spoken) this.find(".spoken").textContent = spoken;
  }

  play() {
    this.stop();
    this.goTo(0);
    this.timer = setInterval(() => {
      this.goTo(this.step + 1);
      if (this.step >= this.caption.steps) this.stop();
    }, PACE);
  }

  stop() {
    clearInterval(this.timer);
  }

  /** Arrow keys go from word to word. */
  move(event) {
    const place = this.buttons.indexOf(document.activeElement);
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: this.buttons.length - 1 }[event.key];
    if (place < 0 || this.buttons[to] === undefined) return;
    event.preventDefault();
    this.buttons[to].focus();
  }

  /** Which word is being changed. */
  mark(place) {
    this.buttons?.forEach((button, other) => button.setAttribute("aria-expanded", other === place));
  }
}

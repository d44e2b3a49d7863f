// What can stand in place of a word: other words with their probabilities, a word of one's own, another try.

import { DOUBTFUL, originOf, percent, textOf } from "./words.js";

export class WordPanel {
  /**
   * @param {HTMLElement} root of the interface
   * @param {object} does what a person may want: `take(place, word, probability)`, `refill(place)`, `close(place)`
   */
  constructor(root, does) {
    this.panel = root.querySelector(".panel");
    [this.does, this.place] = [does, null];
    this.others = this.panel.querySelector(".others");
    this.input = this.panel.querySelector("input");
    this.panel.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      const word = this.input.value.trim();
      if (word) this.does.take(this.place, word);
      else this.input.focus();
    });
    this.panel.querySelector(".refill").addEventListener("click", () => this.does.refill(this.place));
    this.panel.querySelector(".close").addEventListener("click", () => this.does.close(this.place));
    this.panel.addEventListener("keydown", ({ key }) => key === "Escape" && this.does.close(this.place));
  }

  /** Whether a word's other words are still awaited. */
  isFor(place) {
    return !this.panel.hidden && this.place === place;
  }

  open(place, word) {
    this.place = place;
    const about = document.createElement("b");
    about.textContent = textOf(word);
    const doubt = word.doubtful ? `; ${DOUBTFUL}` : "";
    this.panel.querySelector(".about").replaceChildren(about, ` ${originOf(word)}${doubt}`);
    this.panel.setAttribute("aria-label", `In place of ${textOf(word)}`);
    this.tell("Looking for other words …");
    this.input.value = "";
    this.panel.hidden = false;
  }

  /** @param {Array<{word: string, probability: number}>} words the likeliest first */
  fill(words) {
    if (words.length === 0) {
      this.tell("The model has no other word for this place.");
      return;
    }
    this.others.replaceChildren(...words.map(({ word, probability }) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(word, element("small", percent(probability)));
      button.style.setProperty("--share", `${Math.round(100 * probability)}%`);
      button.addEventListener("click", () => this.does.take(this.place, word, probability));
      return button;
    }));
  }

  tell(text) {
    this.others.replaceChildren(element("span", text));
  }

  close() {
    this.panel.hidden = true;
    this.place = null;
  }
}

function element(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

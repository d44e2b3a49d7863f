// A caption on the page: its words with the order in which they came, a slider over the steps, the drafts.

const PACE = 140; // milliseconds a step of the replay

export class CaptionView {
  /**
   * @param {(id: string) => HTMLElement} $
   * @param {(place: number) => void} onWord is told the number of a word that is to be filled again
   */
  constructor($, onWord) {
    [this.$, this.onWord, this.told, this.timer] = [$, onWord, null, null];
    $("step").addEventListener("input", () => {
      this.stop();
      this.goTo(Number($("step").value));
    });
    $("play").addEventListener("click", () => this.play());
  }

  /** A caption is being written. */
  wait() {
    this.stop();
    document.body.dataset.state = "waiting";
    this.$("result").setAttribute("aria-busy", "true");
  }

  stopWaiting() {
    document.body.dataset.state = "ready";
    this.$("result").setAttribute("aria-busy", "false");
  }

  /** Drafts while they are written. */
  showDrafts(drafts) {
    this.$("result").hidden = false;
    if (this.told === null || document.body.dataset.state === "waiting") this.list(drafts);
  }

  list(texts, chosen = -1) {
    const items = texts.map((text, place) => element("li", text, place === chosen ? "kept" : ""));
    this.$("drafts").replaceChildren(...items);
    this.$("drafts-box").hidden = texts.length < 2;
  }

  /** A caption that is done. */
  show(told) {
    this.told = told;
    this.stopWaiting();
    this.$("result").hidden = false;
    this.buttons = told.words.map((positions, place) => this.wordOf(positions, place));
    this.$("caption").replaceChildren(...this.buttons.flatMap((button) => [button, " "]));
    this.$("spoken").textContent = told.text;
    this.$("step").max = told.steps;
    this.list(told.rivals, 0);
    this.$("judgement").replaceChildren(...judgementOf(told));
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) this.goTo(told.steps);
    else this.play();
  }

  wordOf(positions, place) {
    const parts = positions.map((position) => this.told.tokens[position]);
    const text = parts.map(({ piece }) => piece).join("").trim();
    const step = Math.max(...parts.map((part) => part.step));
    const certainty = parts.reduce((product, part) => product * part.certainty, 1);
    const isDoubtful = this.told.doubtful?.includes(text);
    const button = element("button", text, isDoubtful ? "word doubtful" : "word");
    button.type = "button";
    button.dataset.shade = shadeOf(step, this.told.steps);
    const when = step === 0 ? "given" : `step ${step}, ${percent(certainty)} certain`;
    button.title = isDoubtful ? `${when}; people would hardly use this word` : when;
    button.setAttribute("aria-label", `${text}, ${button.title}. Fill again`);
    button.addEventListener("click", () => {
      this.stop();
      this.goTo(this.told.steps);
      button.classList.add("blank");
      this.onWord(place);
    });
    button.step = step;
    return button;
  }

  /** The caption as it was after a step. */
  goTo(step) {
    this.$("step").value = step;
    this.$("step-text").textContent = `step ${step} of ${this.told.steps}`;
    for (const button of this.buttons) button.classList.toggle("blank", button.step > step);
  }

  play() {
    this.stop();
    let step = 0;
    this.goTo(step);
    this.timer = setInterval(() => {
      this.goTo(++step);
      if (step >= this.told.steps) this.stop();
    }, PACE);
  }

  stop() {
    clearInterval(this.timer);
  }
}

const percent = (share) => `${Math.round(100 * share)} %`;

/** Five shades from the first step to the last; 0 for what was given. */
function shadeOf(step, steps) {
  return step === 0 ? 0 : 1 + Math.round((4 * (step - 1)) / Math.max(1, steps - 1));
}

function judgementOf({ sure, known, doubtful, seen }) {
  const parts = [];
  if (known !== undefined && known < 0.5) {
    parts.push(`A guess at best: this is no picture of a kind that the model knows (${percent(known)}).`);
  } else if (sure !== undefined) {
    parts.push(`People would take this for one of their own captions with a chance of ${percent(sure)}.`);
  }
  if (doubtful?.length) parts.push(`In doubt: ${doubtful.join(", ")}.`);
  if (seen?.length) parts.push(`It sees ${seen.filter(([, share]) => share >= 0.1).map(([word]) => word).join(", ") || seen[0][0]}.`);
  return parts.map((text) => element("span", `${text} `));
}

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

// The body of a function: element, props, trigger and watch are Gradio's.
// props.value is {busy}, {error} or {captions}, see ddcap.page.shown.
const find = (selector) => element.querySelector(selector);
const line = find("[role=alert]");
const state = find("[role=status]");
const empty = find(".empty");
const result = find(".result");
const row = find(".words");
const range = find("input");
const again = find(".again");
const others = find(".others");
const STEP_MS = 240;

let captions = [];
let chosen = 0;
let shown = 0; // the step that is shown; 0: before the first
let blanked = new Set(); // numbers of words
let buttons = [];
let timer = null;
let toldNumber = null;
let focusAfter = null; // number of the word that gets the focus once it is filled

function unseen(text) {
  const part = document.createElement("span"); // for screen readers; the picture of the words says it, too
  part.className = "unseen";
  part.textContent = text;
  return part;
}

const percent = (share) => `${Math.round(100 * share)} %`;
const caption = () => captions[chosen];
const textOf = (word) => word.tokens.map((token) => token.piece).join("");
const stepOf = (word) => Math.max(...word.tokens.map((token) => token.step));
const chanceOf = (word) => word.tokens.reduce((chance, token) => chance * token.probability, 1);
const levelOf = (chance) => [0.25, 0.5, 0.75, 0.9].filter((limit) => chance >= limit).length + 1;

function begin(number, replays) {
  chosen = number;
  blanked = new Set();
  row.textContent = "";
  buttons = caption().words.map((word, place) => {
    const button = document.createElement("button");
    button.type = "button";
    const text = document.createElement("span");
    text.className = "text";
    const note = document.createElement("small");
    button.append(text, note);
    button.addEventListener("click", () => toggle(place));
    row.append(button);
    return button;
  });
  range.max = caption().steps;
  const sure = caption().sure === null ? "" : `${percent(caption().sure)} sure that a person would say so`;
  find(".sure").textContent = caption().why_not ?? sure;
  const list = find(".others-said ol");
  list.textContent = "";
  find(".others-said").hidden = captions.length < 2;
  captions.forEach((one, other) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = one.text;
    button.setAttribute("aria-pressed", other === number);
    button.addEventListener("click", () => {
      begin(other, true);
      find(".others-said ol").children[other].firstChild.focus();
    });
    item.append(button);
    list.append(item);
  });
  const still = !replays || window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  still ? show(caption().steps) : play();
}

function play() {
  stop();
  show(0);
  timer = setInterval(() => (shown < caption().steps ? show(shown + 1) : stop()), STEP_MS);
}

function stop() {
  clearInterval(timer);
  timer = null;
}

function show(step) {
  shown = step;
  caption().words.forEach((word, place) => draw(word, buttons[place], blanked.has(place)));
  const fresh = caption().words.flatMap((word) => word.tokens.filter((token) => step && token.step === step));
  fresh.sort((one, other) => other.probability - one.probability);
  const said = fresh.map((token) => `${token.piece} ${percent(token.probability)}`);
  if (step && caption().end === step) said.unshift("where it ends");
  const what = step ? said.join(", ") : "only blanks";
  range.value = step;
  range.setAttribute("aria-valuetext", `step ${step} of ${caption().steps}: ${what}`);
  find(".of").textContent = `Step ${step} of ${caption().steps}`;
  find(".what").textContent = what;
  state.classList.toggle("early", step < caption().steps); // it would tell the end before the steps do
  again.disabled = others.disabled = blanked.size === 0;
}

function draw(word, button, isBlanked) {
  const seen = word.tokens.filter((token) => token.step <= shown);
  const isWhole = seen.length === word.tokens.length;
  const text = word.tokens.map((token) => (token.step <= shown ? token.piece : "··")).join("");
  const chance = chanceOf(word);
  const isDoubtful = word.doubtful && isWhole && !isBlanked;
  const isFresh = shown > 0 && word.tokens.some((token) => token.step === shown);
  const level = word.given ? "given" : `c${levelOf(chance)}`;
  const kind = isBlanked || seen.length === 0 ? "blank" : level;
  button.className = ["word", kind, isFresh && "fresh", isDoubtful && "doubtful"].filter(Boolean).join(" ");
  button.disabled = !isWhole;
  button.setAttribute("aria-pressed", isBlanked);
  const [wordText, note] = button.children;
  wordText.textContent = isBlanked ? "___" : seen.length ? text : "·";
  const when = word.given ? "given" : `${stepOf(word)} · ${percent(chance)}`;
  note.textContent = isBlanked ? textOf(word) : isWhole ? when : "\u00a0";
  const how = word.given ? "given" : `step ${stepOf(word)}, ${percent(chance)} certain`;
  const doubt = isDoubtful ? ", doubtful" : "";
  const name = isBlanked ? `blank, it was ${textOf(word)}` : `${textOf(word)}: ${how}${doubt}`;
  button.setAttribute("aria-label", isWhole ? name : "not yet");
}

function toggle(place) {
  blanked.has(place) ? blanked.delete(place) : blanked.add(place);
  stop();
  show(caption().steps);
}

function refill(wantsOthers) {
  const words = caption().words.map(textOf);
  const kept = words.filter((_, place) => !blanked.has(place));
  const dropped = words.filter((word, place) => blanked.has(place) && !kept.includes(word));
  focusAfter = Math.min(...blanked);
  const template = words.map((word, place) => (blanked.has(place) ? "___" : word)).join(" ");
  trigger("refill", { template, others: wantsOthers ? dropped : [] });
}

row.addEventListener("keydown", (event) => {
  const place = buttons.indexOf(document.activeElement);
  const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: buttons.length - 1 }[event.key];
  if (place < 0) return;
  if (buttons[to]) {
    event.preventDefault();
    buttons[to].focus();
  } else if (event.key === "Delete" || event.key === "Backspace") {
    event.preventDefault();
    toggle(place);
  }
});
range.addEventListener("input", () => {
  stop();
  show(Number(range.value));
});
find(".play").addEventListener("click", play);
again.addEventListener("click", () => refill(false));
others.addEventListener("click", () => refill(true));

function told() {
  const value = props.value;
  if (!value || value.number === toldNumber) return; // told of the same twice, it would lose the focus
  toldNumber = value.number;
  element.classList.toggle("busy", Boolean(value.busy));
  line.textContent = value.error ?? "";
  if (value.busy || value.error) {
    state.textContent = value.busy ?? "";
    state.classList.remove("early");
    if (value.busy) again.disabled = others.disabled = true;
    else if (captions.length) show(shown);
    return;
  }
  captions = value.captions;
  empty.hidden = true;
  result.hidden = false;
  begin(0, true);
  const doubtful = caption().words.filter((word) => word.doubtful).map(textOf);
  const doubts = doubtful.length ? ` Doubtful: ${doubtful.join(", ")}.` : "";
  state.textContent = "";
  state.append(unseen("Caption: "), caption().text, unseen(`.${doubts}`));
  if (focusAfter !== null) {
    const place = Math.min(focusAfter, buttons.length - 1);
    focusAfter = null;
    stop();
    show(caption().steps); // what is not there yet cannot get the focus
    buttons[place].focus();
  }
}
watch("value", told);
told();

// The page: pictures and wishes go to the worker, captions come back and are shown.

import "./files.js"; // sets self.FILES
import { isolate } from "./offline.js";
import { CaptionView } from "./view.js";

const $ = (id) => document.getElementById(id);
const megabytes = (bytes) => Math.round(bytes / 1e6);

let worker = null;
let isReady = false;
let pending = null; // what was asked for before the model was there
let number = 0; // of the newest request; answers to older ones are not shown
let shown = null; // the address of the picture that is shown
let hasPicture = false;

const view = new CaptionView($, (position) => refill(position));

function wish() {
  const ban = $("ban").value.split(",").map((phrase) => phrase.trim()).filter((phrase) => phrase !== "");
  const length = Number($("length").value) || null;
  return { preset: document.forms.wishes.elements.preset.value, length, ban };
}

function ask(request) {
  pending = { ...request, number: ++number, wish: wish() };
  $("problem").hidden = true;
  view.wait();
  if (!isReady) return;
  worker.postMessage(pending);
  pending = null;
}

function open(file) {
  if (!file) return;
  if (file.type && !file.type.startsWith("image/")) {
    complain(`${file.name || "This"} is not an image; choose a photograph.`);
    return;
  }
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  $("photo").src = shown;
  $("photo").alt = "Your picture; its caption follows";
  $("photo").hidden = false;
  document.body.classList.add("has-picture");
  hasPicture = true;
  ask({ kind: "picture", file });
}

/** Blank a word, and let the model fill it again. */
function refill(place) {
  const { tokens, words } = view.told;
  const [first, last] = [words[place][0], words[place].at(-1)];
  const ids = tokens.map(({ token }) => token);
  const template = [ids.slice(0, first), null, ids.slice(last + 1)].filter((part) => part === null || part.length > 0);
  ask({ kind: "infill", template });
}

function again() {
  if (hasPicture) ask({ kind: "again" });
}

function complain(message) {
  $("problem").textContent = message;
  $("problem").hidden = false;
  view.stopWaiting();
}

const answers = {
  progress({ done, total }) {
    $("progress").value = done / total;
    $("progress-text").textContent = `Loading the model: ${megabytes(done)} of ${megabytes(total)} MB`;
  },
  preparing() {
    $("progress").removeAttribute("value");
    $("progress-text").textContent = "Preparing the model";
  },
  ready({ longest, threads, times }) {
    isReady = true;
    $("loading").hidden = true;
    document.body.dataset.state = "ready";
    for (let length = 4; length <= longest; length++) $("length").add(new Option(`${length - 1} tokens`, length));
    const many = threads === 1 ? "one thread" : `${threads} threads`;
    $("machine").textContent = `Ready in ${seconds(times.download + times.prepare)}, ${many}. Works without a network from now on.`;
    if (pending) {
      worker.postMessage(pending);
      pending = null;
    }
  },
  step({ number: asked, drafts }) {
    if (asked === number) view.showDrafts(drafts);
  },
  caption(told) {
    if (told.number !== number) return;
    view.show(told);
    $("machine").textContent = `Picture seen in ${seconds(told.times.look)}, caption written in ${seconds(told.times.write)}.`;
  },
  error({ number: asked, message }) {
    if (asked !== undefined && asked !== number) return;
    $("loading").hidden = true;
    complain(message[0].toUpperCase() + message.slice(1));
  },
};

const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(1)} s`;

function listen() {
  for (const id of ["file", "camera"]) $(id).addEventListener("change", ({ target }) => {
    open(target.files[0]);
    target.value = ""; // the same file can be chosen again
  });
  document.addEventListener("paste", ({ clipboardData }) => open(clipboardData.files[0]));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", ({ relatedTarget }) => {
    if (relatedTarget === null) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    open(event.dataTransfer.files[0]);
  });
  $("wishes").addEventListener("change", again);
  $("wishes").addEventListener("submit", (event) => event.preventDefault());
}

listen();
if (await isolate(() => !hasPicture)) {
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => answers[data.kind](data);
  worker.onerror = (event) => complain(`The model did not start (${event.message ?? "no reason given"}); reload the page.`);
  worker.postMessage({ kind: "load" });
}

// Where all is computed, so that the page never waits: pictures and wishes come in, captions go out.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";
import { Confidence } from "./confidence.js";
import { downloadAll } from "./download.js";
import { caption, infill } from "./generate.js";
import { Model } from "./model.js";
import { openPicture } from "./picture.js";
import { pixelsOf } from "./pixels.js";
import { Tensors } from "./weights.js";

let model = null;
let confidence = null;
let features = null; // of the picture that came last
let waiting = Promise.resolve(); // one thing after the other

self.onmessage = ({ data }) => {
  waiting = waiting.then(() => handle(data)).catch((error) => {
    self.postMessage({ kind: "error", number: data.number, message: error.message ?? String(error) });
  });
};

async function handle({ kind, number, file, wish, template }) {
  if (kind === "load") return load();
  if (model === null) throw new Error("the model could not be loaded; reload the page");
  const start = performance.now();
  if (kind === "picture") features = null;
  if (file) features = await look(file);
  if (features === null) throw new Error("there is no picture yet");
  const seen = performance.now();
  const onStep = (rows) => self.postMessage({ kind: "step", number, drafts: rows.map(draftOf) });
  const found = template
    ? await infill(model, features, template, wish, onStep)
    : await caption(model, features, wish, onStep);
  const times = { look: seen - start, write: performance.now() - seen };
  self.postMessage({ kind: "caption", number, ...told(found), times });
}

async function load() {
  const start = performance.now();
  const { wasm, description, files } = await downloadAll((done, total) =>
    self.postMessage({ kind: "progress", done, total }));
  const here = performance.now();
  self.postMessage({ kind: "preparing" });
  ort.env.wasm.wasmBinary = wasm;
  // threads need shared memory, which a page has by the headers that sw.js adds
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  model = await Model.load(ort, description, files);
  if (description.confidence) {
    confidence = new Confidence(new Tensors(files[description.confidence]), model.concepts);
  }
  self.postMessage({
    kind: "ready",
    longest: model.longest,
    threads: ort.env.wasm.numThreads,
    times: { download: here - start, prepare: performance.now() - here },
  });
}

async function look(file) {
  const picture = await openPicture(file, model.description.limits);
  try {
    return await model.encode(pixelsOf(picture, model.description.preprocessing));
  } finally {
    picture.close();
  }
}

/** The tokens of a caption before its end, each with the step that committed it; given ones have step 0. */
function tokensOf({ tokens, length, steps }) {
  const { pieces } = model.vocabulary;
  const committed = new Map(
    steps.flatMap((guesses, step) => guesses.map((guess) => [guess.position, { step: step + 1, ...guess }])));
  return model.vocabulary.untilEnd(tokens.slice(0, length)).map((token, position) => {
    const { step = 0, certainty = 1 } = committed.get(position) ?? {};
    return { token, piece: pieces[token], step, certainty, isBlank: token === model.maskId };
  });
}

const draftOf = (one) => tokensOf(one).map(({ piece, isBlank }) => (isBlank ? " ▁" : piece)).join("").trim();

function told(found) {
  const text = model.vocabulary.decode(found.tokens.slice(0, found.length));
  const tokens = tokensOf(found);
  return {
    text,
    tokens,
    words: model.vocabulary.wordsIn(tokens.map(({ token }) => token)),
    steps: found.steps.length,
    rivals: found.rivals.map((one) => model.vocabulary.decode(one.tokens.slice(0, one.length))),
    seen: features.seen?.slice(0, 8).map(([concept, share]) => [model.concepts.words[concept], share]),
    ...confidence?.judge(found, text, tokens, features),
  };
}

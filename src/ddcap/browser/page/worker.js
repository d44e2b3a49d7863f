// Where all is computed, so that the page never waits: images and wishes come in, captions go out.

import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";
import { alternatives } from "./alternatives.js";
import { Confidence } from "./confidence.js";
import { downloadAll } from "./download.js";
import { caption, infill } from "./generate.js";
import { Model } from "./model.js";
import { openImage } from "./image.js";
import { pixelsOf } from "./pixels.js";
import { told } from "./told.js";
import { Tensors } from "./weights.js";

let model = null;
let confidence = null;
let features = null; // of the image that came last
let waiting = Promise.resolve(); // one thing after the other

self.onmessage = ({ data }) => {
  waiting = waiting.then(() => handle(data)).catch((error) => {
    const { message = String(error), unreadable = false } = error;
    self.postMessage({ kind: "error", number: data.number, message, unreadable });
  });
};

async function handle({ kind, number, file, ...request }) {
  if (kind === "load") return load();
  if (model === null) throw new Error("the model could not be loaded; reload the page");
  const start = performance.now();
  if (file) {
    features = null;
    features = await look(file);
  }
  if (features === null) throw new Error("there is no image yet");
  const seen = performance.now();
  const answer = await answers[kind](request);
  const times = { look: seen - start, write: performance.now() - seen };
  self.postMessage({ kind: "answer", number, ...answer, times });
}

const answers = {
  async caption(wish) {
    const found = await caption(model, features, wish);
    return { captions: found.map((one) => told(one, model, features, confidence)) };
  },
  async infill({ template, ...wish }) {
    const found = await infill(model, features, model.vocabulary.parseTemplate(template), wish);
    return { captions: [told(found, model, features, confidence)] };
  },
  async alternatives({ words, place, ...wish }) {
    return { alternatives: await alternatives(model, features, words, place, wish) };
  },
};

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
  let image;
  try {
    image = await openImage(file, model.description.limits);
  } catch (error) {
    throw Object.assign(error, { unreadable: true });
  }
  try {
    return await model.encode(pixelsOf(image, model.description.preprocessing));
  } finally {
    image.close();
  }
}

// The page: what a person does goes to the worker, which computes; captions come back to the interface.

import "./files.js"; // sets self.FILES
import { Interface } from "./interface/app.js";
import { isolate } from "./offline.js";

const root = document.querySelector(".ddcap");
const loading = root.querySelector(".loading");
const machine = document.getElementById("machine");
const megabytes = (bytes) => Math.round(bytes / 1e6);
const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(1)} s`;

/** Asks the worker; what was asked for before the model was there waits for it. */
class Engine {
  constructor() {
    [this.worker, this.isReady, this.number, this.waiting, this.given] = [null, false, 0, new Map(), null];
  }

  ask({ image, ...request }) {
    const number = ++this.number;
    const asked = { number, request, image };
    const answer = new Promise((resolve, reject) => (asked.settle = { resolve, reject }));
    this.waiting.set(number, asked);
    if (this.isReady) this.send(asked);
    return answer;
  }

  send({ number, request, image }) {
    // the worker keeps what it saw of the last image
    this.worker.postMessage({ ...request, number, file: image === this.given ? undefined : image });
    this.given = image;
  }

  settle(number) {
    const { settle } = this.waiting.get(number);
    this.waiting.delete(number);
    return settle;
  }

  start() {
    this.worker = new Worker("worker.js", { type: "module" });
    this.worker.onmessage = ({ data }) => this.heard[data.kind](data);
    this.worker.onerror = ({ message }) => this.fail(`The model did not start (${message ?? "no reason given"}); reload the page`);
    this.worker.postMessage({ kind: "load" });
  }

  fail(message) {
    loading.hidden = true;
    ui.complain(message);
  }

  heard = {
    progress: ({ done, total }) => {
      loading.querySelector("progress").value = done / total;
      loading.firstElementChild.textContent = `Loading the model: ${megabytes(done)} of ${megabytes(total)} MB`;
    },
    preparing: () => {
      loading.querySelector("progress").removeAttribute("value");
      loading.firstElementChild.textContent = "Preparing the model";
    },
    ready: ({ longest, threads, times }) => {
      loading.hidden = true;
      document.body.dataset.model = "ready";
      ui.offer({ longest });
      const many = threads === 1 ? "one thread" : `${threads} threads`;
      machine.textContent = `Ready in ${seconds(times.download + times.prepare)}, ${many}. Works without a network from now on.`;
      this.isReady = true;
      for (const asked of this.waiting.values()) this.send(asked);
    },
    answer: ({ number, times, ...answer }) => {
      if (answer.captions) machine.textContent = `Image seen in ${seconds(times.look)}, caption written in ${seconds(times.write)}.`;
      this.settle(number).resolve(answer);
    },
    error: ({ number, message, unreadable }) => {
      if (number === undefined) this.fail(message);
      else this.settle(number).reject(Object.assign(new Error(message), { unreadable }));
    },
  };
}

const engine = new Engine();
const ui = new Interface(root, engine, { promise: "The image never leaves your device." });
loading.hidden = false;
loading.firstElementChild.textContent = "Loading the model";
if (await isolate(() => ui.image === null)) engine.start();

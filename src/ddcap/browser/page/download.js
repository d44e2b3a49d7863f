// The large files, with progress; the service worker keeps them for the next time.

import "./files.js"; // sets self.FILES

const WASM = "onnxruntime/ort-wasm-simd-threaded.wasm";
const DESCRIPTION = "model/model.json";

/**
 * @param {(done: number, total: number) => void} onProgress bytes
 * @returns {Promise<{wasm: ArrayBuffer, description: object, files: Record<string, ArrayBuffer>}>}
 */
export async function downloadAll(onProgress) {
  const names = Object.keys(self.FILES.sizes).filter(
    (name) => name === WASM || (name.startsWith("model/") && name !== DESCRIPTION));
  const total = names.reduce((sum, name) => sum + self.FILES.sizes[name], self.FILES.sizes[DESCRIPTION]);
  let done = 0;
  const count = (bytes) => onProgress((done += bytes), total);
  const [description, ...contents] = await Promise.all([DESCRIPTION, ...names].map((name) => download(name, count)));
  const files = {};
  names.forEach((name, number) => (files[name.replace("model/", "")] = contents[number]));
  return { wasm: contents[names.indexOf(WASM)], description: JSON.parse(new TextDecoder().decode(description)), files };
}

async function download(name, count) {
  const size = self.FILES.sizes[name];
  const content = new Uint8Array(size);
  let at = 0;
  try {
    const response = await fetch(new URL(name, import.meta.url));
    if (!response.ok) throw new Error(`status ${response.status}`);
    const reader = response.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (at + part.value.length > size) throw new Error("longer than it should be");
      content.set(part.value, at);
      at += part.value.length;
      count(part.value.length);
    }
    if (at < size) throw new Error("cut short");
  } catch (error) {
    throw new Error(`${name} could not be loaded (${error.message}); check the network and reload the page`);
  }
  return content.buffer;
}

// Keeps all files for the time without a network, and adds the headers that a static host cannot.
//
// A new version waits until no page of the old one is open, so that files of two versions never meet.

importScripts("files.js"); // sets self.FILES; its bytes differ where any file does

const SCOPE = new URL("./", self.location).href;
const PREFIX = `ddcap ${SCOPE} `; // several pages may share a host
const CACHE = PREFIX + self.FILES.version;
const LARGE = /^(model|onnxruntime)\//; // come when the page asks for them, with progress
const HEADERS = {
  // shared memory, and with it several threads, is for isolated pages only
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Content-Security-Policy": "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; "
    + "img-src 'self' blob:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'",
  "X-Content-Type-Options": "nosniff",
};

self.addEventListener("install", (event) => {
  const small = ["files.js", ...Object.keys(self.FILES.sizes).filter((name) => !LARGE.test(name))];
  event.waitUntil(caches.open(CACHE).then((cache) =>
    cache.addAll(small.map((name) => new Request(SCOPE + name, { cache: "no-cache" })))));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(removeOld().then(() => self.clients.claim()));
});

async function removeOld() {
  const names = await caches.keys();
  await Promise.all(
    names.filter((name) => name.startsWith(PREFIX) && name !== CACHE).map((name) => caches.delete(name)));
}

self.addEventListener("fetch", (event) => {
  const address = event.request.url.split(/[?#]/)[0];
  if (event.request.method !== "GET" || !address.startsWith(SCOPE)) return;
  const name = address.slice(SCOPE.length) || "index.html";
  if (name in self.FILES.sizes || name === "files.js") event.respondWith(answer(event, SCOPE + name));
});

async function answer(event, address) {
  const cache = await caches.open(CACHE);
  let response = await cache.match(address);
  if (response === undefined) {
    response = await fetch(address, { cache: "no-cache" });
    if (response.ok) event.waitUntil(cache.put(address, response.clone()));
  }
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

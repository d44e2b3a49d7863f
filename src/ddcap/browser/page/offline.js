// The service worker, before anything large is loaded: what passes through it is there without a network.

const LONGEST_WAIT = 5000; // milliseconds
const RELOADED = "ddcap reloaded";

/**
 * Let the service worker take over.
 *
 * @param {() => boolean} mayReload whether nothing would be lost by it
 * @returns {Promise<boolean>} false if the page is about to load again: the headers that give it several
 *     threads come with the first page that the service worker answers
 */
export async function isolate(mayReload) {
  if (!("serviceWorker" in navigator)) return true; // an insecure address, or a private window
  try {
    const { serviceWorker } = navigator;
    const isControlled = () => serviceWorker.controller !== null;
    const controlled = new Promise((resolve) => {
      serviceWorker.addEventListener("controllerchange", resolve, { once: true });
    });
    await serviceWorker.register("sw.js");
    if (!isControlled()) await Promise.race([controlled, new Promise((resolve) => setTimeout(resolve, LONGEST_WAIT))]);
    if (self.crossOriginIsolated || !isControlled()) return true;
    if (sessionStorage.getItem(RELOADED) || !mayReload()) return true; // one thread is enough
    sessionStorage.setItem(RELOADED, "yes");
    location.reload();
    return false;
  } catch {
    return true; // it works without, only not offline
  }
}

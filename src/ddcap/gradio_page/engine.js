// The body of a function: element, props, trigger and watch are Gradio's. The service answers the interface.
const { longest, mostBytes, seconds } = props.setup;
const waiting = new Map(); // requests by their numbers
const written = new WeakMap(); // images as data URLs
let last = 0;

function dataUrl(image) {
  if (!written.has(image)) {
    written.set(image, new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(Object.assign(new Error("this file cannot be read; choose another"), { unreadable: true }));
      reader.readAsDataURL(image);
    }));
  }
  return written.get(image);
}

async function ask({ image, ...request }) {
  const content = await dataUrl(image);
  const number = ++last;
  return new Promise((resolve, reject) => {
    const patience = setTimeout(() => settle({ number, error: "the service does not answer; try again" }), (seconds + 30) * 1000);
    waiting.set(number, { resolve, reject, patience });
    trigger("ask", { ...request, image: content, number });
  });
}

function settle(answer) {
  const asked = waiting.get(answer?.number);
  if (asked === undefined) return;
  waiting.delete(answer.number);
  clearTimeout(asked.patience);
  if (answer.error === undefined) asked.resolve(answer);
  else asked.reject(Object.assign(new Error(answer.error), { unreadable: answer.unreadable }));
}

watch("value", () => settle(props.value));
import(new URL("interface/app.js", document.baseURI)).then(({ Interface }) => {
  const root = element.querySelector(".ddcap");
  new Interface(root, { ask }, { offers: ["include", "num"], mostBytes }).offer({ longest });
});

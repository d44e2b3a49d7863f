// The body of a function: element, props and trigger are Gradio's.
const drop = element.querySelector(".drop");
const input = element.querySelector("input");
const image = element.querySelector("img");
const name = element.querySelector(".name");
const line = element.querySelector("[role=alert]");

// Of the page, not of this part: a picture that misses the frame must not replace the page.
const isFile = (event) => Array.from(event.dataTransfer?.types ?? []).includes("Files");
document.addEventListener("dragover", (event) => {
  if (!isFile(event)) return;
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  if (!isFile(event)) return;
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = event.clipboardData?.files[0];
  if (file) take(file);
});
input.addEventListener("change", () => {
  if (input.files[0]) take(input.files[0]);
  input.value = ""; // the same file may be chosen again
});
image.addEventListener("error", () => {
  image.hidden = true; // the browser cannot show it; the service may read it all the same
  name.hidden = false;
});

function take(file) {
  line.textContent = "";
  if (!file) return;
  if (file.size > props.most_bytes) {
    const megabytes = (bytes) => (bytes / 1e6).toFixed(1);
    line.textContent =
      `${file.name} has ${megabytes(file.size)} MB; at most ${megabytes(props.most_bytes)} MB can be sent`;
    return;
  }
  const reader = new FileReader();
  reader.onerror = () => (line.textContent = `${file.name} cannot be read; choose another file`);
  reader.onload = () => {
    const content = reader.result;
    name.textContent = file.name;
    name.hidden = true;
    image.hidden = false;
    image.src = content;
    drop.classList.add("full");
    element.querySelector(".choose span").textContent = "Choose another picture";
    props.value = content;
    trigger("upload");
  };
  reader.readAsDataURL(file);
}

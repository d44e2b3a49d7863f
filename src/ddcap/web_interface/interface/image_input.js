// An image comes in: dropped, pasted, chosen, taken, or one of the samples.

export class ImageInput {
  /**
   * @param {HTMLElement} root of the interface
   * @param {(file: Blob) => void} onImage is told of each
   * @param {(message: string) => void} onProblem is told why there is none
   */
  constructor(root, onImage, onProblem) {
    this.find = (selector) => root.querySelector(selector);
    [this.root, this.onImage, this.onProblem, this.address] = [root, onImage, onProblem, null];
    for (const input of root.querySelectorAll(".file")) {
      input.addEventListener("change", () => {
        this.take(input.files[0]);
        input.value = ""; // the same file can be chosen again
      });
    }
    for (const button of root.querySelectorAll("[data-sample]")) this.offer(button);
    this.find(".photo").addEventListener("error", () => this.showName());
    // of the page, not of the frame: an image that misses it must not replace the page
    document.addEventListener("paste", ({ clipboardData }) => this.take(clipboardData?.files[0]));
    document.addEventListener("dragover", (event) => {
      if (!isFile(event)) return;
      event.preventDefault();
      root.classList.add("dragging");
    });
    document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget ?? root.classList.remove("dragging"));
    document.addEventListener("drop", (event) => {
      if (!isFile(event)) return;
      event.preventDefault();
      root.classList.remove("dragging");
      this.take(event.dataTransfer.files[0]);
    });
  }

  /** A file that was chosen before this script was there. */
  takeWaiting() {
    for (const input of this.root.querySelectorAll(".file")) this.take(input.files[0]);
  }

  offer(button) {
    const image = document.createElement("img");
    const address = new URL(`samples/${button.dataset.sample}`, import.meta.url).href;
    image.alt = "";
    image.src = address;
    button.append(image);
    button.addEventListener("click", async () => {
      try {
        const answer = await fetch(address);
        if (!answer.ok) throw new Error(`status ${answer.status}`);
        this.take(new File([await answer.blob()], button.dataset.sample, { type: "image/jpeg" }));
      } catch (error) {
        this.onProblem(`The sample could not be loaded (${error.message}). Try again.`);
      }
    });
  }

  take(file) {
    if (!file) return;
    this.forget();
    this.address = URL.createObjectURL(file);
    this.name = file.name ?? "";
    const photo = this.find(".photo");
    photo.hidden = false;
    photo.src = this.address;
    photo.alt = "Your image";
    this.find(".file-name").hidden = true;
    this.find(".primary span").textContent = "Choose another image";
    this.root.classList.add("has-image");
    this.onImage(file);
  }

  /** The browser cannot show it; who captions may read it all the same. */
  showName() {
    if (this.address === null) return;
    this.find(".photo").hidden = true;
    this.find(".file-name").hidden = false;
    this.find(".file-name").textContent = this.name;
  }

  /** No image is shown. */
  forget() {
    if (this.address !== null) URL.revokeObjectURL(this.address);
    this.address = null;
    this.find(".photo").hidden = true;
    this.find(".photo").removeAttribute("src");
    this.find(".file-name").hidden = true;
    this.find(".primary span").textContent = "Choose an image";
    this.root.classList.remove("has-image");
  }
}

const isFile = ({ dataTransfer }) => Array.from(dataTransfer?.types ?? []).includes("Files");

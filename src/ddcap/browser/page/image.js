// An image file to its rows of pixels, upright, as the file has them: no colour profile is applied, since
// Pillow applied none when the model learned.

import { checkSize } from "./pixels.js";

/**
 * @param {Blob} file
 * @param {object} limits model.json's
 * @returns {Promise<object>} see `resize` in resize.js
 */
export async function openImage(file, limits) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    throw new Error("this file is not a readable image; choose a JPEG, PNG or WebP file");
  }
  const { width, height } = bitmap;
  checkSize(width, height, limits);
  let [canvas, context] = [null, null];
  const rows = (from, to) => {
    if (canvas?.height !== to - from) {
      canvas = new OffscreenCanvas(width, to - from);
      context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
      context.imageSmoothingEnabled = false;
    }
    context.fillStyle = "white"; // shows through where the image does not cover
    context.fillRect(0, 0, width, to - from);
    context.drawImage(bitmap, 0, -from);
    return context.getImageData(0, 0, width, to - from).data;
  };
  return { width, height, rows, close: () => bitmap.close() };
}

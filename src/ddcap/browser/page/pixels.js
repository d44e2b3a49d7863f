// An image to the numbers that the image encoder reads, as src/ddcap/data/images.py makes them.

import { resize } from "./resize.js";

/**
 * @param {object} source see resize.js
 * @param {object} how model.json's "preprocessing": size, fit, mean, std, largest_squash
 * @returns {Float32Array} 3 x size x size
 */
export function pixelsOf(source, how) {
  return normalised(how.fit === "crop" ? cropped(source, how) : squashed(source, how), how);
}

/** Both sides brought to one size; of a long image the centre. */
export function squashed({ width, height, rows }, { size, largest_squash: largest }) {
  const keptWidth = Math.min(width, height * largest);
  const keptHeight = Math.min(height, width * largest);
  const [left, top] = [(width - keptWidth) / 2, (height - keptHeight) / 2];
  return resize({ width, height, rows }, [left, top, left + keptWidth, top + keptHeight], size, size);
}

/** The short side brought to the size, and the centre cut out. */
export function cropped({ width, height, rows }, { size }) {
  const shorter = Math.min(width, height);
  const wide = Math.trunc((size * width) / shorter);
  const high = Math.trunc((size * height) / shorter);
  const whole = resize({ width, height, rows }, [0, 0, width, height], wide, high);
  const [left, top] = [(wide - size) >> 1, (high - size) >> 1];
  const centre = new Uint8Array(size * size * 3);
  for (let row = 0; row < size; row++) {
    const from = ((top + row) * wide + left) * 3;
    centre.set(whole.subarray(from, from + size * 3), row * size * 3);
  }
  return centre;
}

function normalised(bytes, { size, mean, std }) {
  const area = size * size;
  const pixels = new Float32Array(3 * area);
  for (let channel = 0; channel < 3; channel++) {
    const [centre, spread] = [Math.fround(mean[channel]), Math.fround(std[channel])];
    for (let place = 0; place < area; place++) {
      const share = Math.fround(bytes[place * 3 + channel] / 255);
      pixels[channel * area + place] = Math.fround(share - centre) / spread;
    }
  }
  return pixels;
}

/** Refuse an image in which there is nothing to describe, or which is too large to decode. */
export function checkSize(width, height, limits) {
  const [shorter, longer] = [Math.min(width, height), Math.max(width, height)];
  if (width * height > limits.largest_area) {
    throw new Error(`over ${Math.trunc(limits.largest_area / 1e6)} million pixels; shrink it`);
  }
  if (shorter < limits.smallest_side) {
    const least = limits.smallest_side;
    throw new Error(`${width}×${height} pixels is too small; give at least ${least}×${least}`);
  }
  if (longer > limits.longest_strip * shorter) {
    throw new Error(`${width}×${height} pixels is too narrow; crop it`);
  }
}

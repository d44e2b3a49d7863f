// Pillow's bicubic resize, to the last bit: the pixels that the model was trained on.
//
// Source: Pillow 13, src/libImaging/Resample.c (antialiasing, 8-bit channels in fixed point). The browser's
// own scaling differs from it, and so would the captions.

const BITS = 22; // of the fixed-point weights: 32 less 8 of a pixel less 2 for overshoot
const HALF = 1 << (BITS - 1);
const SUPPORT = 2; // source pixels to each side, where nothing is made smaller

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

/**
 * For each pixel of a resized row: the first source pixel that counts, and the weights from it on.
 *
 * @param {number} size of the source row
 * @param {number} from where the part to be resized begins, in source pixels
 * @param {number} to where it ends
 * @param {number} wanted pixels
 */
export function weightsOf(size, from, to, wanted) {
  [from, to] = [Math.fround(from), Math.fround(to)]; // Pillow's boxes are of C's float
  const scale = Math.fround(to - from) / wanted;
  const stretch = Math.max(scale, 1); // above 1 each new pixel averages more old ones
  const support = SUPPORT * stretch;
  const first = new Int32Array(wanted);
  const weights = [];
  for (let pixel = 0; pixel < wanted; pixel++) {
    const centre = from + (pixel + 0.5) * scale;
    const low = Math.max(Math.trunc(centre - support + 0.5), 0);
    const high = Math.min(Math.trunc(centre + support + 0.5), size);
    const exact = [];
    let total = 0;
    for (let source = low; source < high; source++) {
      const weight = bicubic((source - centre + 0.5) * (1 / stretch));
      exact.push(weight);
      total += weight;
    }
    first[pixel] = low;
    weights.push(Int32Array.from(exact, (weight) => fixed(total === 0 ? weight : weight / total)));
  }
  return { first, weights };
}

const fixed = (weight) => Math.trunc((weight < 0 ? -0.5 : 0.5) + weight * (1 << BITS));
const clip = (sum) => Math.min(Math.max(sum >> BITS, 0), 255);

/**
 * Resize a part of an image: rows and columns one after the other, rounding between the two.
 *
 * The source is read in strips of rows, so that a photograph of 50 million pixels is never in memory twice.
 *
 * @param {{width: number, height: number, rows: (from: number, to: number) => Uint8ClampedArray}} source
 *     its rows as red, green, blue, alpha
 * @param {number[]} box left, top, right, bottom of the part
 * @param {number} width of the result
 * @param {number} height of the result
 * @returns {Uint8Array} height x width x 3
 */
export function resize(source, [left, top, right, bottom], width, height) {
  const across = isSame(source.width, left, right, width) ? null : weightsOf(source.width, left, right, width);
  const down = isSame(source.height, top, bottom, height) ? null : weightsOf(source.height, top, bottom, height);
  const lost = source.height - height;
  const isTall = lost > 0 && lost > 2 * (source.width - width); // then Pillow takes the columns first
  const result = isTall ? downThenAcross(source, across, down, height) : acrossThenDown(source, across, down, height);
  return withoutAlpha(result, width * height);
}

const isSame = (size, from, to, wanted) => size === wanted && from === 0 && to === wanted;
const strips = (width) => Math.max(1, Math.floor(4_000_000 / width)); // rows at once

function acrossThenDown({ width: sourceWidth, height: sourceHeight, rows }, across, down, height) {
  const [begin, end] = down ? rowsOf(down, 0, height) : [0, sourceHeight];
  const width = across ? across.first.length : sourceWidth;
  const narrow = new Uint8Array((end - begin) * width * 4);
  const strip = strips(sourceWidth);
  for (let row = begin; row < end; row += strip) {
    const pixels = rows(row, Math.min(row + strip, end));
    narrow.set(across ? resizeRows(pixels, sourceWidth, across) : pixels, (row - begin) * width * 4);
  }
  return down ? resizeColumns(narrow, width, down, begin, 0, height) : narrow;
}

function downThenAcross({ width, rows }, across, down, height) {
  const short = new Uint8Array(height * width * 4);
  for (let row = 0; row < height;) {
    let next = row + 1; // as many rows of the result as one strip is enough for
    while (next < height && rowsOf(down, row, next + 1)[1] - down.first[row] <= strips(width)) next++;
    const [begin, end] = rowsOf(down, row, next);
    short.set(resizeColumns(rows(begin, end), width, down, begin, row, next), row * width * 4);
    row = next;
  }
  return across ? resizeRows(short, width, across) : short;
}

/** The source rows that rows `from` to `to` of the result are made of. */
function rowsOf({ first, weights }, from, to) {
  return [first[from], first[to - 1] + weights[to - 1].length];
}

function resizeRows(pixels, sourceWidth, { first, weights }) {
  const [rows, width] = [pixels.length / sourceWidth / 4, first.length];
  const result = new Uint8Array(rows * width * 4);
  for (let row = 0, to = 0; row < rows; row++) {
    for (let column = 0; column < width; column++, to += 4) {
      let [red, green, blue] = [HALF, HALF, HALF];
      let at = (row * sourceWidth + first[column]) * 4;
      const own = weights[column];
      for (let place = 0; place < own.length; place++, at += 4) {
        red += pixels[at] * own[place];
        green += pixels[at + 1] * own[place];
        blue += pixels[at + 2] * own[place];
      }
      result[to] = clip(red);
      result[to + 1] = clip(green);
      result[to + 2] = clip(blue);
    }
  }
  return result;
}

/** Rows `from` to `to` of the result, out of pixels whose first row is `begin` of the source. */
function resizeColumns(pixels, width, { first, weights }, begin, from, to) {
  const line = width * 4;
  const result = new Uint8Array((to - from) * line);
  for (let row = from, place = 0; row < to; row++) {
    const own = weights[row];
    for (let column = 0; column < line; column++, place++) {
      let sum = HALF;
      let at = (first[row] - begin) * line + column;
      for (let number = 0; number < own.length; number++, at += line) sum += pixels[at] * own[number];
      result[place] = clip(sum);
    }
  }
  return result;
}

function withoutAlpha(pixels, area) {
  const bytes = new Uint8Array(area * 3);
  for (let place = 0, from = 0, to = 0; place < area; place++, from++) {
    bytes[to++] = pixels[from++];
    bytes[to++] = pixels[from++];
    bytes[to++] = pixels[from++];
  }
  return bytes;
}

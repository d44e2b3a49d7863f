// The file of weights, in float32 for the graphs; as src/ddcap/model/onnx_model.py does it.
//
// Weights travel as integers of one byte with a scale for each row, and as 16-bit numbers: a quarter of the bytes.

const SCALE = "#scale";

/** A safetensors file. */
export class Tensors {
  /** @param {ArrayBuffer} buffer the whole file */
  constructor(buffer) {
    const size = Number(new DataView(buffer).getBigUint64(0, true));
    this.buffer = buffer;
    this.start = 8 + size;
    this.entries = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  }

  has(name) {
    return name in this.entries;
  }

  /** Type, shape and numbers as they are stored. */
  stored(name) {
    const { dtype, shape, data_offsets: [from, to] } = this.entries[name];
    const bytes = this.buffer.slice(this.start + from, this.start + to); // a copy begins where its type needs
    const Kind = { F32: Float32Array, F16: Uint16Array, I8: Int8Array, I64: BigInt64Array }[dtype];
    if (Kind === undefined) throw new Error(`weights of type ${dtype} are not read here`);
    return { dtype, shape, numbers: new Kind(bytes) };
  }

  /** Numbers in float32, what integers mean with their scales; integers that are no weights as they are. */
  values(name) {
    const { dtype, shape, numbers } = this.stored(name);
    // loops: `Float32Array.from` calls a function for each of millions of numbers, which takes two seconds
    const values = new Float32Array(numbers.length);
    if (dtype === "F16") {
      for (let at = 0; at < values.length; at++) values[at] = HALVES[numbers[at]];
      return { shape, numbers: values };
    }
    if (dtype !== "I8" || !this.has(name + SCALE)) return { shape, numbers };
    const scale = this.values(name + SCALE).numbers;
    const width = shape[1];
    for (let row = 0; row < scale.length; row++) {
      for (let at = row * width; at < (row + 1) * width; at++) values[at] = numbers[at] * scale[row];
    }
    return { shape, numbers: values };
  }

  /**
   * The constants of a graph, one behind the other.
   *
   * @param {{bytes: number, constants: Array}} graph of model.json; a constant is the name of a weight, its
   *     form (always "value" here), whether it is transposed, and where it begins
   */
  constantsOf({ bytes, constants }) {
    const whole = new Uint8Array(bytes);
    for (const [name, , isTransposed, offset] of constants) {
      let { shape, numbers } = this.values(name);
      if (isTransposed) numbers = transposed(numbers, shape);
      whole.set(new Uint8Array(numbers.buffer, numbers.byteOffset, numbers.byteLength), offset);
    }
    return whole;
  }
}

function transposed(numbers, [rows, columns]) {
  const turned = new numbers.constructor(numbers.length);
  for (let row = 0, at = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) turned[column * rows + row] = numbers[at++];
  }
  return turned;
}

/** What each of the 65,536 numbers of 16 bits means. */
const HALVES = Float32Array.from({ length: 65_536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
});

// Which positions a pass of the denoiser computes; as src/ddcap/model/step_request.py.

/**
 * Places in the flat K x L of what is computed and of what is asked for, both in ascending order.
 *
 * Padding is not computed, nor is a token to which nobody attends, unless it is asked for.
 *
 * @param {number[][]} tokens (K x L) of captions
 * @param {number[]} lengths of each
 * @param {number[][]} asked positions of each, in ascending order
 * @param {number | null} hidden a token that nobody attends to
 * @returns {{rows: number[], asked: number[]}}
 */
export function placesOf(tokens, lengths, asked, hidden) {
  const rows = tokens.flatMap((caption, row) => {
    const isAsked = new Set(asked[row]);
    const isRead = (position) => position < lengths[row] && caption[position] !== hidden;
    const positions = [...caption.keys()].filter((position) => isRead(position) || isAsked.has(position));
    return positions.map((position) => row * caption.length + position);
  });
  return { rows, asked: asked.flatMap((positions, row) => positions.map((one) => row * tokens[row].length + one)) };
}

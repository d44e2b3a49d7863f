// The surest guesses of a caption; as src/ddcap/decoding/schedulers/surest.py.
//
// A guess is what is predicted in place of a MASK: position, token and certainty.

/** The `quota` surest guesses, the surest first; of equals, the first. */
export function topKConfident(guesses, quota) {
  return [...guesses]
    .sort((one, other) => other.certainty - one.certainty || one.position - other.position)
    .slice(0, quota);
}

/** Guesses, the surest first, without those whose token is that of a surer one. */
export function dropDuplicates(guesses) {
  return guesses.filter(({ token }, rank) => guesses.slice(0, rank).every((surer) => surer.token !== token));
}

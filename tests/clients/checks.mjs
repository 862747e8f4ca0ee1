// The checks that every JavaScript client runs: each is a named function, run in turn, printed as it passes.

import { isDeepStrictEqual, inspect } from "node:util";

/** Runs the checks in order, then ends the process: with 1 where one failed. */
export async function run(checks, close) {
  let failed = 0;
  for (const check of checks) {
    try {
      await check();
      console.log(`ok ${check.name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED ${check.name}`);
      console.error(error);
    }
  }
  await close();
  process.exit(failed ? 1 : 0);
}

/** Throws where two values differ in depth. */
export function equal(found, expected) {
  if (!isDeepStrictEqual(found, expected)) {
    throw new Error(`${inspect(found)}, expected ${inspect(expected)}`);
  }
}

/** The promise's value, or an error when it takes longer than ten seconds. */
export function soon(promise) {
  const late = new Promise((_, reject) => {
    setTimeout(() => reject(new Error("nothing within 10 s")), 10_000).unref();
  });
  return Promise.race([promise, late]);
}

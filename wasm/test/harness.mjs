// A test runner of the size that a page needs. One module of tests is one page: xtask/node/page.mjs runs it.

const LIMIT_MS = 60_000;
const tests = [];

/** Adds a test. */
export function test(name, body) {
  tests.push([name, body]);
}

/**
 * Runs every test, or `only` the one of that name; throws when one failed. What does everything `times` as often may take
 * as much longer.
 */
export async function run(times = 1, only = undefined) {
  let failed = 0;
  for (const [name, body] of tests.filter(([name]) => only === undefined || name === only)) {
    try {
      await within(body(), LIMIT_MS * times);
      console.log(`ok ${name}`);
    } catch (error) {
      failed++;
      // Firefox leaves the message out of the stack.
      console.log(`not ok ${name}\n${error}\n${error?.stack}`);
    }
  }
  if (failed > 0) throw new Error(`${failed} of ${tests.length} tests failed`);
}

// No test waits for this: it bounds one that hangs.
async function within(promise, limitMs) {
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no end within ${limitMs} ms`)), limitMs);
  });
  await Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}

export function ok(value, message = `${value} is not true`) {
  if (!value) throw new Error(message);
}

/** Compares by what is inside; byte arrays are equal to byte arrays only. */
export function equal(actual, expected) {
  const [got, wanted] = [shown(actual), shown(expected)];
  if (got !== wanted) throw new Error(`expected ${wanted}, got ${got}`);
}

function shown(value) {
  return JSON.stringify(value, (_, value) => {
    if (value instanceof Uint8Array) return `bytes ${value}`;
    return value === undefined ? 'undefined' : value;
  });
}

/** The error that a promise rejects with: of a class, or with these facts. */
export async function rejects(promise, expected) {
  const error = await Promise.resolve(promise).then(
    (value) => {
      throw new Error(`resolved with ${shown(value)}`);
    },
    (error) => error,
  );
  if (typeof expected === 'function') ok(error instanceof expected, `${error?.stack ?? error}`);
  else if (expected instanceof Error) ok(error === expected, `${error}`);
  else
    for (const [key, value] of Object.entries(expected)) ok(error[key] === value, `${key} is ${error[key]}: ${error}`);
  return error;
}

export function throws(call, expected) {
  return rejects((async () => call())(), expected);
}

export async function collect(stream) {
  const messages = [];
  for await (const message of stream) messages.push(message);
  return messages;
}

export const text = (bytes) => new TextDecoder().decode(bytes);
export const bytes = (...values) => new Uint8Array(values);
export const utf8 = (value) => new TextEncoder().encode(value);

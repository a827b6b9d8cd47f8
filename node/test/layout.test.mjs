// The layout of completions: the published bytes, read as published. Its own file, so that slots count from 0.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { connect, setLogger } from 'valkyrie-sdk';
import { native, runModule, startServer } from './server.mjs';

const { bytes, more, completions } = JSON.parse(await readFile(new URL('layout.json', import.meta.url), 'utf8'));

// Byte arrays as layout.json has them.
const shown = (value) =>
  JSON.parse(
    JSON.stringify(value ?? null, function (key) {
      const item = this[key];
      return item instanceof Uint8Array ? `hex:${Buffer.from(item).toString('hex')}` : item;
    }),
  );
const facts = ({ message, code, number, reason, class: kind, timeline, pushbackMs, details, metadata, trailers }) =>
  shown({ message, code, number, reason, class: kind, timeline, pushbackMs, details, metadata, trailers });

test('the published bytes are read as they are published', async () => {
  const server = await startServer();
  const client = await connect(server.tcp);
  const { submit, drain } = native.Loop.prototype;
  const batches = [Buffer.from(bytes, 'hex')];
  let drains = 0;
  native.Loop.prototype.submit = () => true;
  native.Loop.prototype.drain = () => (drains++, batches.pop() ?? null);
  try {
    const records = [];
    setLogger((record) => records.push(record));
    const ended = await Promise.allSettled(
      completions.filter(({ slot }) => slot !== undefined).map(() => client.callWithResponse('/echo', 'x')),
    );
    setLogger(null);
    for (const [slot, { status, value, reason }] of ended.entries()) {
      const expected = completions[slot];
      if (expected.error === undefined) assert.deepEqual([status, shown(value)], ['fulfilled', expected.value]);
      else assert.deepEqual([status, facts(reason)], ['rejected', expected.error]);
    }
    assert.deepEqual(records, completions.at(-1).records);
    assert.equal(drains, more ? 2 : 1);
  } finally {
    Object.assign(native.Loop.prototype, { submit, drain });
  }
  await client.close();
  await server.stop();
});

test('a native part with another layout is refused with a sentence', async () => {
  const source = `
    import { createRequire } from 'node:module';
    const require = createRequire(process.cwd() + '/');
    require('valkyrie-sdk-linux-x64-gnu').layoutVersion = () => 99;
    try {
      require('valkyrie-sdk');
    } catch (error) {
      console.log(error.message);
    }`;
  const { stdout } = await runModule(source);
  assert.match(stdout, /^valkyrie-sdk reads completions in layout 2 and its native part writes layout 99: install the same/);
});

// What happens to connections, as a page's logger gets it; and the published bytes of completions.
import { connect, setLogger } from 'valkyrie-sdk-web';
import { Batch } from 'valkyrie-sdk-web/layout.js';
import { equal, ok, rejects, run, test, throws } from './harness.mjs';

let endpoint;
let absent;

export default async function (environment) {
  endpoint = environment.VALKYRIE_CONFORMANCE_ENDPOINT;
  absent = environment.VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT;
  await run();
}

test('a logger hears of connections that fail, stand and end; without one nothing is kept', async () => {
  await rejects(connect(absent), { code: 'UNAVAILABLE' });
  const records = [];
  let look;
  const seen = (wanted) =>
    new Promise((resolve) => {
      look = () => {
        const found = records.find(wanted);
        if (found !== undefined) resolve(found);
      };
      look();
    });
  setLogger((record) => {
    records.push(record);
    look?.();
  }, 'debug');
  await rejects(connect(absent), { code: 'UNAVAILABLE' });
  const failed = await seen(({ level }) => level === 'warn');
  equal(failed.target, 'valkyrie.connection');
  equal([failed.fields.endpoint, failed.fields.reason], [absent, 'CONNECT_FAILED']);
  ok(failed.message.startsWith(`cannot connect to ${absent}`), failed.message);
  equal(records.length, 1);

  const client = await connect(endpoint);
  await seen(({ level, message }) => level === 'info' && message === `connected to ${endpoint}`);
  await client.close();
  await seen(({ level, message }) => level === 'debug' && message.includes('is over'));

  setLogger(null);
  const before = records.length;
  await rejects(connect(absent), { code: 'UNAVAILABLE' });
  setLogger((record) => records.push(record));
  await (await connect(endpoint)).close();
  equal(records.length, before);
  setLogger(null);
});

test('what a logger throws is for the page to hear, not for a call', async () => {
  const heard = new Promise((resolve) => {
    addEventListener('error', (event) => (event.preventDefault(), resolve(event.message)), { once: true });
  });
  setLogger(() => {
    throw new Error('from the logger');
  });
  await rejects(connect(absent), { code: 'UNAVAILABLE' });
  ok((await heard).includes('from the logger'));
  setLogger(null);
  await throws(() => setLogger(1), TypeError);
  await throws(() => setLogger(console.warn, 3), TypeError);
  await throws(() => setLogger(console.warn, 'loud'), RangeError);
});

test('the published bytes are read as they are published', async () => {
  const { bytes, more, completions } = await (await fetch('/page/bindings/bridge/tests/layout.json')).json();
  const batch = new Batch(Uint8Array.from(bytes.match(/../g), (byte) => parseInt(byte, 16)));
  const read = [];
  batch.read(
    (slot, value) => read.push({ slot, value: value ?? null }),
    (slot, error) => {
      const { message, code, number, reason, class: kind, timeline, pushbackMs, details, metadata, trailers } = error;
      const facts = { message, code, number, reason, class: kind, timeline, pushbackMs, details, metadata, trailers };
      read.push({ slot, error: facts });
    },
    (records) => read.push({ records }),
  );
  const hex = (bytes) => `hex:${Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('')}`;
  const shown = JSON.stringify(read, (_, value) => (value instanceof Uint8Array ? hex(value) : value));
  equal(JSON.parse(shown), completions);
  equal(batch.more, more);
});

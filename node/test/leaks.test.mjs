// What is over leaves nothing behind: cancels, calls, clients, and what a garbage collector calls.
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { getHeapStatistics } from 'node:v8';
import { connect } from 'valkyrie-sdk';
import { LONG, inFlight, served } from './server.mjs';

let server;
let client;
served((started, connected) => {
  server = started;
  client = connected;
});

const echoes = async (client, count) => {
  const replies = await Promise.all(Array.from({ length: count }, (_, i) => client.request(`${i}`)));
  assert.ok(replies.every((reply, i) => Number(reply) === i));
};
const descriptors = () => readdirSync('/proc/self/fd').length;
// Finalizers run in turns of their own.
const collected = async () => {
  for (let i = 0; i < 5; i++) {
    gc();
    await new Promise(setImmediate);
  }
};

test('a storm of 10,000 cancels leaves nothing behind', async () => {
  const endpoint = String(await client.call('/test/private', 'tcp'));
  const [own, watch] = await Promise.all([connect(endpoint), connect(endpoint)]);
  const controllers = Array.from({ length: 10_000 }, () => new AbortController());
  const ends = Promise.allSettled(
    controllers.map(({ signal }) => own.call('/test/hang', '', { signal, timeoutMs: Infinity })),
  );
  await watch.call('/test/hang_stats', '', { metadata: { until: 'started' }, timeoutMs: 60_000 });
  for (const controller of controllers) controller.abort();
  assert.deepEqual(new Set((await ends).map(({ reason }) => reason?.name)), new Set(['AbortError']));
  assert.equal(inFlight(), 0);
  // Nothing is left at the server, on a connection that lives.
  for (let left = true; left; ) {
    const { accepted, ...held } = JSON.parse(await own.call('/test/held', ''));
    assert.equal(accepted, 2);
    left = Object.values(held).some((count) => count > 0);
  }
  // Every stream that the connection may have is free.
  await echoes(own, 1024);
  await Promise.all([own.close(), watch.close()]);
});

test('a finalizer may call, open, send, close and abort', async () => {
  const own = await connect(server.tcp);
  const done = [];
  const registry = new FinalizationRegistry(({ use, resolve }) => resolve(use()));
  const uses = [
    async () => assert.equal(String(await own.request('finalized')), 'finalized'),
    async () => {
      const stream = own.open('/echo');
      await stream.send('finalized');
      assert.equal(String(await stream.recv()), 'finalized');
      stream.cancel();
    },
    () => assert.rejects(own.call('/test/hang', 'x', { signal: AbortSignal.abort() }), { name: 'AbortError' }),
    () => own.close(),
  ];
  for (const use of uses) {
    done.push(new Promise((resolve) => registry.register({}, { use, resolve })));
    await collected();
  }
  await Promise.all(done);
  await assert.rejects(own.request('x'), { reason: 'CLIENT_CLOSED' });
  await Promise.all([own.close(), own.close()]);
});

test('a stream that is over says so to each use', async () => {
  const stream = client.stream('/test/count', '1 1');
  assert.equal((await stream.recv()).length, 1);
  for (let i = 0; i < 3; i++) assert.equal(await stream.recv(), null);
  await assert.rejects(stream.send('late'), { name: 'StatusError', reason: 'STREAM_MISUSE' });
  await assert.rejects(stream.halfClose(), { name: 'StatusError', reason: 'STREAM_MISUSE' });
  for (let i = 0; i < 3; i++) stream.cancel();
  await stream[Symbol.asyncDispose]();
  assert.equal(await stream.recv(), null);
});

// In KiB: the objects of the engine, and what the process has beside the engine's pages. Those alone say nothing: they are
// several MiB more after 50,000 clients whose objects are all gone.
const memory = () => {
  const { used_heap_size, total_physical_size } = getHeapStatistics();
  return [used_heap_size >> 10, (process.memoryUsage().rss - total_physical_size) >> 10];
};

// Flat: a thousandth of what is done, in KiB, beside what the collector and the allocators keep in hand.
async function flat(name, count, some) {
  for (let left = LONG ? 10 : 1; left > 0; left--) await some(count);
  await collected();
  const [[objects, others], files] = [memory(), descriptors()];
  const times = LONG ? 50 : 2;
  for (let left = times; left > 0; left--) await some(count);
  await collected();
  const [objectsNow, othersNow] = memory();
  const [more, beside, done] = [objectsNow - objects, othersNow - others, times * count];
  console.log(`${done} ${name}: objects grew by ${more} KiB, and the rest by ${beside} KiB`);
  assert.ok(more < 1024 + done / 1000, `${done} ${name} left ${more} KiB of objects`);
  assert.ok(beside < 4 * 1024 + done / 1000, `${done} ${name} left ${beside} KiB`);
  assert.ok(descriptors() <= files, `${descriptors() - files} descriptors are left open`);
  assert.equal(inFlight(), 0);
}

test(`memory stays flat over ${LONG ? '1,000,000' : '40,000'} calls`, async () => {
  await flat('calls', 20_000, async (count) => {
    for (let i = 0; i < count; i += 500) await echoes(client, 500);
  });
});

test(`memory stays flat over ${LONG ? '100,000' : '4,000'} clients`, async () => {
  await flat('clients', 2_000, async (count) => {
    for (let i = 0; i < count; i += 10) {
      const clients = Array.from({ length: 10 }, async () => {
        // Of a Unix socket: a port would stay taken for a minute.
        const own = await connect(server.unix);
        await own.request('x');
        await own.close();
      });
      await Promise.all(clients);
    }
  });
});

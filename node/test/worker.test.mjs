// Worker threads: each is an environment with a loop of its own, and may end at any moment.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { LONG, inFlight, runNode, served } from './server.mjs';

const require = createRequire(import.meta.url);
let server;
let client;
served((started, connected) => {
  server = started;
  client = connected;
});

// `body` runs in the worker with a `client` of its own and the number of the `round`.
const start = (body, round = 0) =>
  new Worker(
    `const { parentPort, workerData } = require('node:worker_threads');
     const { connect } = require('valkyrie-sdk');
     const { endpoint, round } = workerData;
     connect(endpoint).then(async (client) => { ${body} });`,
    { eval: true, workerData: { endpoint: server.tcp, round } },
  );
const message = (worker) => new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
const exit = (worker) => new Promise((resolve) => worker.once('exit', resolve));
const hanging = async (token, until) => {
  const metadata = until === undefined ? undefined : { until };
  return JSON.parse(await client.call('/test/hang_stats', token, { metadata, timeoutMs: 60_000 }));
};

test('workers call at once, each on its own loop', async () => {
  const busy = `
    const calls = Array.from({ length: 500 }, (_, i) => client.request(String(i)));
    const replies = await Promise.all(calls);
    parentPort.postMessage(replies.every((reply, i) => String(reply) === String(i)));`;
  const workers = [start(busy), start(busy), start(busy)];
  const ends = workers.map(exit);
  const own = Array.from({ length: 500 }, (_, i) => client.request(String(i)));
  assert.deepEqual(await Promise.all(workers.map(message)), [true, true, true]);
  assert.deepEqual((await Promise.all(own)).map(Number), Array.from({ length: 500 }, (_, i) => i));
  assert.deepEqual(await Promise.all(ends), [0, 0, 0]);
});

test('two instances of the module in one environment do not mix their calls up', async () => {
  const path = require.resolve('valkyrie-sdk');
  const first = require.cache[path];
  delete require.cache[path];
  const second = require('valkyrie-sdk');
  require.cache[path] = first;
  assert.notEqual(second.Client, first.exports.Client);
  const other = await second.connect(server.tcp);
  const all = Array.from({ length: 300 }, (_, i) => (i % 2 === 0 ? client : other).request(`${i}`));
  assert.deepEqual((await Promise.all(all)).map(Number), Array.from({ length: 300 }, (_, i) => i));
  await other.close();
});

test(`a worker that is terminated while it calls leaves nothing behind, ${LONG ? 500 : 20} times`, async () => {
  // In every state: waiting, on the way, complete and not drained, not yet submitted, streams open both ways.
  const calling = `
    const token = 'worker-' + round;
    client.call('/test/hang', token, { timeoutMs: Infinity });
    const hang = client.open('/test/hang');
    await hang.send(token + '-stream');
    const stream = client.open('/echo');
    stream.send(new Uint8Array(100_000)).catch(() => {});
    const again = () => client.request('x').then(again);
    for (let i = 0; i < 64; i++) again();
    await client.request('on the way');
    parentPort.postMessage('calling');
    if (round % 2 === 0) {
      for (let i = 0; i < 20_000; i++) client.request('in a turn that does not end');
      for (;;);
    }`;
  assert.equal(inFlight(), 0);
  let resident;
  for (let round = 0; round < (LONG ? 500 : 20); round++) {
    const worker = start(calling, round);
    await message(worker);
    await hanging(`worker-${round}`, 'started');
    await hanging(`worker-${round}-stream`, 'started');
    await worker.terminate();
    assert.equal(inFlight(), 0, `operations in flight after round ${round}`);
    await hanging(`worker-${round}`, 'dropped');
    await hanging(`worker-${round}-stream`, 'dropped');
    assert.equal(String(await client.request('alive')), 'alive');
    if (round === 9) resident = process.memoryUsage().rss;
  }
  const { started, running } = await hanging('');
  assert.deepEqual({ started, running }, { started: 2 * (LONG ? 500 : 20), running: 0 });
  console.log(`resident memory grew by ${(process.memoryUsage().rss - resident) >> 10} KiB after the tenth round`);
});

test('the native part stays where it is when the only environment that loaded it ends', async () => {
  // Its threads go on: code that was unmapped under them would end the process with SIGSEGV.
  const program = `
    const { readFileSync } = require('node:fs');
    const { Worker } = require('node:worker_threads');
    const body = \`
      const { parentPort, workerData } = require('node:worker_threads');
      const { connect } = require('valkyrie-sdk');
      connect(workerData).then(async (client) => {
        for (let i = 0; i < 200; i++) client.call('/test/sleep', '20').catch(() => {});
        await client.request('x');
        parentPort.postMessage('calling');
      });\`;
    const loaded = () => readFileSync('/proc/self/maps', 'utf8').includes('valkyrie.node');
    (async () => {
      console.log(loaded());
      for (let i = 0; i < 3; i++) {
        const worker = new Worker(body, { eval: true, workerData: process.argv[1] });
        await new Promise((resolve) => worker.once('message', resolve));
        await worker.terminate();
        console.log(loaded());
      }
    })();`;
  assert.deepEqual(await runNode(['--eval', program, '--', server.tcp]), {
    code: 0,
    signal: null,
    stdout: 'false\ntrue\ntrue\ntrue\n',
    stderr: '',
  });
});

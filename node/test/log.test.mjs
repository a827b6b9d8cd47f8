// What happens to connections, as a program's logger gets it, through the installed package.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import { connect, setLogger } from 'valkyrie-sdk';
import { runModule, startServer } from './server.mjs';

// A port that nobody listens on.
async function absent() {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return `tcp://127.0.0.1:${port}`;
}

// The records from now on, and a promise of the next that `wanted` is about.
function listen(level) {
  const records = [];
  const waiting = new Set();
  setLogger((record) => {
    records.push(record);
    for (const look of waiting) look();
  }, level);
  const seen = (wanted) =>
    new Promise((resolve) => {
      const look = () => {
        const found = records.find(wanted);
        if (found === undefined) return;
        waiting.delete(look);
        resolve(found);
      };
      waiting.add(look);
      look();
    });
  return { records, seen };
}

test('a logger hears of connections that fail, stand and are lost', async () => {
  const { seen } = listen('info');
  const nobody = await absent();
  await assert.rejects(connect(nobody));
  const failed = await seen(({ fields }) => fields.endpoint === nobody);
  assert.equal(failed.level, 'warn');
  assert.equal(failed.target, 'valkyrie.connection');
  assert.equal(failed.fields.reason, 'CONNECT_FAILED');
  assert.match(failed.message, /^cannot connect to tcp:/);

  // A server that says nothing, and hangs up while nothing is in flight: only the log says so.
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const endpoint = `tcp://127.0.0.1:${server.address().port}`;
  const of = (level, text) => (record) =>
    record.fields.endpoint === endpoint && record.level === level && record.message.includes(text);
  const accepted = once(server, 'connection');
  const client = await connect(endpoint);
  await seen(of('info', 'connected to'));
  const [socket] = await accepted;
  socket.destroy();
  await seen(of('warn', 'is over'));
  server.close();
  setLogger(null);
  await client.close();
});

test('what a logger throws is not for a call, and it may be changed', async () => {
  const source = `
    import { connect, setLogger } from 'valkyrie-sdk';
    process.on('uncaughtException', (error) => console.log('uncaught ' + error.message));
    setLogger(() => { throw new Error('from the logger'); });
    await connect(process.argv.at(-1)).catch((error) => console.log(error.code));
    setLogger(null);
    await connect(process.argv.at(-1)).catch((error) => console.log(error.code));`;
  const { code, stdout, stderr } = await runModule(source, await absent());
  assert.deepEqual(
    { code, lines: stdout.split('\n').sort() },
    { code: 0, lines: ['', 'UNAVAILABLE', 'UNAVAILABLE', 'uncaught from the logger'] },
    stderr,
  );
});

test('a logger alone does not keep the process alive, and without one nothing is said', async () => {
  const server = await startServer();
  const source = `
    import { connect, setLogger } from 'valkyrie-sdk';
    if (process.argv.at(-2) === 'logged') setLogger(console.log, 'debug');
    const client = await connect(process.argv.at(-1));
    await client.request('x');
    await connect('tcp://127.0.0.1:1').catch(() => {});`;
  const silent = await runModule(source, 'silent', server.tcp);
  assert.deepEqual(silent, { code: 0, signal: null, stdout: '', stderr: '' });
  const logged = await runModule(source, 'logged', server.tcp);
  assert.equal(logged.code, 0, logged.stderr);
  assert.match(logged.stdout, /connected to /);
  await server.stop();
});

test('each worker has its own logger, and none is called after the worker has ended', async () => {
  const nobody = await absent();
  const source = `
    const { parentPort, workerData } = require('node:worker_threads');
    const { connect, setLogger } = require('valkyrie-sdk');
    setLogger(({ fields }) => parentPort.postMessage(fields.endpoint));
    connect(workerData).catch(() => {});`;
  const worker = new Worker(source, { eval: true, workerData: nobody });
  const [[heard]] = await Promise.all([once(worker, 'message'), once(worker, 'exit')]);
  assert.equal(heard, nobody);
  const { seen } = listen('warn');
  await assert.rejects(connect(nobody));
  await seen(({ fields }) => fields.endpoint === nobody);
  setLogger(null);
});

test('arguments are checked', () => {
  assert.throws(() => setLogger(1), TypeError);
  assert.throws(() => setLogger(console.warn, 3), TypeError);
  assert.throws(() => setLogger(console.warn, 'loud'), RangeError);
  setLogger(null);
});

// What the package does to the process that loads it: exits, worker threads, loading.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Worker } from 'node:worker_threads';
import * as esm from 'valkyrie-sdk';
import { runModule, runNode, startServer } from './server.mjs';

const { connect } = esm;
const require = createRequire(import.meta.url);
let server;
before(async () => (server = await startServer()));
after(() => server.stop());

const succeeds = (result, stdout) => assert.deepEqual(result, { code: 0, signal: null, stdout, stderr: '' });

test('import and require give the same module', () => {
  const cjs = require('valkyrie-sdk');
  assert.deepEqual(Object.keys(cjs).sort(), Object.keys(esm).sort());
  for (const name of Object.keys(cjs)) assert.equal(cjs[name], esm[name]);
  const { version } = require('valkyrie-sdk/package.json');
  assert.match(esm.version, new RegExp(`^${version} \\(core [0-9a-f]+\\)$`));
});

test('loading starts no thread', async () => {
  const source = `
    import { readdirSync } from 'node:fs';
    import { readFile } from 'node:fs/promises';
    await readFile('/dev/null'); // starts Node's own pool
    const before = readdirSync('/proc/self/task').length;
    await import('valkyrie-sdk');
    console.log(readdirSync('/proc/self/task').length - before);`;
  succeeds(await runModule(source), '0\n');
});

test('an idle client does not keep the process alive', async () => {
  const source = `
    import { connect } from 'valkyrie-sdk';
    const client = await connect(process.argv[1]);
    await client.request('x');
    const stream = client.open('/echo');
    await stream.send('x');
    await stream.recv();
    console.log('idle');`;
  succeeds(await runModule(source, server.tcp), 'idle\n');
});

test('a call in flight keeps the process alive until it ends', async () => {
  const source = `
    import { connect } from 'valkyrie-sdk';
    connect(process.argv[1]).then((client) => {
      client.call('/test/sleep', '100').then((reply) => console.log(reply.toString()));
    });`;
  succeeds(await runModule(source, server.unix), '100\n');
});

test('process.exit with calls in flight is a clean exit', async () => {
  const source = `
    import { connect } from 'valkyrie-sdk';
    const client = await connect(process.argv[1]);
    for (let i = 0; i < 100; i++) client.call('/test/hang', 'exit', { timeoutMs: Infinity });
    for (let i = 0; i < 1000; i++) client.request('x');
    await client.request('x');
    process.exit(0);`;
  succeeds(await runModule(source, server.tcp), '');
});

test('workers have their own loop; one that is terminated in a call harms nobody', async () => {
  const worker = (body) =>
    new Worker(
      `const { parentPort, workerData } = require('node:worker_threads');
       const { connect } = require('valkyrie-sdk');
       connect(workerData).then(async (client) => { ${body} });`,
      { eval: true, workerData: server.tcp },
    );
  const message = (worker) => new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
  const exit = (worker) => new Promise((resolve) => worker.once('exit', resolve));

  const busy = `
    const calls = Array.from({ length: 500 }, (_, i) => client.request(String(i)));
    const replies = await Promise.all(calls);
    parentPort.postMessage(replies.every((reply, i) => String(reply) === String(i)));`;
  const workers = [worker(busy), worker(busy), worker(busy)];
  const ends = workers.map(exit);
  assert.deepEqual(await Promise.all(workers.map(message)), [true, true, true]);
  assert.deepEqual(await Promise.all(ends), [0, 0, 0]);

  const client = await connect(server.tcp);
  const hung = worker(`
    client.call('/test/hang', 'node-worker', { timeoutMs: Infinity }).catch(() => {});
    for (let i = 0; i < 1000; i++) client.request('x').catch(() => {});
    parentPort.postMessage('calling');`);
  await message(hung);
  await client.call('/test/hang_stats', 'node-worker', { metadata: { until: 'started' }, timeoutMs: 30_000 });
  await hung.terminate();
  await client.call('/test/hang_stats', 'node-worker', { metadata: { until: 'dropped' }, timeoutMs: 30_000 });
  assert.equal((await client.request('alive')).toString(), 'alive');
  await client.close();
});

test('a missing native part is told with platform, package and fix', async () => {
  const program = (prelude) => `${prelude}
    try { require('valkyrie-sdk'); } catch (error) { console.log(error.message); }`;
  const run = async (prelude, env) => (await runNode(['--eval', program(prelude)], env)).stdout;
  const hide = `
    const { Module } = require('node:module');
    const resolve = Module._resolveFilename;
    Module._resolveFilename = function (name, ...rest) {
      return resolve.call(this, name.replace('valkyrie-sdk-linux-x64-gnu', 'not-installed'), ...rest);
    };`;
  assert.match(
    await run(hide),
    /needs the package valkyrie-sdk-linux-x64-gnu on linux-x64.*npm install valkyrie-sdk-linux-x64-gnu@/s,
  );
  const pretend = `Object.defineProperty(process, 'platform', { value: 'plan9' });`;
  assert.match(await run(pretend), /no native part for plan9-x64.*VALKYRIE_NATIVE_PATH/s);
  assert.match(await run('', { VALKYRIE_NATIVE_PATH: '/no/such/valkyrie.node' }), /\/no\/such\/valkyrie\.node/);
  const folder = await mkdtemp(join(tmpdir(), 'valkyrie-native-'));
  const { copyFile } = await import('node:fs/promises');
  await copyFile(require.resolve('valkyrie-sdk-linux-x64-gnu'), join(folder, 'other.node'));
  assert.equal(await run('', { VALKYRIE_NATIVE_PATH: join(folder, 'other.node') }), '');
  await rm(folder, { recursive: true });
});

test('the examples print what they say', async () => {
  const example = async (name) => runNode([`../examples/${name}.mjs`, server.tcp]);
  succeeds(await example('hello'), 'Hello, World!\n');
  succeeds(await example('stream'), 'one\ntwo\nthree\n');
  succeeds(await example('errors'), 'UNIMPLEMENTED: unknown method /no/such/method (UNKNOWN_METHOD)\n');
});

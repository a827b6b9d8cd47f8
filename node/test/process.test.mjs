// What the package does to the process that loads it: exits, worker threads, loading.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { after, before, test } from 'node:test';
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

test('the echo core opens no socket and starts no process', async () => {
  const source = `
    import { readFileSync, readdirSync, readlinkSync } from 'node:fs';
    import { connect } from 'valkyrie-sdk';
    const target = (fd) => {
      try {
        return readlinkSync('/proc/self/fd/' + fd);
      } catch {
        return ''; // that of the list itself
      }
    };
    const seen = () => ({
      sockets: readdirSync('/proc/self/fd').filter((fd) => target(fd).startsWith('socket:')).length,
      children: readdirSync('/proc/self/task')
        .map((task) => readFileSync('/proc/self/task/' + task + '/children', 'utf8'))
        .join(''),
    });
    const { sockets } = seen(); // the standard streams
    const client = await connect('echo://core');
    const stream = client.open('/echo');
    const controller = new AbortController();
    const hanging = client.call('/test/hang', 'key', { signal: controller.signal, timeoutMs: Infinity });
    await client.call('/test/hang_stats', 'key', { metadata: { until: 'started' } });
    for (const message of [Buffer.from('small'), Buffer.alloc(1 << 20)]) {
      await stream.send(message);
      console.log((await stream.recv()).equals(message), (await client.request(message)).equals(message));
    }
    const now = seen();
    console.log(now.sockets - sockets, now.children === '');
    controller.abort();
    await hanging.catch((error) => console.log(error.name));
    await client.call('/test/hang_stats', 'key', { metadata: { until: 'dropped' } });
    stream.cancel();
    await client.close();`;
  succeeds(await runModule(source), 'true true\ntrue true\n0 true\nAbortError\n');
});

test('a call in flight keeps the process alive until it ends', async () => {
  const source = `
    import { connect } from 'valkyrie-sdk';
    connect(process.argv[1]).then((client) => {
      client.call('/test/sleep', '100').then((reply) => console.log(reply.toString()));
    });`;
  succeeds(await runModule(source, server.unix), '100\n');
});

test('who waits for a change does not keep the process alive', async () => {
  const source = `
    import { connect } from 'valkyrie-sdk';
    const client = await connect(process.argv[1]);
    const changes = client.connectivityChanges();
    console.log((await changes.next()).value);
    changes.next().then(() => console.log('changed'));
    const breakers = client.breakerChanges();
    await breakers.next();
    breakers.next().then(() => console.log('broken'));
    await client.request('x');`;
  succeeds(await runModule(source, server.tcp), 'ready\n');
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

test('a failure that was caught is unhandled nowhere else', async () => {
  // An unhandled rejection ends a process with code 1 and its text on standard error.
  const source = `
    import { connect } from 'valkyrie-sdk';
    const client = await connect(process.argv[1]);
    const failures = [];
    const caught = (promise) => promise.then(() => failures.push('none'), (error) => failures.push(error.name));
    const aborted = new AbortController();
    const hang = client.call('/test/hang', 'caught', { signal: aborted.signal });
    aborted.abort();
    await caught(hang);
    await caught(client.call('/no/such/method', ''));
    await caught(client.call('/test/hang', 'caught', { timeoutMs: 1 }));
    const stream = client.stream('/test/stream_then_status', '', { metadata: { code: '10' } });
    await caught(stream.recv());
    const left = client.open('/test/hang', { signal: aborted.signal });
    await caught(left.send('caught'));
    const cancelled = client.open('/echo');
    await cancelled.send('x');
    const pending = cancelled.recv().then(() => cancelled.recv());
    cancelled.cancel();
    await caught(pending);
    const busy = Array.from({ length: 100 }, () => caught(client.call('/test/hang', 'caught', { timeoutMs: 50 })));
    const closing = client.close();
    await caught(client.request('x'));
    await closing;
    await Promise.all(busy);
    await caught(client.stream('/echo', 'x').recv());
    await caught(connect('tcp://127.0.0.1:1'));
    await caught(connect('nonsense'));
    // What is unhandled is told after the microtasks of a turn.
    await new Promise(setImmediate);
    console.log(new Set(failures));`;
  succeeds(await runModule(source, server.tcp), "Set(2) { 'AbortError', 'StatusError' }\n");
});

test('the examples print what they say', async () => {
  const example = async (name) => runNode([`../examples/${name}.mjs`, server.tcp]);
  succeeds(await example('hello'), 'Hello, World!\n');
  succeeds(await example('stream'), 'one\ntwo\nthree\n');
  succeeds(await example('errors'), 'UNIMPLEMENTED: unknown method /no/such/method (UNKNOWN_METHOD)\n');
});

import * as sdk from 'valkyrie-sdk-web';
import { bytes, collect, equal, ok, rejects, run, test, text, throws, utf8 } from './harness.mjs';

const { Metadata, StatusError, connect } = sdk;
const sockets = [];
let endpoint;
let absent;
let client;

// Every WebSocket that is made, what is sent through it, and the code that it is closed with.
globalThis.WebSocket = class extends WebSocket {
  sent = 0;
  peak = 0;
  constructor(...args) {
    super(...args);
    sockets.push(this);
  }
  send(message) {
    super.send(message);
    this.sent++;
    this.peak = Math.max(this.peak, this.bufferedAmount);
  }
  close(...args) {
    super.close(...args);
    this.code ??= args[0];
  }
};

export default async function (environment) {
  endpoint = environment.VALKYRIE_CONFORMANCE_ENDPOINT;
  absent = environment.VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT;
  await run();
}

const hanging = async (token, until) => {
  await client.call('/test/hang_stats', token, { metadata: { until }, timeoutMs: 30_000 });
};
const modules = () => performance.getEntriesByType('resource').filter(({ name }) => name.endsWith('.wasm')).length;

test('importing loads nothing; the first clients share one module', async () => {
  equal([modules(), sdk.version, sockets.length], [0, '', 0]);
  const [one, two] = await Promise.all([connect(endpoint), connect(endpoint)]);
  equal(modules(), 1);
  ok(/^\d+\.\d+\.\d+ \(core [0-9a-f]+\)$/.test(sdk.version), sdk.version);
  await one.close();
  client = two;
  equal(client.endpoint, endpoint);
});

test('the types are those of Node, and load beside them', async () => {
  const [node, web] = await Promise.all(
    ['node', 'wasm'].map(async (folder) => {
      const types = await (await fetch(`/page/${folder}/index.d.ts`)).text();
      return types.replaceAll(/\/\*\*.*?\*\/\s*/gs, '');
    }),
  );
  ok(web.startsWith(node), 'wasm/index.d.ts and node/index.d.ts differ');
  ok(/^\s*export function load\([^;]*;\s*$/.test(web.slice(node.length)), web.slice(node.length));
  const named = [...web.matchAll(/^export (?:const|function|class) (\w+)/gm)].map((match) => match[1]);
  equal(Object.keys(sdk).sort(), named.sort());
});

test('a reply is a Uint8Array, whatever the message was', async () => {
  for (const message of ['text ü', bytes(0, 255), new Uint8Array(8).subarray(2, 5), '', bytes()]) {
    equal(await client.request(message), typeof message === 'string' ? utf8(message) : message);
  }
  const frame = document.body.appendChild(document.createElement('iframe'));
  equal(await client.request(new frame.contentWindow.Uint8Array([1, 2])), bytes(1, 2));
  frame.remove();
});

test('a message may be changed as soon as the call has returned', async () => {
  const message = utf8('before');
  const reply = client.request(message);
  message.fill(0);
  equal(text(await reply), 'before');

  const stream = client.open('/echo');
  const sent = [];
  for (const word of ['one', 'two', 'six']) {
    message.set(utf8(word));
    sent.push(stream.send(message.subarray(0, 3)));
  }
  message.fill(0);
  await Promise.all(sent);
  await stream.halfClose();
  equal((await collect(stream)).map(text), ['one', 'two', 'six']);
});

test('calls of one turn leave in one message, and their replies keep little memory', async () => {
  const [socket] = sockets.slice(-1);
  const before = socket.sent;
  const replies = await Promise.all(Array.from({ length: 64 }, (_, i) => client.request(`${i}`)));
  equal(replies.map(text), replies.map((_, i) => `${i}`));
  ok(socket.sent - before <= 2, `${socket.sent - before} messages for 64 calls`);
  for (const reply of replies) ok(reply.buffer.byteLength < 64 * 1024, `${reply.buffer.byteLength}`);
  const large = await client.request(new Uint8Array(1 << 20));
  ok(large.buffer.byteLength < (1 << 20) + 64, `${large.buffer.byteLength}`);
});

test('wrong types are TypeErrors, bad values RangeErrors, and nothing is sent', async () => {
  const wrong = [
    [42],
    ['/echo', 42],
    ['/echo', null],
    ['/echo'],
    ['/echo', [1, 2]],
    ['/echo', new Uint16Array(1)],
    ['/echo', 'x', 5],
    ['/echo', 'x', null],
    ['/echo', 'x', { timeoutMs: '5' }],
    ['/echo', 'x', { timeoutMs: 5n }],
    ['/echo', 'x', { priority: 1 }],
    ['/echo', 'x', { idempotent: 1 }],
    ['/echo', 'x', { idempotencyKey: 7 }],
    ['/echo', 'x', { metadata: 'a=b' }],
    ['/echo', 'x', { metadata: { a: 1 } }],
    ['/echo', 'x', { metadata: [['a']] }],
    ['/echo', 'x', { signal: {} }],
  ];
  for (const args of wrong) await rejects(client.call(...args), TypeError);
  for (const options of [{ timeoutMs: -1 }, { timeoutMs: NaN }, { priority: 'urgent' }]) {
    await rejects(client.call('/echo', 'x', options), RangeError);
  }
  await rejects(connect(42), TypeError);
  for (const options of [{ serviceConfig: 42 }, { serviceConfig: null }, { trustedCertificates: 'PEM' }, { sealed: true }, { sealed: 1 }, { systemRoots: true }, { revocationLists: 'PEM' }, { minSecurity: 'tls' }]) {
    await rejects(connect(endpoint, options), TypeError);
  }
  await rejects(connect(endpoint, { connectTimeoutMs: 'x' }), TypeError);
  await throws(() => client.open(42), TypeError);
  await throws(() => client.stream('/echo', 42), TypeError);
  await rejects(client.open('/echo').send(42), TypeError);
  await throws(() => new client.constructor(), TypeError);
});

test('the timeout may be none, and a fraction counts up', async () => {
  const remaining = async (timeoutMs) => Number(text(await client.call('/test/remaining', '', { timeoutMs })));
  equal(await remaining(Infinity), 0);
  ok((await remaining(undefined)) <= 5000);
  await rejects(client.call('/test/hang', 'fraction', { timeoutMs: 0.5 }), { code: 'DEADLINE_EXCEEDED' });
  const short = await connect(endpoint, { timeoutMs: 50 });
  await rejects(short.call('/test/hang', 'short'), { code: 'DEADLINE_EXCEEDED' });
  await short.close();
});

test('a status error tells everything, and where it was awaited', async () => {
  const metadata = { code: '5', message: 'not here', details: '1', trailers: '1', pushback_ms: '70' };
  const error = await rejects(client.call('/test/status', '', { metadata }), StatusError);
  const { name, message, code, number, reason, pushbackMs, retryable } = error;
  equal(
    [name, message, code, number, reason, error.class, pushbackMs, retryable],
    ['StatusError', 'not here', 'NOT_FOUND', 5, 'NONE', 'application', 70, false],
  );
  equal(error.details, [{ type: 'valkyrie.test.Detail', value: utf8('a detail') }]);
  equal(error.trailers.get('t-status'), 'trailer');
  equal(error.trailers.get('t-status-bin'), bytes(0, 255));
  ok(/callWithResponse/.test(error.stack) && !/turn/.test(error.stack), error.stack);
  // Firefox tells who awaits only while its developer tools are open.
  ok(/client\.test\.mjs/.test(error.stack) || /Firefox/.test(navigator.userAgent), error.stack);
});

test('metadata goes in as an object, pairs, a Map or Metadata, and comes out in order', async () => {
  const pairs = [
    ['x-a', '1'],
    ['x-a', 'ü'],
    ['x-b-bin', bytes(0)],
  ];
  const echo = async (metadata) => (await client.callWithResponse('/test/metadata', '', { metadata })).metadata;
  await rejects(echo({ 'X A': '1' }), { code: 'INVALID_ARGUMENT', reason: 'INVALID_METADATA' });
  pairs[1][1] = '2';
  const back = await echo(pairs);
  ok(back instanceof Metadata);
  equal([...back], pairs);
  equal(back.getAll('x-a'), ['1', '2']);
  equal(back.get('absent'), undefined);
  equal(back.map(([key]) => key).constructor === Array, true);
  equal([...(await echo(back))], pairs);
  equal([...(await echo({ 'x-a': '1' }))], [['x-a', '1']]);
  equal([...(await echo(new Map([['x-a', '1']])))], [['x-a', '1']]);
});

test('an abort rejects with the reason, reaches the server, and leaves no listener', async () => {
  const controller = new AbortController();
  const call = client.call('/test/hang', 'web-abort', { signal: controller.signal, timeoutMs: Infinity });
  await hanging('web-abort', 'started');
  controller.abort();
  await rejects(call, { name: 'AbortError' });
  await hanging('web-abort', 'dropped');

  const reason = new Error('my own');
  await rejects(client.call('/echo', 'x', { signal: AbortSignal.abort(reason) }), reason);
  await rejects(client.call('/test/hang', 'x', { signal: AbortSignal.timeout(20) }), { name: 'TimeoutError' });
  await rejects(connect(endpoint, { signal: AbortSignal.abort() }), { name: 'AbortError' });
  const connecting = new AbortController();
  const connected = connect(endpoint, { signal: connecting.signal });
  connecting.abort(reason);
  await rejects(connected, reason);

  const counted = new AbortController().signal;
  let listeners = 0;
  const { addEventListener, removeEventListener } = counted;
  counted.addEventListener = (...args) => (listeners++, addEventListener.apply(counted, args));
  counted.removeEventListener = (...args) => (listeners--, removeEventListener.apply(counted, args));
  await client.call('/echo', 'x', { signal: counted });
  equal(await collect(client.stream('/test/count', '2 1', { signal: counted })), [bytes(0), bytes(1)]);
  await rejects(client.call('/no', 'x', { signal: counted }), { code: 'UNIMPLEMENTED' });
  equal(listeners, 0);
});

test('a signal ends a stream, pending and later operations alike', async () => {
  const controller = new AbortController();
  const stream = client.open('/test/hang', { signal: controller.signal });
  await stream.send('web-stream-abort');
  const pending = stream.recv();
  await hanging('web-stream-abort', 'started');
  controller.abort();
  await rejects(pending, { name: 'AbortError' });
  await rejects(stream.recv(), { name: 'AbortError' });
  await rejects(stream.send('x'), { name: 'AbortError' });
  await hanging('web-stream-abort', 'dropped');
  await rejects(collect(client.stream('/test/count', '1 1', { signal: controller.signal })), { name: 'AbortError' });
});

test('leaving a loop, cancel() and asyncDispose end the call at the server', async () => {
  for (const [token, leave] of [
    ['web-cancel', (stream) => stream.cancel()],
    ['web-dispose', (stream) => stream[Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')]()],
    ['web-return', (stream) => stream[Symbol.asyncIterator]().return()],
  ]) {
    const stream = client.open('/test/hang');
    await stream.send(token);
    await hanging(token, 'started');
    const pending = stream.recv();
    await leave(stream);
    await rejects(pending, { code: 'CANCELLED' });
    await rejects(stream.recv(), { code: 'CANCELLED' });
    await hanging(token, 'dropped');
    stream.cancel();
  }
});

test('sends that nobody awaits keep their order', async () => {
  const stream = client.open('/echo');
  for (let i = 0; i < 500; i++) stream.send(`${i}`);
  stream.halfClose();
  equal((await collect(stream)).map(text).map(Number), Array.from({ length: 500 }, (_, i) => i));
});

test('several receivers share a stream without loss', async () => {
  const stream = client.stream('/test/count', '300 1');
  const seen = [];
  const receive = async () => {
    for (let message; (message = await stream.recv()) !== null; ) seen.push(message[0]);
  };
  await Promise.all([receive(), receive(), receive()]);
  const sorted = (numbers) => numbers.sort((a, b) => a - b);
  equal(sorted(seen), sorted(Array.from({ length: 300 }, (_, i) => i % 251)));
  equal(await stream.recv(), null);
});

test('a sender waits for a receiver that does not read, and the browser holds little', async () => {
  const [socket] = sockets.slice(-1);
  const stream = client.open('/echo');
  const message = new Uint8Array(64 * 1024).fill(7);
  let taken = 0;
  const sending = (async () => {
    for (let i = 0; i < 400; i++) {
      await stream.send(message);
      taken++;
    }
    await stream.halfClose();
  })();
  // Credit both ways is a few MiB at most: the sends stop long before 25 MiB. Calls beside it are not held up.
  for (let last = -1; last !== taken; ) {
    last = taken;
    for (let i = 0; i < 50; i++) await client.request('beside');
  }
  const stalled = taken;
  const received = await collect(stream);
  await sending;
  ok(stalled < 400, `all ${stalled} messages were taken without a reader`);
  equal(received.length, 400);
  ok(received.every((m) => m.length === message.length && m.every((byte) => byte === 7)));
  ok(socket.peak < 2 << 20, `${socket.peak} bytes waited in the browser`);
});

test('what cannot be connected says so', async () => {
  await rejects(connect(absent), { code: 'UNAVAILABLE', reason: 'CONNECT_FAILED', retryable: true });
  await rejects(connect(endpoint.replace('ws:', 'wss:')), { code: 'UNAVAILABLE', reason: 'CONNECT_FAILED' });
  await rejects(connect(endpoint.replace('ws:', 'tcp:')), { code: 'INVALID_ARGUMENT', reason: 'UNSUPPORTED_SCHEME' });
});

// spec: W11-14
test('a text message ends the connection, and the next call makes another', async () => {
  const other = await connect(endpoint);
  const [socket] = sockets.slice(-1);
  const call = other.call('/test/hang', 'text');
  await hanging('text', 'started');
  socket.dispatchEvent(new MessageEvent('message', { data: 'text' }));
  const error = await rejects(call, { code: 'UNAVAILABLE', reason: 'CONNECTION_LOST' });
  ok(/text message/.test(error.message), error.message);
  equal(socket.code, 4003);
  equal(text(await other.request('again')), 'again');
  await other.close();
});

test('connectivity and its changes, which one may leave', async () => {
  const own = await connect(endpoint);
  equal(own.connectivity, 'ready');
  const left = own.connectivityChanges();
  equal((await left.next()).value, 'ready');
  const waits = [left.next(), left.next()];
  await left.return();
  for (const wait of waits) equal((await wait).done, true);
  equal((await left.next()).done, true);
  const two = [own.connectivityChanges(), own.connectivityChanges()].map(async (changes) => {
    const states = [];
    for await (const state of changes) states.push(state);
    return states;
  });
  await own.request('x');
  await own.close();
  for (const states of await Promise.all(two)) equal(states, ['ready', 'shutdown']);
  equal(own.connectivity, 'shutdown');
  const after = [];
  for await (const state of own.connectivityChanges()) after.push(state);
  equal(after, ['shutdown']);
});

test('a live client gets another service config and shows its breakers', async () => {
  const own = await connect(endpoint);
  await own.request('x');
  const [breaker] = await own.breakers();
  equal({ ...breaker, server: '' }, { server: '', state: 'closed', calls: 1, failures: 0, changes: 0, method: '/echo', ageMs: undefined, opensForMs: undefined });
  await own.isolate(breaker.server, '/echo');
  equal((await own.breakers())[0].state, 'isolated');
  await rejects(own.request('x'), { code: 'UNAVAILABLE', reason: 'BREAKER_OPEN' });
  await own.restore(breaker.server);
  await own.setServiceConfig({ methods: [{ names: ['/test/sleep'], timeout_ms: 20 }] });
  await rejects(own.call('/test/sleep', '60000'), { code: 'DEADLINE_EXCEEDED' });
  await rejects(own.setServiceConfig({ retries: 3 }), { reason: 'INVALID_CONFIGURATION' });
  await rejects(own.setServiceConfig(undefined), TypeError);
  await rejects(own.isolate(42), TypeError);
  await rejects(own.restore(breaker.server, 42), TypeError);
  await own.close();
  await rejects(own.breakers(), { reason: 'CLIENT_CLOSED' });
});

test('changes of breakers, which one may leave', async () => {
  const serviceConfig = { methods: [{ names: ['*'], breaker: { min_calls: 2 } }], throttle: { enabled: false } };
  const own = await connect(endpoint, { serviceConfig });
  const states = (breakers) => breakers.map(({ method, state, changes }) => [method, state, changes]);
  const left = own.breakerChanges();
  equal(await left.next(), { value: [], done: false });
  const waits = [left.next(), left.next()];
  await left.return();
  for (const wait of waits) equal((await wait).done, true);
  equal((await left.next()).done, true);

  const two = [own.breakerChanges(), own.breakerChanges()].map(async (changes) => {
    const all = [];
    for await (const breakers of changes) all.push(states(breakers));
    return all;
  });
  const changes = own.breakerChanges();
  await changes.next();
  const both = [changes.next(), changes.next()];
  await own.request('x');
  const fails = { metadata: { code: '14' } };
  for (let i = 0; i < 2; i++) await rejects(own.call('/test/status', '', fails), { code: 'UNAVAILABLE' });
  // Two that wait on one iterator have a change each.
  const open = [['/echo', 'closed', 0], ['/test/status', 'open', 1]];
  equal(states((await both[0]).value), open);
  await own.close();
  equal(await both[1], { value: undefined, done: true });
  for (const all of await Promise.all(two)) equal(all, [[], open]);
  equal(await own.breakerChanges().next(), { value: undefined, done: true });
});

test('close lets calls finish, may be repeated, and refuses what comes later', async () => {
  const other = await connect(endpoint);
  const [socket] = sockets.slice(-1);
  const call = other.call('/test/sleep', '50');
  const closing = other.close();
  equal(text(await call), '50');
  await Promise.all([closing, other.close()]);
  if (socket.readyState !== WebSocket.CLOSED) await new Promise((closed) => (socket.onclose = closed));
  equal(socket.readyState, WebSocket.CLOSED);
  await rejects(other.request('x'), { code: 'CANCELLED', reason: 'CLIENT_CLOSED' });
  await rejects(other.open('/echo').recv(), { reason: 'CLIENT_CLOSED' });
});

test('a worker has the same face', async () => {
  const worker = new Worker('/page/wasm/test/worker.mjs', { type: 'module' });
  const said = await new Promise((resolve, reject) => {
    worker.onmessage = (event) => resolve(event.data);
    worker.onerror = (event) => reject(new Error(event.message));
    worker.postMessage({ sdk: import.meta.resolve('valkyrie-sdk-web'), endpoint });
  });
  worker.terminate();
  equal(said, ['Hello from a worker', ['one', 'two'], 'DEADLINE_EXCEEDED', sdk.version]);
});

test('the last client closes too', async () => {
  await client.close();
});

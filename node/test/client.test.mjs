// Calls, streams, metadata and errors of a client, through the installed package.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Metadata, StatusError, connect } from 'valkyrie-sdk';
import { native, served } from './server.mjs';

let server;
let client;
served((started, connected) => {
  server = started;
  client = connected;
});

const hanging = async (token, until) => {
  await client.call('/test/hang_stats', token, { metadata: { until }, timeoutMs: 30_000 });
};

test('a reply is a Buffer, whatever the message was', async () => {
  for (const message of [
    'text',
    new Uint8Array([0, 255]),
    Buffer.from('buffer'),
    new Uint8Array(8).subarray(2, 5),
    '',
  ]) {
    const reply = await client.request(message);
    assert.ok(Buffer.isBuffer(reply));
    assert.deepEqual(reply, Buffer.from(message));
  }
});

test('a message may be changed as soon as the call has returned', async () => {
  const message = Buffer.from('before');
  const reply = client.request(message);
  message.write('after!');
  assert.equal((await reply).toString(), 'before');

  const stream = client.open('/echo');
  const sent = [];
  for (const word of ['one', 'two', 'six']) {
    message.write(word);
    sent.push(stream.send(message.subarray(0, 3)));
  }
  message.fill(0);
  await Promise.all(sent);
  await stream.halfClose();
  assert.deepEqual((await collect(stream)).map(String), ['one', 'two', 'six']);
});

test('small replies keep no more than a batch alive, large ones only themselves', async () => {
  const replies = await Promise.all(Array.from({ length: 1000 }, (_, i) => client.request(`${i}`)));
  for (const reply of replies) assert.ok(reply.buffer.byteLength < 64 * 1024, `${reply.buffer.byteLength}`);
  const large = await client.request(Buffer.alloc(1 << 20));
  assert.ok(large.buffer.byteLength < (1 << 20) + 64);
});

test('no completion is left behind when more wait than one drain takes', async () => {
  // They pile up while this loop keeps the thread busy; none but these is there to wake it afterwards.
  for (let round = 0; round < 5; round++) {
    const calls = [];
    for (let i = 0; i < 4000; i++) calls.push(client.call('/echo', new Uint8Array(100), { timeoutMs: 60_000 }));
    const replies = await Promise.all(calls);
    assert.ok(replies.every((reply) => reply.length === 100));
  }
});

test('the calls of one turn cross together, and each gets its own answer', async () => {
  const crossings = [];
  const restore = [
    [native.Loop.prototype, 'submit'],
    [native.Client.prototype, 'call'],
  ].map(([prototype, name]) => {
    const original = prototype[name];
    prototype[name] = function (...args) {
      crossings.push(name);
      return original.apply(this, args);
    };
    return () => (prototype[name] = original);
  });
  try {
    const small = await Promise.all(Array.from({ length: 100 }, (_, i) => client.request(`${i}`)));
    assert.deepEqual(small.map(Number), Array.from({ length: 100 }, (_, i) => i));
    assert.deepEqual(crossings.splice(0), ['submit']);
    // More than the room there is for them, sizes on both sides of what is gathered, and calls that cross alone.
    const sizes = [0, 1, 7, 8, 9, 1023, 1024, 1025, 5000, ...Array.from({ length: 40 }, (_, i) => 1000 + i)];
    const messages = sizes.map((size, i) => Buffer.alloc(size, i));
    const all = messages.map((message, i) =>
      client.call('/echo', message, i % 5 === 0 ? { metadata: { n: `${i}` } } : { timeoutMs: 60_000 }),
    );
    for (const message of messages) message.fill(0xff);
    const replies = await Promise.all(all);
    assert.deepEqual(replies, sizes.map((size, i) => Buffer.alloc(size, i)));
    assert.ok(crossings.includes('submit') && crossings.includes('call'));
  } finally {
    for (const undo of restore) undo();
  }
});

test('a gathered call keeps its method, its time limit and its priority, however many methods there are', async () => {
  const names = Array.from({ length: 300 }, (_, i) => `/test/any/${i}`);
  assert.deepEqual((await Promise.all(names.map((name) => client.call(name, '')))).map(String), names);
  const limits = [5_000, 30_000, Infinity, 7_000.5];
  const left = await Promise.all(limits.map((timeoutMs) => client.call('/test/remaining', '', { timeoutMs })));
  assert.deepEqual(
    left.map(Number).map((ms, i) => (limits[i] === Infinity ? ms === 0 : ms > 0 && ms <= Math.ceil(limits[i]))),
    [true, true, true, true],
  );
  const bad = await Promise.allSettled([client.request('good'), client.call('no slash', ''), client.request('good')]);
  assert.deepEqual(bad.map(({ status }) => status), ['fulfilled', 'rejected', 'fulfilled']);
});

test('a gathered call says whether it may be executed twice', async () => {
  const retry = { max_attempts: 2, attempt_timeout_ms: 2_000 };
  const other = await connect(server.tcp, { serviceConfig: { methods: [{ names: ['/test/hang'], retry }] } });
  const asked = [true, false].map(async (idempotent) => {
    const token = `gathered-${idempotent}`;
    await assert.rejects(other.call('/test/hang', token, { idempotent }), { code: 'DEADLINE_EXCEEDED' });
    return JSON.parse(await client.call('/test/hang_stats', token)).started;
  });
  assert.deepEqual(await Promise.all(asked), [2, 1]);
  await other.close();
});

test('a call with a key is executed once, a gathered one too', async () => {
  const times = async (idempotencyKey, token) => {
    const call = () => client.call('/test/flaky', token, { idempotencyKey });
    return [String(await call()), String(await call())];
  };
  assert.deepEqual(await times('order-7', 'keyed-text'), ['1', '1']);
  assert.deepEqual(await times(new Uint8Array(64), 'keyed-bytes'), ['1', '1']);
  assert.deepEqual(await times(true, 'keyed-drawn'), ['1', '2']);
  assert.deepEqual(await times(undefined, 'keyed-not'), ['1', '2']);
  const response = await client.callWithResponse('/test/flaky', 'keyed-text', { idempotencyKey: 'order-7' });
  assert.equal(response.metadata.get('valkyrie-replayed'), 'true');
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
    ['/echo', 'x', { idempotencyKey: false }],
    ['/echo', 'x', { metadata: 'a=b' }],
    ['/echo', 'x', { metadata: { a: 1 } }],
    ['/echo', 'x', { metadata: [['a']] }],
    ['/echo', 'x', { signal: {} }],
  ];
  for (const args of wrong)
    await assert.rejects(client.call(...args), TypeError, JSON.stringify(args[2] ?? args, String));
  for (const options of [{ timeoutMs: -1 }, { timeoutMs: NaN }, { priority: 'urgent' }]) {
    await assert.rejects(client.call('/echo', 'x', options), RangeError);
  }
  await assert.rejects(connect(42), TypeError);
  for (const options of [
    { serviceConfig: 42 },
    { serviceConfig: null },
    { trustedCertificates: 42 },
    { trustedCertificates: {} },
    { trustedCertificates: Buffer.from('PEM') },
    { revocationLists: null },
    { systemRoots: 'yes' },
    { identity: 'PEM' },
    { identity: { certificates: 'PEM' } },
    { serverName: 42 },
    { sealed: 1 },
    { minSecurity: 2 },
  ]) {
    await assert.rejects(connect(server.tcp, options), TypeError, JSON.stringify(options));
  }
  await assert.rejects(connect(server.tcp, { minSecurity: 'best' }), RangeError);
  await assert.rejects(connect(server.tcp, { connectTimeoutMs: 'x' }), TypeError);
  assert.throws(() => client.open(42), TypeError);
  assert.throws(() => client.stream('/echo', 42), TypeError);
  await assert.rejects(client.open('/echo').send(42), TypeError);
  assert.throws(() => new client.constructor(), TypeError);
});

test('the timeout may be none, and a fraction counts up', async () => {
  const remaining = async (timeoutMs) => Number(await client.call('/test/remaining', '', { timeoutMs }));
  assert.equal(await remaining(Infinity), 0);
  assert.ok((await remaining(undefined)) <= 5000);
  await assert.rejects(client.call('/test/hang', 'fraction', { timeoutMs: 0.5 }), { code: 'DEADLINE_EXCEEDED' });
  const short = await connect(server.tcp, { timeoutMs: 50 });
  await assert.rejects(short.call('/test/hang', 'short'), { code: 'DEADLINE_EXCEEDED' });
  await short.close();
});

test('a status error tells everything, and where it was awaited', async () => {
  const metadata = { code: '5', message: 'not here', details: '1', trailers: '1', pushback_ms: '70' };
  const error = await client.call('/test/status', '', { metadata }).catch((error) => error);
  assert.ok(error instanceof StatusError && error instanceof Error);
  const { name, message, code, number, reason, pushbackMs, retryable } = error;
  assert.deepEqual(
    { name, message, code, number, reason, class: error.class, pushbackMs, retryable },
    {
      name: 'StatusError',
      message: 'not here',
      code: 'NOT_FOUND',
      number: 5,
      reason: 'NONE',
      class: 'application',
      pushbackMs: 70,
      retryable: false,
    },
  );
  assert.deepEqual(error.details, [{ type: 'valkyrie.test.Detail', value: Buffer.from('a detail') }]);
  assert.equal(error.trailers.get('t-status'), 'trailer');
  assert.deepEqual(error.trailers.get('t-status-bin'), Buffer.from([0, 255]));
  assert.match(error.stack, /client\.test\.mjs/);
  assert.doesNotMatch(error.stack, /drain/);
});

test('metadata goes in as an object, pairs, a Map or Metadata, and comes out in order', async () => {
  const pairs = [
    ['x-a', '1'],
    ['x-a', '2'],
    ['x-b-bin', Buffer.from([0])],
  ];
  const echo = async (metadata) => (await client.callWithResponse('/test/metadata', '', { metadata })).metadata;
  const back = await echo(pairs);
  assert.ok(back instanceof Metadata);
  assert.deepEqual([...back], pairs);
  assert.deepEqual(back.getAll('x-a'), ['1', '2']);
  assert.equal(back.get('absent'), undefined);
  assert.equal(back.map(([key]) => key).constructor, Array);
  assert.deepEqual([...(await echo(back))], pairs);
  assert.deepEqual([...(await echo({ 'x-a': '1' }))], [['x-a', '1']]);
  assert.deepEqual([...(await echo(new Map([['x-a', '1']])))], [['x-a', '1']]);
  await assert.rejects(echo({ 'X A': '1' }), { code: 'INVALID_ARGUMENT', reason: 'INVALID_METADATA' });
});

test('an abort rejects with the reason, reaches the server, and leaves no listener', async () => {
  const controller = new AbortController();
  const call = client.call('/test/hang', 'node-abort', { signal: controller.signal, timeoutMs: Infinity });
  await hanging('node-abort', 'started');
  controller.abort();
  await assert.rejects(call, { name: 'AbortError' });
  await hanging('node-abort', 'dropped');

  const reason = new Error('my own');
  await assert.rejects(client.call('/echo', 'x', { signal: AbortSignal.abort(reason) }), reason);
  await assert.rejects(client.call('/test/hang', 'x', { signal: AbortSignal.timeout(20) }), { name: 'TimeoutError' });
  await assert.rejects(connect(server.tcp, { signal: AbortSignal.abort() }), { name: 'AbortError' });

  const counted = new AbortController();
  let listeners = 0;
  const { addEventListener, removeEventListener } = counted.signal;
  counted.signal.addEventListener = (...args) => (listeners++, addEventListener.apply(counted.signal, args));
  counted.signal.removeEventListener = (...args) => (listeners--, removeEventListener.apply(counted.signal, args));
  await client.call('/echo', 'x', { signal: counted.signal });
  assert.deepEqual(await collect(client.stream('/test/count', '2 1', { signal: counted.signal })), [
    Buffer.from([0]),
    Buffer.from([1]),
  ]);
  await assert.rejects(client.call('/no', 'x', { signal: counted.signal }), { code: 'UNIMPLEMENTED' });
  assert.equal(listeners, 0);
});

test('a signal ends a stream, pending and later operations alike', async () => {
  const controller = new AbortController();
  const stream = client.open('/test/hang', { signal: controller.signal });
  await stream.send('node-stream-abort');
  const pending = stream.recv();
  await hanging('node-stream-abort', 'started');
  controller.abort();
  await assert.rejects(pending, { name: 'AbortError' });
  await assert.rejects(stream.recv(), { name: 'AbortError' });
  await assert.rejects(stream.send('x'), { name: 'AbortError' });
  await hanging('node-stream-abort', 'dropped');
  const late = client.stream('/test/count', '1 1', { signal: controller.signal });
  await assert.rejects(collect(late), { name: 'AbortError' });
});

test('leaving a loop, cancel() and asyncDispose end the call at the server', async () => {
  for (const [token, leave] of [
    ['node-cancel', (stream) => stream.cancel()],
    ['node-dispose', (stream) => stream[Symbol.asyncDispose]()],
    ['node-return', (stream) => stream[Symbol.asyncIterator]().return()],
  ]) {
    const stream = client.open('/test/hang');
    await stream.send(token);
    await hanging(token, 'started');
    await leave(stream);
    await assert.rejects(stream.recv(), { code: 'CANCELLED' });
    await hanging(token, 'dropped');
    stream.cancel();
  }
});

test('sends that nobody awaits keep their order', async () => {
  const stream = client.open('/echo');
  for (let i = 0; i < 500; i++) stream.send(`${i}`);
  stream.halfClose();
  const numbers = (await collect(stream)).map(Number);
  assert.deepEqual(
    numbers,
    Array.from({ length: 500 }, (_, i) => i),
  );
});

test('several receivers share a stream without loss', async () => {
  const stream = client.stream('/test/count', '300 1');
  const seen = [];
  const receive = async () => {
    for (let message; (message = await stream.recv()) !== null;) seen.push(message[0]);
  };
  await Promise.all([receive(), receive(), receive()]);
  assert.deepEqual(
    seen.sort((a, b) => a - b),
    Array.from({ length: 300 }, (_, i) => i % 251).sort((a, b) => a - b),
  );
  assert.equal(await stream.recv(), null);
});

test('a sender waits for a receiver that does not read', async () => {
  const stream = client.open('/echo');
  const message = Buffer.alloc(64 * 1024, 7);
  let taken = 0;
  let stalled = false;
  const sending = (async () => {
    for (let i = 0; i < 400; i++) {
      await stream.send(message);
      taken++;
    }
    await stream.halfClose();
  })();
  // Credit both ways is a few MiB at most: the sends stop long before 25 MiB. Calls beside it are not held up.
  for (let last = -1; last !== taken;) {
    last = taken;
    for (let i = 0; i < 50; i++) await client.request('beside');
  }
  stalled = taken < 400;
  const received = await collect(stream);
  await sending;
  assert.ok(stalled, `all ${taken} messages were taken without a reader`);
  assert.equal(received.length, 400);
  assert.ok(received.every((m) => m.equals(message)));
});

test('a stream keeps what came before its error, and repeats the error', async () => {
  const metadata = { n: '3', code: '10', message: 'after three' };
  const stream = client.stream('/test/stream_then_status', '', { metadata });
  const messages = [];
  const failure = { code: 'ABORTED', message: 'after three' };
  await assert.rejects(async () => {
    for await (const message of stream) messages.push(message);
  }, failure);
  assert.equal(messages.length, 3);
  await assert.rejects(stream.recv(), failure);
});

test('connectivity and its changes, which one may leave', async () => {
  const own = await connect(server.tcp);
  assert.equal(own.connectivity, 'ready');
  const left = own.connectivityChanges();
  assert.equal((await left.next()).value, 'ready');
  const waits = [left.next(), left.next()];
  await left.return();
  for (const wait of waits) assert.equal((await wait).done, true);
  assert.equal((await left.next()).done, true);
  const two = [own.connectivityChanges(), own.connectivityChanges()].map(async (changes) => {
    const states = [];
    for await (const state of changes) states.push(state);
    return states;
  });
  await own.request('x');
  await own.close();
  for (const states of await Promise.all(two)) assert.deepEqual(states, ['ready', 'shutdown']);
  assert.equal(own.connectivity, 'shutdown');
  const after = [];
  for await (const state of own.connectivityChanges()) after.push(state);
  assert.deepEqual(after, ['shutdown']);
});

test('a live client gets another service config and shows its breakers', async () => {
  const own = await connect(server.tcp);
  await own.request('x');
  const [breaker] = await own.breakers();
  assert.deepEqual({ ...breaker, server: '' }, { server: '', state: 'closed', calls: 1, failures: 0, changes: 0, method: '/echo', ageMs: undefined, opensForMs: undefined });
  assert.match(await own.metrics(), /^valkyrie_client_calls_total\{method="\/echo",code="OK"\} 1$/m);
  await own.isolate(breaker.server, '/echo');
  assert.equal((await own.breakers())[0].state, 'isolated');
  await assert.rejects(own.request('x'), { code: 'UNAVAILABLE', reason: 'BREAKER_OPEN' });
  await own.restore(breaker.server);
  await own.setServiceConfig({ methods: [{ names: ['/test/sleep'], timeout_ms: 20 }] });
  await assert.rejects(own.call('/test/sleep', '60000'), { code: 'DEADLINE_EXCEEDED' });
  await assert.rejects(own.setServiceConfig({ retries: 3 }), { reason: 'INVALID_CONFIGURATION' });
  await assert.rejects(own.setServiceConfig(undefined), TypeError);
  await assert.rejects(own.isolate(42), TypeError);
  await assert.rejects(own.restore(breaker.server, 42), TypeError);
  await own.close();
  await assert.rejects(own.breakers(), { reason: 'CLIENT_CLOSED' });
});

test('changes of breakers, which one may leave', async () => {
  const serviceConfig = { methods: [{ names: ['*'], breaker: { min_calls: 2 } }], throttle: { enabled: false } };
  const own = await connect(server.tcp, { serviceConfig });
  const states = (breakers) => breakers.map(({ method, state, changes }) => [method, state, changes]);
  const left = own.breakerChanges();
  assert.deepEqual(await left.next(), { value: [], done: false });
  const waits = [left.next(), left.next()];
  await left.return();
  for (const wait of waits) assert.equal((await wait).done, true);
  assert.equal((await left.next()).done, true);

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
  for (let i = 0; i < 2; i++) await assert.rejects(own.call('/test/status', '', fails), { code: 'UNAVAILABLE' });
  // Two that wait on one iterator have a change each.
  const open = [['/echo', 'closed', 0], ['/test/status', 'open', 1]];
  assert.deepEqual(states((await both[0]).value), open);
  await own.close();
  assert.deepEqual(await both[1], { value: undefined, done: true });
  for (const all of await Promise.all(two)) assert.deepEqual(all, [[], open]);
  assert.deepEqual(await own.breakerChanges().next(), { value: undefined, done: true });
});

test('closing is idempotent, lets calls finish, and ends later calls', async () => {
  const own = await connect(server.tcp);
  const last = own.call('/test/sleep', '50');
  await Promise.all([own.close(), own.close()]);
  assert.equal((await last).toString(), '50');
  await own.close();
  const closed = { code: 'CANCELLED', reason: 'CLIENT_CLOSED', class: 'caller' };
  await assert.rejects(own.request('x'), closed);
  await assert.rejects(own.open('/echo').recv(), closed);
  await assert.rejects(own.open('/echo').send('x'), closed);
  await assert.rejects(collect(own.stream('/echo', 'x')), closed);
  const disposed = await connect(server.tcp);
  await disposed[Symbol.asyncDispose]();
  await assert.rejects(disposed.request('x'), closed);
});

test('a client that is collected closes its connection', async () => {
  assert.equal(typeof gc, 'function', 'run with --expose-gc');
  const token = 'node-collected';
  const ref = await (async () => {
    const own = await connect(server.tcp);
    const stream = own.open('/test/hang');
    await stream.send(token);
    await hanging(token, 'started');
    return new WeakRef(own);
  })();
  // deref() keeps its target until the end of the job, so that the collector has to run in the next one.
  do {
    await new Promise(setImmediate);
    gc();
  } while (ref.deref() !== undefined);
  await hanging(token, 'dropped');
});

async function collect(stream) {
  const messages = [];
  for await (const message of stream) messages.push(message);
  return messages;
}

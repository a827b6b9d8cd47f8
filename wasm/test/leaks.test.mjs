// What is over leaves nothing behind. VALKYRIE_SOAK=N does everything N times as often, VALKYRIE_TEST=NAME runs one alone.
import { connect } from 'valkyrie-sdk-web';
import { collect, equal, ok, rejects, run, test, text } from './harness.mjs';

const PAGE_BYTES = 64 * 1024;
let memory;
let sockets = 0;
let endpoint;
let times;

// The module's memory: what it once took it never gives back, so that it grows by whatever is not freed.
const { instantiateStreaming } = WebAssembly;
WebAssembly.instantiateStreaming = async (...args) => {
  const source = await instantiateStreaming(...args);
  memory = source.instance.exports.memory;
  return source;
};
globalThis.WebSocket = class extends WebSocket {
  constructor(...args) {
    super(...args);
    sockets++;
  }
};

export default async function (environment) {
  endpoint = environment.VALKYRIE_CONFORMANCE_ENDPOINT;
  times = Number(environment.VALKYRIE_SOAK ?? 1);
  await run(times, environment.VALKYRIE_TEST);
}

/** Runs `round` until the module has what it needs, and then `rounds` times without more memory. */
async function flat(rounds, round) {
  for (let i = 0; i < rounds; i++) await round(i);
  const before = memory.buffer.byteLength;
  for (let i = 0; i < rounds * times; i++) await round(rounds + i);
  const grown = memory.buffer.byteLength - before;
  console.log(`   ${rounds * times} rounds, ${before} bytes before, ${grown} more after`);
  ok(grown <= 2 * PAGE_BYTES, `the module's memory grew by ${grown} bytes in ${rounds * times} rounds`);
}

test('calls', async () => {
  const client = await connect(endpoint);
  const message = new Uint8Array(512);
  await flat(100, () => Promise.all(Array.from({ length: 64 }, () => client.request(message))));
  await client.close();
});

test('streams, to their end and left', async () => {
  const client = await connect(endpoint);
  await flat(400, async () => {
    equal((await collect(client.stream('/test/count', '5 100'))).length, 5);
    for await (const message of client.stream('/test/count', '5 100')) {
      ok(message.length === 100);
      break;
    }
  });
  await client.close();
});

test('clients', async () => {
  await flat(150, async () => {
    const client = await connect(endpoint);
    await client.request('hello');
    await client.close();
  });
});

// Of the calls and streams of a round some are cancelled at once, others when the server has them, and most while they wait
// for a stream. None completes beside them.
test('a storm of cancels leaves nothing at the server, and the connection stays', async () => {
  const own = await connect(endpoint);
  const fresh = text(await own.call('/test/private', 'ws'));
  await own.close();
  const [client, watch] = await Promise.all([connect(fresh), connect(fresh)]);
  const before = sockets;
  let rounds = 0;
  await flat(10, async () => {
    const token = `${rounds++}`;
    const controllers = Array.from({ length: 500 }, () => new AbortController());
    const ended = controllers.map(({ signal }, i) =>
      i % 2 === 0
        ? rejects(client.call('/test/hang', token, { signal, timeoutMs: Infinity }), { name: 'AbortError' })
        : rejects(collect(client.stream('/test/hang', token, { signal })), { name: 'AbortError' }),
    );
    for (const controller of controllers.slice(400)) controller.abort();
    await watch.call('/test/hang_stats', token, { metadata: { until: 'started' }, timeoutMs: 60_000 });
    for (const controller of controllers) controller.abort();
    await Promise.all(ended);
  });
  console.log(`   ${rounds * 500} cancelled`);
  for (let left = true; left; ) {
    const { accepted, ...held } = JSON.parse(text(await client.call('/test/held', '')));
    equal(accepted, 2);
    left = Object.values(held).some((count) => count > 0);
  }
  equal(sockets, before);
  await Promise.all([client.close(), watch.close()]);
});

// A client whose server goes away and comes back: the page has a server of its own, see xtask/node/page.mjs.
import { StatusError, connect } from 'valkyrie-sdk-web';
import { collect, equal, ok, rejects, run, test, text } from './harness.mjs';

const { server } = globalThis;
const PATIENCE = { timeoutMs: 30_000 };

export default async function () {
  await run();
}

/** Calls until somebody answers. A browser lets a page wait before it dials again where it has failed. */
async function answered(call) {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      ok(error instanceof StatusError && error.retryable, `${error}`);
    }
  }
}

test('a client outlives its server and finds the one that takes its place', async () => {
  const endpoint = await server('start');
  const client = await connect(endpoint);
  for (const round of ['first', 'second', 'third']) {
    const call = client.call('/test/hang', round, { timeoutMs: Infinity });
    await client.call('/test/hang_stats', round, { metadata: { until: 'started' }, ...PATIENCE });
    const stream = client.open('/echo');
    await stream.send(round);
    equal(text(await stream.recv()), round);

    const lost = { code: 'UNAVAILABLE', reason: 'CONNECTION_LOST' };
    const ended = [rejects(call, lost), rejects(stream.recv(), lost)];
    await server('stop');
    await Promise.all(ended);
    await rejects(client.request('nobody', PATIENCE), { code: 'UNAVAILABLE', reason: 'CONNECT_FAILED' });

    equal(await server('start'), endpoint);
    equal(text(await answered(() => client.request(round, PATIENCE))), round);
    equal((await collect(client.stream('/test/count', '3 1'))).length, 3);
  }
  await client.close();
  await server('stop');
});

test('what could not be connected can be connected later', async () => {
  const endpoint = await server('start');
  await server('stop');
  await rejects(connect(endpoint), { code: 'UNAVAILABLE', reason: 'CONNECT_FAILED' });
  await server('start');
  const client = await answered(() => connect(endpoint, { connectTimeoutMs: 30_000 }));
  equal(text(await client.request('late', PATIENCE)), 'late');
  await client.close();
  await server('stop');
});

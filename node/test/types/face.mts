// Compiled, never run: what the types promise, and what they refuse.
import {
  type Breaker,
  Client,
  Metadata,
  StatusError,
  connect,
  setLogger,
  version,
  type CallOptions,
  type CodeName,
  type Connectivity,
  type LogRecord,
  type Message,
  type Pem,
  type Priority,
  type Response,
  type Stream,
} from 'valkyrie-sdk';

export async function uses(signal: AbortSignal): Promise<void> {
  const client: Client = await connect('tcp://127.0.0.1:1', { timeoutMs: 1500, connectTimeoutMs: Infinity, signal });
  const ca: Pem = { file: new URL('file:///ca.pem') };
  const identity = { certificates: { file: 'client.pem' }, key: 'PEM' };
  await connect('tls://127.0.0.1:1', { trustedCertificates: ca, identity, minSecurity: 'mtls', sealed: true });
  // @ts-expect-error
  await connect('tls://127.0.0.1:1', { minSecurity: 'best' });
  await connect('tcp://127.0.0.1:1', { token: 'text' });
  await connect('tcp://127.0.0.1:1', { token: async () => 'text' });
  // @ts-expect-error a token is text
  await connect('tcp://127.0.0.1:1', { token: () => 42 });
  await connect('tcp://127.0.0.1:1', { serviceConfig: '{}' });
  await connect('tcp://127.0.0.1:1', { serviceConfig: { methods: [{ names: ['*'], idempotent: true }] } });
  await connect('tcp://127.0.0.1:1', { keepaliveMs: 0, keepaliveTimeoutMs: 1000, keepaliveIdleMs: Infinity });
  // @ts-expect-error a service config is text or an object
  await connect('tcp://127.0.0.1:1', { serviceConfig: 42 });
  const priority: Priority = 'bulk';
  const options: CallOptions = { timeoutMs: 5, signal, priority, idempotent: true, metadata: { a: 'text', 'b-bin': new Uint8Array(1) } };
  const bytes: Uint8Array = await client.call('/echo', 'text', options);
  const text: string = new TextDecoder().decode(await client.request(bytes));
  const full: Response = await client.callWithResponse('/echo', bytes, { metadata: [['a', '1']] });
  await client.call('/echo', '', { metadata: new Map([['a', '1']]) });
  await client.call('/echo', '', { metadata: full.metadata, timeoutMs: undefined });
  const value: string | Uint8Array | undefined = full.trailers.get('a');
  const keys: string[] = full.metadata.map(([key]) => key);

  setLogger(({ level, target, message, fields }: LogRecord) => console.log(level, target, message, fields['endpoint']));
  setLogger(console.warn, 'info');
  setLogger(null);
  // @ts-expect-error: no such level
  setLogger(console.warn, 'loud');

  const state: Connectivity = client.connectivity;
  for await (const next of client.connectivityChanges()) if (next === 'shutdown' || next === state) break;
  // @ts-expect-error: it is not for the program to set
  client.connectivity = 'ready';

  await client.setServiceConfig({ retry_budget: {} });
  const breakers: Breaker[] = await client.breakers();
  for (const { server, method } of breakers) await client.isolate(server, method);
  for await (const now of client.breakerChanges()) if (now.some(({ state }) => state === 'open')) break;
  await client.restore('tcp://127.0.0.1:1');
  const metrics: string = await client.metrics();
  console.log(metrics);

  const stream: Stream = client.open('/echo', { priority });
  const message: Message = 'x';
  await stream.send(message);
  await stream.halfClose();
  const first: Uint8Array | null = await stream.recv();
  for await (const message of stream) bytes.set(message);
  for await (const message of client.stream('/count', '3')) bytes.set(message);
  stream.cancel();

  try {
    await client.request('x');
  } catch (error) {
    if (error instanceof StatusError) {
      const code: CodeName = error.code;
      const facts: [number, string, string, boolean] = [error.number, error.reason, error.class, error.retryable];
      const wait: number | undefined = error.pushbackMs;
      const detail: Uint8Array | undefined = error.details[0]?.value;
      const metadata: Metadata = error.trailers;
      console.log(code, facts, wait, detail, metadata);
    }
  }
  await client.close();
  console.log(version, text, value, keys, first);
}

export async function disposes(): Promise<void> {
  await using client = await connect('tcp://127.0.0.1:1');
  await using stream = client.open('/echo');
  await stream.send('x');
}

export async function refuses(client: Client): Promise<void> {
  // @ts-expect-error a number is no message
  await client.request(42);
  // @ts-expect-error a method is needed
  await client.call();
  // @ts-expect-error a timeout is a number
  await client.call('/echo', 'x', { timeoutMs: '5' });
  // @ts-expect-error there are three priorities
  await client.call('/echo', 'x', { priority: 'urgent' });
  await client.call('/echo', 'x', { idempotencyKey: 'order-7' });
  await client.call('/echo', 'x', { idempotencyKey: new Uint8Array(16) });
  await client.call('/echo', 'x', { idempotencyKey: true });
  // @ts-expect-error a key is text, bytes or true
  await client.call('/echo', 'x', { idempotencyKey: 7 });
  // @ts-expect-error idempotent is a boolean
  await client.call('/echo', 'x', { idempotent: 'yes' });
  // @ts-expect-error a client comes from connect()
  new Client();
  // @ts-expect-error the reply is bytes
  const text: string = await client.request('x');
  console.log(text);
}

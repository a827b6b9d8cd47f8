// What becomes of promises when the WebAssembly part breaks: a page of its own, since nothing can be called after.
import { connect, load } from 'valkyrie-sdk-web';
import { ok, rejects, run, test } from './harness.mjs';

let endpoint;

export default async function (environment) {
  endpoint = environment.VALKYRIE_CONFORMANCE_ENDPOINT;
  await run();
}

test('a module that cannot be loaded may be loaded again', async () => {
  await rejects(load('/page/wasm/test/no-such-module.wasm'), Error);
  await rejects(load(new Uint8Array(8)), WebAssembly.CompileError);
  await load(import.meta.resolve('valkyrie-sdk-web/pkg/valkyrie_bg.wasm'));
});

test('a panic rejects everything that waits, and everything that comes later', async () => {
  const client = await connect(endpoint);
  const broken = { code: 'INTERNAL', number: 13, reason: 'INTERNAL', class: 'server' };
  const call = rejects(client.call('/test/hang', 'web-panic', { timeoutMs: Infinity }), broken);
  const stream = client.open('/echo');
  await stream.send('x');
  await stream.recv();
  const received = rejects(stream.recv(), broken);

  // A WebSocket that hands over a message while it is sending enters the module twice: no browser does that, and the
  // module's own check panics.
  const { send } = WebSocket.prototype;
  WebSocket.prototype.send = function (message) {
    send.call(this, message);
    this.dispatchEvent(new MessageEvent('message', { data: new ArrayBuffer(1) }));
  };
  const error = await rejects(client.request('x'), broken);
  WebSocket.prototype.send = send;
  ok(/panicked at/.test(error.message), error.message);
  await Promise.all([call, received]);

  await rejects(client.request('x'), broken);
  await rejects(stream.send('x'), broken);
  await rejects(client.open('/echo').recv(), broken);
  await rejects(connect(endpoint), broken);
  await rejects(client.close(), broken);
  stream.cancel();
});

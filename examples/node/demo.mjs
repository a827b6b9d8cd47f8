// The main job, a line per thing done. After "ready" it waits for the server to stop: node demo.mjs ENDPOINT FILE…
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { connect, StatusError } from 'valkyrie-sdk';

const [endpoint, ...paths] = process.argv.slice(2);
const text = (message) => new TextDecoder().decode(message);
const seconds = (began) => ((performance.now() - began) / 1000).toFixed(3);

async function call(client) {
  console.log('call', text(await client.request('Hello, World!')));
}

/** The files go up and come down on one stream. Each end hashes what it gets. */
async function transfer(client) {
  const [sent, received] = [createHash('sha256'), createHash('sha256')];
  let bytes = 0;
  const began = performance.now();
  const stream = client.open('/echo', { metadata: { 'want-digest': 'sha-256' } });
  async function upload() {
    for (const path of paths) {
      for await (const chunk of createReadStream(path, { highWaterMark: 64 * 1024 })) {
        sent.update(chunk);
        bytes += chunk.length;
        await stream.send(chunk);
      }
    }
    await stream.halfClose();
  }
  async function download() {
    for await (const message of stream) received.update(message);
  }
  await Promise.all([upload(), download()]);
  console.log(`bytes ${bytes}\nseconds ${seconds(began)}`);
  console.log(`sent ${sent.digest('hex')}\nreceived ${received.digest('hex')}`);
  console.log(`server ${stream.trailers.get('digest-sha-256')}`);
}

/** None of the calls can end before all of them are open, on one connection. */
async function inFlight(client, count) {
  const began = performance.now();
  const streams = Array.from({ length: count }, () => client.open('/echo'));
  await Promise.all(streams.map((stream, number) => stream.send(String(number))));
  await Promise.all(streams.map((stream) => stream.halfClose()));
  const answers = await Promise.all(streams.map((stream) => stream.recv()));
  await Promise.all(streams.map((stream) => stream.recv()));
  const answered = answers.filter((message, number) => text(message) === String(number)).length;
  console.log(`in_flight ${answered}\nin_flight_seconds ${seconds(began)}`);
}

/** A call that waits for an answer is given up; the same connection goes on. */
async function cancel(client) {
  const controller = new AbortController();
  const waiting = client.open('/echo', { signal: controller.signal }).recv();
  controller.abort();
  const cancelled = await waiting.catch((error) => error.name === 'AbortError');
  await client.request('still here');
  console.log(`cancelled ${cancelled}`);
}

/** The status that a promise rejects with. */
async function status(promise) {
  try {
    await promise;
  } catch (error) {
    if (error instanceof StatusError) return `${error.code} ${error.reason}`;
    throw error;
  }
  return 'OK';
}

async function deadline(client) {
  console.log('deadline', await status(client.open('/echo', { timeoutMs: 100 }).recv()));
}

/** The server stops between two messages: one call ends well in the time it is given, another does not end. */
async function serverStops(client) {
  const [ends, stays] = [client.open('/echo'), client.open('/echo')];
  for (const stream of [ends, stays]) {
    await stream.send('before');
    await stream.recv();
  }
  console.log('ready');
  let refused;
  // So short a time leaves none to wait for the server's return.
  do refused = await status(client.call('/echo', 'anyone there?', { timeoutMs: 500 }));
  while (refused === 'OK');
  console.log('refused', refused);
  await ends.send('after');
  await ends.halfClose();
  for await (const message of ends) console.log('finished OK', text(message));
  console.log('cut', await status(stays.recv()));
}

const client = await connect(endpoint);
for (const part of [call, transfer, (client) => inFlight(client, 1000), cancel, deadline, serverStops]) await part(client);
await client.close();

// Transfer: files up and down through /echo, hashed at both ends. node transfer.mjs ENDPOINT FILE…
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { connect } from 'valkyrie-sdk';

const [endpoint, ...paths] = process.argv.slice(2);
const [sent, received] = [createHash('sha256'), createHash('sha256')];
let bytes = 0;
const began = performance.now();
const client = await connect(endpoint);
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
const digests = { sent: sent.digest('hex'), received: received.digest('hex'), server: stream.trailers.get('digest-sha-256') };
console.log(JSON.stringify({ bytes, seconds: (performance.now() - began) / 1000, ...digests }));
await client.close();

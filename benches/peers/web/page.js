// The measuring loop of ../node/harness.js, in a page. Two clients: Valkyrie, and what one would write by hand.
import { connect } from '/node_modules/valkyrie-sdk-web/index.js';

class Valkyrie {
  static async connect(address) {
    const peer = new Valkyrie();
    peer.client = await connect(`ws://${address}`);
    return peer;
  }
  async echo(payload) {
    return (await this.client.call('/echo', payload)).length;
  }
  close() {
    return this.client.close();
  }
}

/** One message a call, with its number in the first four bytes. */
class Bare {
  waiting = [];
  free = [];
  static async connect(address) {
    const peer = new Bare();
    peer.socket = new WebSocket(`ws://${address}`);
    peer.socket.binaryType = 'arraybuffer';
    await new Promise((open, failed) => Object.assign(peer.socket, { onopen: open, onerror: failed }));
    peer.socket.onmessage = ({ data }) => {
      const id = new DataView(data).getUint32(0);
      peer.free.push(id);
      peer.waiting[id](data.byteLength);
    };
    return peer;
  }
  async echo(payload) {
    const id = this.free.pop() ?? this.waiting.length;
    const message = payload.slice();
    new DataView(message.buffer).setUint32(0, id);
    const reply = new Promise((resolve) => (this.waiting[id] = resolve));
    this.socket.send(message);
    return await reply;
  }
  close() {
    this.socket.close();
  }
}

async function load(client, { size, inflight }, ms, samples) {
  const payload = new Uint8Array(size).fill(0x5a);
  const end = performance.now() + ms;
  const one = async () => {
    for (let began; (began = performance.now()) < end; ) {
      const length = await client.echo(payload);
      samples.push((performance.now() - began) * 1000);
      if (length !== size) throw new Error(`a reply of ${length} bytes`);
    }
  };
  await Promise.all(Array.from({ length: inflight }, one));
}

export async function run(mode, address, spec) {
  const client = await { valkyrie: Valkyrie, websocket: Bare }[mode].connect(address);
  await load(client, spec, spec.secs * 2000, []);
  const samples = [];
  const began = performance.now();
  await load(client, spec, spec.secs * 1000, samples);
  const seconds = (performance.now() - began) / 1000;
  await client.close();
  samples.sort((a, b) => a - b);
  const n = samples.length;
  const at = (quantile) => samples[Math.floor((n - 1) * quantile)];
  return { p50_us: at(0.5), p99_us: at(0.99), p999_us: at(0.999), max_us: samples[n - 1], n, rps: n / seconds };
}

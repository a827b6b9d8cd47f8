// Valkyrie, from the place where its packages were installed.
const { createRequire } = require('node:module');
const { join } = require('node:path');
const { main, now } = require('./harness');
const { connect } = createRequire(join(__dirname, '../../../target/fresh/node/'))('valkyrie-sdk');

class Valkyrie {
  static async connect(o) {
    const peer = new Valkyrie();
    peer.client = await connect(`tcp://${o.host}:${o.port}`);
    return peer;
  }
  async echo(payload) {
    return (await this.client.call('/echo', payload)).length;
  }
  async serverStream(count, size) {
    const wanted = Buffer.alloc(12);
    wanted.writeBigUInt64LE(BigInt(count));
    wanted.writeUInt32LE(size, 8);
    let messages = 0, bytes = 0;
    for await (const message of this.client.stream('/stream', wanted)) {
      messages++;
      bytes += message.length;
    }
    return [messages, bytes];
  }
  async pingPong(payload, more) {
    const stream = this.client.open('/echo');
    for (;;) {
      const began = now();
      await stream.send(payload);
      await stream.recv();
      if (!more(began)) return stream.cancel();
    }
  }
  close() {
    return this.client.close();
  }
}
main(Valkyrie);

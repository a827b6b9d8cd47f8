// A first call: node hello.mjs tcp://127.0.0.1:8080
import { connect } from 'valkyrie-sdk';

const client = await connect(process.argv[2] ?? 'tcp://127.0.0.1:8080');
const reply = await client.request('Hello, World!');
console.log(reply.toString());
await client.close();

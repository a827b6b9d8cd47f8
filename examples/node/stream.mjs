// Messages both ways: node stream.mjs tcp://127.0.0.1:8080
import { connect } from 'valkyrie-sdk';

const client = await connect(process.argv[2] ?? 'tcp://127.0.0.1:8080');
const stream = client.open('/echo');
for (const word of ['one', 'two', 'three']) await stream.send(word);
await stream.halfClose();
for await (const message of stream) console.log(message.toString());
await client.close();

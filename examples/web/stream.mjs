// Messages both ways.
import { connect } from 'valkyrie-sdk-web';

export default async function ({ VALKYRIE_ENDPOINT: endpoint = 'ws://127.0.0.1:8080' }) {
  const client = await connect(endpoint);
  const stream = client.open('/echo');
  for (const word of ['one', 'two', 'three']) await stream.send(word);
  await stream.halfClose();
  for await (const message of stream) console.log(new TextDecoder().decode(message));
  await client.close();
}

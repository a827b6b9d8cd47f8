// A first call.
import { connect } from 'valkyrie-sdk-web';

export default async function ({ VALKYRIE_ENDPOINT: endpoint = 'ws://127.0.0.1:8080' }) {
  const client = await connect(endpoint);
  const reply = await client.request('Hello, World!');
  console.log(new TextDecoder().decode(reply));
  await client.close();
}

// What goes wrong, and how it is told.
import { StatusError, connect } from 'valkyrie-sdk-web';

export default async function ({ VALKYRIE_ENDPOINT: endpoint = 'ws://127.0.0.1:8080' }) {
  const client = await connect(endpoint);
  try {
    await client.call('/no/such/method', 'x', { timeoutMs: 1500 });
  } catch (error) {
    if (!(error instanceof StatusError)) throw error;
    console.log(`${error.code}: ${error.message} (${error.reason})`);
  }
  await client.close();
}

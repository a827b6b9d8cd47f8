// What goes wrong, and how it is told: node errors.mjs tcp://127.0.0.1:8080
import { connect, StatusError } from 'valkyrie-sdk';

const client = await connect(process.argv[2] ?? 'tcp://127.0.0.1:8080');
try {
  await client.call('/no/such/method', 'x', { timeoutMs: 1500 });
} catch (error) {
  if (!(error instanceof StatusError)) throw error;
  console.log(`${error.code}: ${error.message} (${error.reason})`);
}
await client.close();

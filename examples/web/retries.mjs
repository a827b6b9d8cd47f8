// A call with a deadline that is retried, behind a circuit breaker.
import { connect } from 'valkyrie-sdk-web';

const serviceConfig = { methods: [{ names: ['*'], retry: { max_attempts: 4 }, breaker: { open_ms: 10000 } }] };

export default async function ({ VALKYRIE_ENDPOINT: endpoint = 'ws://127.0.0.1:8080' }) {
  const client = await connect(endpoint, { serviceConfig });
  try {
    const reply = await client.call('/echo', 'Hello, World!', { idempotent: true, timeoutMs: 2000 });
    console.log(new TextDecoder().decode(reply));
  } catch (error) {
    console.log(`${error.code}: ${error.message}\n${error.timeline}`);
  }
  await client.close();
}

// A call with a deadline that is retried, behind a circuit breaker: node retries.mjs tcp://127.0.0.1:8080,tcp://127.0.0.1:8081
import { connect } from 'valkyrie-sdk';

const serviceConfig = { methods: [{ names: ['*'], retry: { max_attempts: 4 }, breaker: { open_ms: 10000 } }] };

const client = await connect(process.argv[2] ?? 'tcp://127.0.0.1:8080', { serviceConfig });
try {
  const reply = await client.call('/echo', 'Hello, World!', { idempotent: true, timeoutMs: 2000 });
  console.log(reply.toString());
} catch (error) {
  console.log(`${error.code}: ${error.message}\n${error.timeline}`);
}
await client.close();

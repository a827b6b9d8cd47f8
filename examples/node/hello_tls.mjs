// A first call over TLS. Usage: hello_tls.mjs [endpoint authorities.pem]
import { connect } from 'valkyrie-sdk';

const [endpoint = 'tls://localhost:8443', file = 'certificates/ca.pem'] = process.argv.slice(2);
const client = await connect(endpoint, { trustedCertificates: { file } });
const reply = await client.request('Hello, World!');
console.log(reply.toString());
await client.close();

// The Node runner: ../README.md has its variables and its output. `valkyrie-sdk` is the one that the project in the
// working directory installed.
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { run } from './actions.mjs';

const sdk = createRequire(join(process.cwd(), 'package.json'))('valkyrie-sdk');
const cases = JSON.parse(await readFile(process.env.VALKYRIE_CONFORMANCE_CASES, 'utf8'));
const endpoint = process.env.VALKYRIE_CONFORMANCE_ENDPOINT;
// Trust is for what is encrypted.
const sealed = process.env.VALKYRIE_CONFORMANCE_SEALED === '1';
const trusted =
  sealed || /^(tls|wss|quic):/.test(endpoint)
    ? { trustedCertificates: await readFile(process.env.VALKYRIE_CONFORMANCE_CERTIFICATES, 'utf8'), sealed }
    : {};
const settings = {
  endpoint,
  absent: process.env.VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT,
  options: trusted,
  prefix: `node${process.pid}`,
  pem: (file) => ({ file }),
};
await run(sdk, cases, settings, (result) => console.log(JSON.stringify(result)));

import * as plain from 'valkyrie-sdk-web';
import * as sdk from 'valkyrie-sdk-web/sealed';
import { collect, equal, ok, rejects, run, test, text } from './harness.mjs';

const { StatusError, connect } = sdk;
let endpoint;
let trusted;
const passed = [];

// Every byte that passes a WebSocket, both ways.
globalThis.WebSocket = class extends WebSocket {
  constructor(...args) {
    super(...args);
    this.addEventListener('message', ({ data }) => passed.push(new Uint8Array(data)));
  }
  send(message) {
    passed.push(new Uint8Array(message));
    super.send(message);
  }
};

export default async function (environment) {
  endpoint = environment.VALKYRIE_CONFORMANCE_ENDPOINT;
  trusted = environment.VALKYRIE_CONFORMANCE_CERTIFICATES;
  await run();
}

const CANARY = 'canary-4f1b9c62';
const seen = () => passed.some((bytes) => new TextDecoder('latin1').decode(bytes).includes(CANARY));

test('what is not sealed passes in the clear', async () => {
  for (const { connect } of [plain, sdk]) {
    passed.length = 0;
    const client = await connect(endpoint);
    equal(text(await client.request(CANARY)), CANARY);
    ok(seen());
    await client.close();
  }
});

test('a sealed session carries every shape, and nothing of it is seen', async () => {
  passed.length = 0;
  const client = await connect(endpoint, { sealed: true, trustedCertificates: trusted });
  equal(text(await client.call('/echo', CANARY, { metadata: { 'x-canary': CANARY } })), CANARY);
  const long = new Uint8Array(1_000_000).fill(7);
  equal((await client.request(long)).length, long.length);
  equal((await collect(client.stream('/echo', CANARY))).map(text), [CANARY]);
  const calls = Array.from({ length: 64 }, (_, number) => client.request(`${CANARY} ${number}`));
  equal((await Promise.all(calls)).map(text), calls.map((_, number) => `${CANARY} ${number}`));
  await client.close();
  ok(passed.length > 0);
  ok(!seen());
});

test('whom a page does not trust, and who is another, is refused for a reason', async () => {
  const wrong = async (options, reason) => {
    const error = await rejects(connect(endpoint, { sealed: true, trustedCertificates: trusted, ...options }), StatusError);
    equal([error.reason, error.class, error.retryable], [reason, 'auth', false]);
  };
  await wrong({ serverName: 'other.example' }, 'CERTIFICATE_NAME');
  await wrong({ trustedCertificates: OTHER }, 'CERTIFICATE_UNTRUSTED');
});

test('what is written wrong is told', async () => {
  const sealed = { sealed: true, trustedCertificates: trusted };
  await rejects(connect(endpoint, { ...sealed, serverName: 42 }), TypeError);
  await rejects(connect(endpoint, { ...sealed, identity: 'PEM' }), TypeError);
  for (const options of [{}, { trustedCertificates: 'no PEM' }, { ...sealed, identity: { certificates: trusted, key: 'no key' } }]) {
    const error = await rejects(connect(endpoint, { sealed: true, ...options }), StatusError);
    equal([error.code, error.reason], ['INVALID_ARGUMENT', 'INVALID_CONFIGURATION']);
  }
});

// An authority that nobody else knows.
const OTHER = `-----BEGIN CERTIFICATE-----
MIIBgTCCASegAwIBAgIUKwIhOJH6hpExu0F4KBFa1wXl/mEwCgYIKoZIzj0EAwIw
HDEaMBgGA1UEAwwRYW5vdGhlciBhdXRob3JpdHkwIBcNMjYxMTIxMjE1NjA5WhgP
MjEyNjEwMjgyMjAxMDlaMBwxGjAYBgNVBAMMEWFub3RoZXIgYXV0aG9yaXR5MFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEtMMR/jjJsD0L61JyWJv9Vx/HPnylIrOV
k5f/grpZbdzMh13GbXouasbbqMwAZTPFiI6uuUiZc7G+Z8nFswLgsaNFMEMwDgYD
VR0PAQH/BAQDAgEGMB0GA1UdDgQWBBT/iqfwN0s11VOQ2WJdth78qRJThTASBgNV
HRMBAf8ECDAGAQH/AgEAMAoGCCqGSM49BAMCA0gAMEUCICRd/p1hHC3oUyV2kCwY
kM0D+QWFvMVJoeiO88Al/KumAiEAnLLJ1woYgi5RXUAP65PxfU3d7kW1BPbb3xj9
feDvNWo=
-----END CERTIFICATE-----
`;

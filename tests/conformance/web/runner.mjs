// The browser's runner, run in a page by xtask/node/page.mjs: ../README.md has its variables and its output. The cases'
// path is a URL here.
import { run } from '../node/actions.mjs';

export default async function (environment) {
  const cases = await (await fetch(environment.VALKYRIE_CONFORMANCE_CASES)).json();
  const sealed = environment.VALKYRIE_CONFORMANCE_SEALED === '1';
  const sdk = await (sealed ? import('valkyrie-sdk-web/sealed') : import('valkyrie-sdk-web'));
  const settings = {
    endpoint: environment.VALKYRIE_CONFORMANCE_ENDPOINT,
    absent: environment.VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT,
    options: sealed ? { sealed, trustedCertificates: environment.VALKYRIE_CONFORMANCE_CERTIFICATES } : {},
    prefix: `web${crypto.randomUUID()}`,
    pem: (text) => text,
  };
  await run(sdk, cases, settings, (result) => console.log(JSON.stringify(result)));
}

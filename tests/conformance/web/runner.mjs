// The browser's runner, run in a page by xtask/node/page.mjs: ../README.md has its variables and its output. The cases'
// path is a URL here.
import * as sdk from 'valkyrie-sdk-web';
import { run } from '../node/actions.mjs';

export default async function (environment) {
  const cases = await (await fetch(environment.VALKYRIE_CONFORMANCE_CASES)).json();
  const settings = {
    endpoint: environment.VALKYRIE_CONFORMANCE_ENDPOINT,
    absent: environment.VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT,
    prefix: `web${crypto.randomUUID()}`,
  };
  await run(sdk, cases, settings, (result) => console.log(JSON.stringify(result)));
}

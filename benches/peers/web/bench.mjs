// Measures a client in a page of headless Chromium: node bench.mjs MODE --addr A --spec JSON (see ../driver/run.py).
// MODE is valkyrie or websocket. Everything of the browser runs on the core that this program was pinned to.
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { file, launch, newPage, serve } from '../../../xtask/node/browser.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const fresh = resolve(here, '../../../target/fresh/web');
const mode = process.argv[2];
const argument = (name) => process.argv[process.argv.indexOf(name) + 1];

// Without isolation a page's clock has steps of 100 us.
const isolated = {
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-embedder-policy': 'require-corp',
};
const pages = await serve(async (path) => {
  if (path === '/') return ['<!doctype html><link rel="icon" href="data:,">', 'text/html'];
  return await file(path.startsWith('/node_modules/') ? fresh : here, path);
}, isolated);
const browser = await launch('chromium');
try {
  const page = await newPage(browser);
  await page.goto(pages.origin);
  for (const spec of JSON.parse(argument('--spec'))) {
    const result = await page
      .evaluate(
        async (mode, address, spec) => (await import('/page.js')).run(mode, address, spec),
        mode,
        argument('--addr'),
        spec,
      )
      .catch((error) => ({ error: `${error.message ?? error}`.slice(0, 160) }));
    console.log(JSON.stringify({ ...result, label: spec.label }));
  }
} finally {
  await browser.close();
  pages.close();
}

// A headless browser, and a server of files for what runs in it: used by page.mjs and bundles.mjs.
import { createHash, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, resolve, sep } from 'node:path';
import puppeteer from 'puppeteer-core';

const TYPES = {
  '.css': 'text/css',
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm',
};

/** Starts `chromium` or `firefox`; VALKYRIE_CHROMIUM and VALKYRIE_FIREFOX name others than Debian's. `trusted`, PEM text, is a
 * certificate to take from a server, which no authority of the browser's has signed. */
export async function launch(name, trusted) {
  // A page may take that long; a soak as much longer as it does more.
  const common = { headless: true, protocolTimeout: 600_000 * Number(process.env.VALKYRIE_SOAK ?? 1) };
  if (name === 'firefox') {
    const executablePath = process.env.VALKYRIE_FIREFOX ?? '/usr/bin/firefox-esr';
    // It has no way to trust a single one without a profile made by other tools.
    const acceptInsecureCerts = trusted !== undefined;
    return await puppeteer.launch({ ...common, acceptInsecureCerts, browser: 'firefox', executablePath });
  }
  if (name !== 'chromium') throw new Error(`there is no browser ${name}: chromium or firefox`);
  const executablePath = process.env.VALKYRIE_CHROMIUM ?? '/usr/bin/chromium';
  // Chromium's sandbox refuses to run as root, which is what containers are; the page is our own.
  const args = process.getuid?.() === 0 ? ['--no-sandbox'] : [];
  if (trusted !== undefined) {
    const key = new X509Certificate(trusted).publicKey.export({ type: 'spki', format: 'der' });
    args.push(`--ignore-certificate-errors-spki-list=${createHash('sha256').update(key).digest('base64')}`);
  }
  return await puppeteer.launch({ ...common, browser: 'chrome', executablePath, args });
}

/** A page whose console.log goes to stdout line by line, and its other output to stderr. */
export async function newPage(browser) {
  const page = await browser.newPage();
  page.on('console', (message) => (message.type() === 'log' ? console.log : console.error)(message.text()));
  page.on('pageerror', (error) => console.error(error));
  return page;
}

/** Serves what `answer(path)` gives, `[body, type]`, on a port of its own; what it throws is a 404. */
export async function serve(answer, headers = {}) {
  const server = createServer((request, response) => {
    answer(new URL(request.url, 'http://page').pathname).then(
      ([body, type]) => response.writeHead(200, { ...headers, 'content-type': type }).end(body),
      (error) => response.writeHead(404, { 'content-type': 'text/plain' }).end(String(error)),
    );
  });
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
  return { origin: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}

/** A file below a folder, as `serve` wants it. */
export async function file(folder, path) {
  const found = resolve(folder, `.${decodeURIComponent(path)}`);
  if (!found.startsWith(folder + sep)) throw new Error('outside of the project');
  return [await readFile(found), TYPES[extname(found)] ?? 'application/octet-stream'];
}

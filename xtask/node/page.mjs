// Runs one module in a page of headless Chromium, as a user of the installed package would write it.
//
//   node page.mjs PROJECT MODULE
//
// PROJECT is a folder with node_modules; every package in it can be imported by name, without a bundler. MODULE lies
// below the working directory, whose files the page finds under /page/. It exports a default async function, which gets
// the VALKYRIE_… variables of the environment as an object. What the page prints with console.log goes to stdout line
// by line, its other output to stderr. Exit code: 0 when the function returns, 1 when it throws. VALKYRIE_CHROMIUM
// names the browser (default: /usr/bin/chromium).
import { readFile, readdir } from 'node:fs/promises';
import { createServer } from 'node:http';
import { extname, join, relative, resolve, sep } from 'node:path';
import { chromium } from 'playwright-core';

const TYPES = {
  '.css': 'text/css',
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm',
};

const [project, module] = process.argv.slice(2).map((path) => resolve(path));
if (!module) {
  console.error('usage: node page.mjs PROJECT MODULE');
  process.exit(2);
}

/** What a page needs to import each package by its name: name → URL, subpaths included. */
async function importMap() {
  const modules = join(project, 'node_modules');
  const imports = {};
  for (const name of (await readdir(modules)).filter((name) => !name.startsWith('.'))) {
    const { exports, module, main } = JSON.parse(await readFile(join(modules, name, 'package.json'), 'utf8'));
    imports[`${name}/`] = `/node_modules/${name}/`;
    const entry = target(exports?.['.'] ?? exports) ?? module ?? main;
    if (entry) imports[name] = new URL(entry, `http://page/node_modules/${name}/`).pathname;
  }
  return { imports };
}

/** The file that a browser takes from a conditional export. */
function target(entry) {
  if (typeof entry !== 'object' || entry === null) return entry;
  for (const condition of ['browser', 'import', 'default']) {
    if (condition in entry) return target(entry[condition]);
  }
  return undefined;
}

async function answer(path) {
  if (path === '/') {
    const map = JSON.stringify(await importMap());
    const page = `<!doctype html><link rel="icon" href="data:,"><script type="importmap">${map}</script>`;
    return [page, 'text/html'];
  }
  const [folder, inside] = path.startsWith('/page/') ? [process.cwd(), path.slice(6)] : [project, path.slice(1)];
  const file = resolve(folder, decodeURIComponent(inside));
  if (!file.startsWith(folder + sep)) throw new Error('outside of the project');
  return [await readFile(file), TYPES[extname(file)] ?? 'application/octet-stream'];
}

const server = createServer((request, response) => {
  answer(new URL(request.url, 'http://page').pathname).then(
    ([body, type]) => response.writeHead(200, { 'content-type': type }).end(body),
    (error) => response.writeHead(404, { 'content-type': 'text/plain' }).end(String(error)),
  );
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));

const browser = await chromium.launch({
  executablePath: process.env.VALKYRIE_CHROMIUM ?? '/usr/bin/chromium',
  // Chromium's sandbox refuses to run as root, which is what containers are; the page is our own.
  args: process.getuid?.() === 0 ? ['--no-sandbox'] : [],
});
let code = 0;
try {
  const page = await browser.newPage();
  page.on('console', (message) => (message.type() === 'log' ? console.log : console.error)(message.text()));
  page.on('pageerror', (error) => console.error(error));
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith('VALKYRIE_')));
  await page.evaluate(
    async ({ url, environment }) => (await import(url)).default(environment),
    { url: `/page/${relative(process.cwd(), module)}`, environment },
  );
} catch (error) {
  console.error(error);
  code = 1;
} finally {
  await browser.close();
  server.close();
}
process.exitCode = code;

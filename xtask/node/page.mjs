// Runs one module in a page of a headless browser, as a user of the installed package would write it.
//
//   node page.mjs BROWSER PROJECT MODULE
//
// BROWSER is chromium or firefox. PROJECT is a folder with node_modules; every package in it can be imported by name,
// without a bundler. MODULE lies below the working directory, whose files the page finds under /page/. It exports a
// default async function, which gets the VALKYRIE_… variables of the environment as an object. What the page prints with
// console.log goes to stdout line by line, its other output to stderr. Exit code: 0 when the function returns, 1 when it
// throws. `await server('start')` starts a program of the page's own, VALKYRIE_TEST_SERVER, always at the same port, and
// gives its endpoint; `await server('stop')` cuts it off.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, readdir, rm } from 'node:fs/promises';
import { join, relative, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { file, launch, newPage, serve } from './browser.mjs';

const [name, ...paths] = process.argv.slice(2);
const [project, module] = paths.map((path) => resolve(path));
if (!module) {
  console.error('usage: node page.mjs BROWSER PROJECT MODULE');
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
    for (const [subpath, entry] of Object.entries(exports ?? {})) {
      const at = target(entry);
      if (subpath.startsWith('./') && at) {
        imports[`${name}${subpath.slice(1)}`] = new URL(at, `http://page/node_modules/${name}/`).pathname;
      }
    }
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
  return path.startsWith('/page/') ? await file(process.cwd(), path.slice(5)) : await file(project, path);
}

let child;
let left = [];
let address = '127.0.0.1:0';

async function server(what) {
  if (what === 'stop') {
    child.kill('SIGKILL');
    await once(child, 'exit');
    // It had no time to take them away.
    await Promise.all(left.map((path) => rm(path, { force: true })));
    return undefined;
  }
  const env = { ...process.env, VALKYRIE_CONFORMANCE_BIND: address };
  child = spawn(process.env.VALKYRIE_TEST_SERVER, { env, stdio: ['pipe', 'pipe', 'inherit'] });
  const ended = once(child, 'exit').then(([code]) => {
    throw new Error(`${process.env.VALKYRIE_TEST_SERVER} at ${address} ended with ${code} and no endpoint`);
  });
  const [line] = await Promise.race([once(createInterface(child.stdout), 'line'), ended]);
  ended.catch(() => undefined);
  const { ws, unix, certificates } = JSON.parse(line);
  left = [unix.slice('unix://'.length), certificates];
  address = new URL(ws).host;
  return ws;
}

const pages = await serve(answer);
// A page reads no file of the machine's: it gets the text.
const { VALKYRIE_CONFORMANCE_CERTIFICATES: certificates, VALKYRIE_CONFORMANCE_ENDPOINT: endpoint } = process.env;
const trusted = certificates && (await readFile(certificates, 'utf8'));
const browser = await launch(name, endpoint?.startsWith('wss:') ? trusted : undefined);
try {
  const page = await newPage(browser);
  await page.exposeFunction('server', server);
  await page.goto(pages.origin);
  const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith('VALKYRIE_')));
  if (trusted) environment.VALKYRIE_CONFORMANCE_CERTIFICATES = trusted;
  await page.evaluate(
    async ({ url, environment }) => (await import(url)).default(environment),
    { url: `/page/${relative(process.cwd(), module)}`, environment },
  );
} catch (error) {
  console.error(error);
  process.exitCode = 1;
} finally {
  await browser.close();
  pages.close();
  if (child && child.exitCode === null && child.signalCode === null) {
    // The end of its standard input is what ends it well.
    child.stdin.end();
    await once(child, 'exit');
  }
}

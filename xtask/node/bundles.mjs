// Builds wasm/test/app with each bundler, and without any, over the installed package, and opens what came out in each
// browser.
//
//   node bundles.mjs PROJECT NODE_PROJECT APP BROWSER…
//
// PROJECT is the folder where the package was installed, NODE_PROJECT the one of `valkyrie-sdk`, whose `browser` condition
// leads a bundler to it; the sites are left in PROJECT/sites. VALKYRIE_CONFORMANCE_ENDPOINT names the server that the page
// calls. Prints a line for each site in each browser. Exit code: 0 when every page and its worker was told what it should
// be.
import { cp, mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { build as esbuild } from 'esbuild';
import { build as vite, createServer as viteServer } from 'vite';
import webpack from 'webpack';
import { file, launch, newPage, serve } from './browser.mjs';

const PACKAGE = 'valkyrie-sdk-web';
const WASM = `${PACKAGE}/pkg/valkyrie_bg.wasm`;
const EXPECTED = JSON.stringify([
  ['Hello', 'one', 'two'],
  ['Hello', 'one', 'two'],
]);

const [project, nodeProject, source] = process.argv.slice(2, 5).map((path) => resolve(path));
const browsers = process.argv.slice(5);
const [app, sites, modules] = ['app', 'sites', 'node_modules'].map((name) => join(project, name));

// What each gets is what its users write: nothing that names the package, unless the README says so.
const builds = {
  async plain(site) {
    await cp(app, site, { recursive: true });
    await cp(join(modules, PACKAGE), join(site, PACKAGE), { recursive: true });
    const hello = await readFile(join(app, 'hello.js'), 'utf8');
    await writeFile(join(site, 'hello.js'), hello.replace(`'${PACKAGE}'`, `'./${PACKAGE}/index.js'`));
  },

  async vite(site, root = app) {
    await vite({ root, logLevel: 'warn', worker: { format: 'es' }, build: { outDir: site, emptyOutDir: true } });
  },

  async webpack(site, context = app) {
    const output = { path: site, filename: 'app.js' };
    // The README says that it hints at the module's size.
    const settings = { mode: 'production', context, entry: './app.js', output, performance: { hints: false } };
    const stats = await new Promise((done, failed) =>
      webpack(settings, (error, stats) => (error ? failed(error) : done(stats))),
    );
    if (stats.hasErrors() || stats.hasWarnings()) throw new Error(stats.toString());
    // Its output is a classic script.
    const html = await readFile(join(context, 'index.html'), 'utf8');
    await writeFile(join(site, 'index.html'), html.replace('type="module"', 'defer'));
  },

  // esbuild leaves `new URL(…, import.meta.url)` as it is: the module lies beside the bundle.
  async esbuild(site, absWorkingDir = app) {
    await bundle(site, { absWorkingDir });
    await cp(join(modules, WASM), join(site, 'valkyrie_bg.wasm'));
  },

  // Or its loader copies the module, and load() is told where to.
  async 'esbuild-loader'(site) {
    const absWorkingDir = await changed('app-loader', (hello) =>
      hello
        .replace('{ connect }', '{ connect, load }')
        .replace('\n', `\nimport module from '${WASM}';\n`)
        .replace('await connect', 'await (load(new URL(module, import.meta.url)), connect)'),
    );
    await bundle(site, { absWorkingDir, loader: { '.wasm': 'file' } });
  },
};

/** The app with another hello.js. */
async function changed(name, change) {
  const folder = join(project, name);
  await rm(folder, { recursive: true, force: true });
  await cp(app, folder, { recursive: true });
  await writeFile(join(folder, 'hello.js'), change(await readFile(join(app, 'hello.js'), 'utf8')));
  return folder;
}

async function bundle(site, more) {
  // Of a year before top-level await, so that esbuild refuses one.
  const settings = { bundle: true, format: 'esm', target: 'es2021', logLevel: 'warning', outdir: site };
  await esbuild({ entryPoints: ['app.js', 'worker.js'], ...settings, ...more });
  await cp(join(app, 'index.html'), join(site, 'index.html'));
}

for (const folder of [app, sites]) await rm(folder, { recursive: true, force: true });
await cp(source, app, { recursive: true });
// The same app with the package for Node and for pages.
const both = await changed('app-both', (hello) => hello.replace(`'${PACKAGE}'`, "'valkyrie-sdk'"));
await cp(join(nodeProject, 'node_modules/valkyrie-sdk'), join(both, 'node_modules/valkyrie-sdk'), { recursive: true });
for (const name of ['vite', 'webpack', 'esbuild']) builds[`${name}, valkyrie-sdk`] = (site) => builds[name](site, both);
const pages = [];
for (const [name, build] of Object.entries(builds)) {
  const site = join(sites, name);
  await mkdir(site, { recursive: true });
  await build(site);
  const files = await readdir(site, { recursive: true });
  if (!files.some((file) => file.endsWith('.wasm'))) throw new Error(`${name} left the module out`);
  pages.push([name, await serve((path) => file(site, path === '/' ? '/index.html' : path))]);
}
// What people look at while they write: Vite serves the sources, and bundles packages by other rules than a build.
const dev = await viteServer({ root: app, logLevel: 'warn', server: { host: '127.0.0.1' } });
await dev.listen();
pages.push(['vite-dev', { origin: dev.resolvedUrls.local[0], close: () => dev.close() }]);

for (const name of browsers) {
  const browser = await launch(name);
  try {
    for (const [site, { origin }] of pages) {
      const page = await newPage(browser);
      const url = new URL(origin);
      url.searchParams.set('endpoint', process.env.VALKYRIE_CONFORMANCE_ENDPOINT);
      await page.goto(url.href);
      const said = await page.waitForFunction(() => document.documentElement.dataset.said).then((said) => said.jsonValue());
      if (said !== EXPECTED) {
        console.error(`not ok ${name}: ${site}: ${said}`);
        process.exitCode = 1;
      } else console.log(`ok ${name}: ${site}`);
      await page.close();
    }
  } finally {
    await browser.close();
  }
}
for (const [, page] of pages) await page.close();

// The packages of the native part: one for each platform, and what is said where none fits.
import assert from 'node:assert/strict';
import { readFileSync, readdirSync } from 'node:fs';
import { copyFile, mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { runNode } from './server.mjs';

const require = createRequire(import.meta.url);
const ours = require('valkyrie-sdk/package.json');

// Loads the package after `prelude` and prints what it says.
const load = async (prelude, env) => {
  const program = `${prelude}
    try { require('valkyrie-sdk'); console.log('loaded'); }
    catch (error) { console.log(error.code + ': ' + error.message); }`;
  return (await runNode(['--eval', program], env)).stdout;
};
// A process that is elsewhere, as far as the package can see.
const elsewhere = (platform, arch, maps) => `
  const fs = require('node:fs');
  const { readFileSync } = fs;
  fs.readFileSync = (path, ...rest) => {
    if (path !== '/proc/self/maps') return readFileSync(path, ...rest);
    ${maps === undefined ? "throw new Error('no /proc');" : `return ${JSON.stringify(maps)};`}
  };
  Object.defineProperty(process, 'platform', { value: '${platform}' });
  Object.defineProperty(process, 'arch', { value: '${arch}' });`;
const GLIBC = '7f00-7f01 r-xp 0 0 1 /usr/lib64/ld-linux-x86-64.so.2\n';
const MUSL = '7f00-7f01 r-xp 0 0 1 /lib/ld-musl-x86_64.so.1\n';

test('the manifests, the optional dependencies and what is looked for are the same platforms', async () => {
  const folders = readdirSync(new URL('../npm', import.meta.url)).sort();
  assert.deepEqual(
    ours.optionalDependencies,
    Object.fromEntries(folders.map((folder) => [`valkyrie-sdk-${folder}`, ours.version])),
  );
  for (const folder of folders) {
    const manifest = JSON.parse(readFileSync(new URL(`../npm/${folder}/package.json`, import.meta.url)));
    const [os, cpu, abi] = folder.split('-');
    assert.deepEqual(
      { ...manifest, description: undefined },
      {
        name: `valkyrie-sdk-${folder}`,
        version: ours.version,
        description: undefined,
        license: ours.license,
        main: 'valkyrie.node',
        files: ['valkyrie.node', 'sbom.cdx.json'],
        os: [os],
        cpu: [cpu],
        ...(os === 'linux' ? { libc: [{ gnu: 'glibc', musl: 'musl' }[abi]] } : {}),
        engines: ours.engines,
      },
    );
    // Here only one is installed; each of the others is looked for on its own platform.
    const maps = abi === 'musl' ? MUSL : GLIBC;
    const said = await load(elsewhere(os, cpu, maps));
    if (folder === 'linux-x64-gnu') assert.equal(said, 'loaded\n');
    else
      assert.match(
        said,
        new RegExp(`^VALKYRIE_NATIVE_MISSING: .*needs the package valkyrie-sdk-${folder} .*npm install valkyrie-sdk-${folder}@`),
      );
  }
});

test('the C library is the one that Node runs on, with and without /proc', async () => {
  assert.equal(await load(elsewhere('linux', 'x64', GLIBC)), 'loaded\n');
  assert.match(await load(elsewhere('linux', 'x64', MUSL)), /needs the package valkyrie-sdk-linux-x64-musl/);
  assert.equal(await load(elsewhere('linux', 'x64')), 'loaded\n');
  const musl = `process.report.getReport = () => ({ header: {} });`;
  assert.match(await load(elsewhere('linux', 'x64') + musl), /needs the package valkyrie-sdk-linux-x64-musl/);
});

test('where no binary fits, one sentence says for what there is one and what to do', async () => {
  const said = await load(elsewhere('sunos', 'x64'));
  assert.match(said, /^VALKYRIE_NATIVE_MISSING: .* has no native part for sunos-x64: there is one for darwin-arm64, /);
  assert.match(said, /linux-x64-gnu, .*VALKYRIE_NATIVE_PATH/);
  assert.match(await load(elsewhere('linux', 'riscv64', GLIBC)), /no native part for linux-riscv64-gnu/);
});

test('a binary that does not load is told with its cause; another one can be named', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'valkyrie-native-'));
  try {
    const broken = `
      const { Module } = require('node:module');
      const resolve = Module._resolveFilename;
      Module._resolveFilename = function (name, ...rest) {
        return name === 'valkyrie-sdk-linux-x64-gnu' ? '${folder}/broken.node' : resolve.call(this, name, ...rest);
      };
      require('node:fs').writeFileSync('${folder}/broken.node', 'no library');`;
    assert.match(await load(broken), /^VALKYRIE_NATIVE_MISSING: .*cannot load valkyrie-sdk-linux-x64-gnu: .*broken\.node/);
    assert.match(await load('', { VALKYRIE_NATIVE_PATH: '/no/such/valkyrie.node' }), /\/no\/such\/valkyrie\.node/);
    await copyFile(require.resolve('valkyrie-sdk-linux-x64-gnu'), join(folder, 'other.node'));
    assert.equal(await load('', { VALKYRIE_NATIVE_PATH: join(folder, 'other.node') }), 'loaded\n');
  } finally {
    await rm(folder, { recursive: true });
  }
});

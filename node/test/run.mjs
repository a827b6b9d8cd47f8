// Installs both packages into a fresh project and runs everything there: the tests of this folder, the types, the
// examples. node test/run.mjs [--keep] [--long]; it needs `cargo build -p valkyrie-node -p valkyrie-conformance` first.
// --long: with the counts of a soak, for minutes instead of seconds.
//
// With VALKYRIE_TEST_ENDPOINT, such as echo://core, the tests call that instead of a server of their own, and the types are
// left out. VALKYRIE_NODE_LIBRARY and VALKYRIE_TEST_SERVER name other builds; VALKYRIE_NODE_TOOLS another folder with typescript
// and @types/node installed. Without it the folder is xtask/node, filled by `npm ci` there.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { pack } from '../pack.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const root = resolve(here, '../..');
const library = resolve(process.env.VALKYRIE_NODE_LIBRARY ?? join(root, 'target/debug/libvalkyrie_node.so'));
const server = resolve(process.env.VALKYRIE_TEST_SERVER ?? join(root, 'target/debug/valkyrie-conformance-server'));
const tools = resolve(process.env.VALKYRIE_NODE_TOOLS ?? join(root, 'xtask/node'));

const long = process.argv.includes('--long');
const tests = ['client', 'layout', 'leaks', 'log', 'platform', 'process', 'worker'].map((name) => `test/${name}.test.mjs`);

const project = mkdtempSync(join(tmpdir(), 'valkyrie-node-'));
const run = (command, ...args) =>
  execFileSync(command, args, {
    cwd: project,
    stdio: 'inherit',
    env: { ...process.env, VALKYRIE_TEST_SERVER: server, VALKYRIE_TEST_LONG: long ? '1' : '' },
  });
try {
  writeFileSync(join(project, 'package.json'), '{ "private": true }\n');
  const tarballs = pack(library, project);
  run('npm', 'install', '--offline', '--no-audit', '--no-fund', '--loglevel=error', ...tarballs);
  cpSync(here, join(project, 'test'), { recursive: true });
  cpSync(join(root, 'bindings/bridge/tests/layout.json'), join(project, 'test/layout.json'));
  cpSync(join(root, 'node/npm'), join(project, 'npm'), { recursive: true });
  cpSync(join(root, 'examples/node'), join(project, 'examples'), { recursive: true });
  run(process.execPath, '--expose-gc', '--test', `--test-timeout=${long ? 3_600_000 : 120_000}`, '--test-reporter=spec', ...tests);

  if (!process.env.VALKYRIE_TEST_ENDPOINT) {
    if (!existsSync(join(tools, 'node_modules/typescript')))
      execFileSync('npm', ['ci'], { cwd: tools, stdio: 'inherit' });
    mkdirSync(join(project, 'node_modules/@types'));
    symlinkSync(join(tools, 'node_modules/@types/node'), join(project, 'node_modules/@types/node'));
    for (const configuration of ['node', 'bundler']) {
      run(join(tools, 'node_modules/.bin/tsc'), '-p', `test/types/tsconfig.${configuration}.json`);
    }
  }
} finally {
  if (!process.argv.includes('--keep')) rmSync(project, { recursive: true });
  else console.log(project);
}

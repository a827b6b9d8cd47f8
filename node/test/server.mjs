// A conformance server for a test file, and child processes that use the installed package.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { after, before } from 'node:test';
import { connect } from 'valkyrie-sdk';

/** The counts of `node test/run.mjs --long`, instead of those that fit into every run. */
export const LONG = process.env.VALKYRIE_TEST_LONG === '1';

/** The native part. */
export const native = createRequire(import.meta.url)('valkyrie-sdk-linux-x64-gnu');

/** Operations of this process, of all its environments, that the native part has accepted and not completed. */
export const { inFlight } = native;

/** Starts a server, which ends with this process. With VALKYRIE_TEST_ENDPOINT, that endpoint stands for each of its own. */
export async function startServer() {
  const given = process.env.VALKYRIE_TEST_ENDPOINT;
  if (given) return { tcp: given, unix: given, stop: async () => {} };
  const child = spawn(process.env.VALKYRIE_TEST_SERVER, { stdio: ['pipe', 'pipe', 'ignore'] });
  const [line] = await once(createInterface(child.stdout), 'line');
  const stop = async () => {
    child.stdin.end();
    await once(child, 'exit');
  };
  return { ...JSON.parse(line), stop };
}

/** A server and a client of it, given to `keep` before the first test of a file and ended after the last. */
export function served(keep) {
  let server;
  let client;
  before(async () => {
    server = await startServer();
    client = await connect(server.tcp);
    keep(server, client);
  });
  after(async () => {
    await client.close();
    await server.stop();
  });
}

/** Runs a program to its end: exit code, signal and output. A hang ends it with SIGKILL. */
export async function runNode(args, env = {}) {
  const child = spawn(process.execPath, args, {
    cwd: new URL('.', import.meta.url),
    env: { ...process.env, ...env },
    timeout: 60_000,
    killSignal: 'SIGKILL',
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text) => (stderr += text));
  const [code, signal] = await once(child, 'close');
  return { code, signal, stdout, stderr };
}

/** Runs the text of a module. */
export function runModule(source, ...args) {
  return runNode(['--input-type=module', '--eval', source, '--', ...args]);
}

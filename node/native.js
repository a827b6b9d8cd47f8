// Finds the native part: one package for each platform, of which npm installs the one that fits.
'use strict';

const { readFileSync } = require('node:fs');
const { version } = require('./package.json');

// Each name is a literal, so that bundlers see it.
const PLATFORMS = {
  'darwin-arm64': () => require('valkyrie-sdk-darwin-arm64'),
  'darwin-x64': () => require('valkyrie-sdk-darwin-x64'),
  'linux-arm64-gnu': () => require('valkyrie-sdk-linux-arm64-gnu'),
  'linux-arm64-musl': () => require('valkyrie-sdk-linux-arm64-musl'),
  'linux-x64-gnu': () => require('valkyrie-sdk-linux-x64-gnu'),
  'linux-x64-musl': () => require('valkyrie-sdk-linux-x64-musl'),
  'win32-x64-msvc': () => require('valkyrie-sdk-win32-x64-msvc'),
};

const BUILD =
  'Build the crate valkyrie-node on this machine and set VALKYRIE_NATIVE_PATH to the library, renamed to valkyrie.node.';

function platform() {
  const { platform, arch } = process;
  if (platform === 'linux') return `${platform}-${arch}-${libc()}`;
  return platform === 'win32' ? `${platform}-${arch}-msvc` : `${platform}-${arch}`;
}

// What Node itself runs on: its loader is mapped into the process. The system may have both.
function libc() {
  try {
    return readFileSync('/proc/self/maps', 'latin1').includes('/ld-musl-') ? 'musl' : 'gnu';
  } catch {
    // No /proc: the report knows, and takes its time.
    const { header } = process.report.getReport();
    return (header.glibcVersionRuntime ?? header.glibcVersionCompiler) === undefined ? 'musl' : 'gnu';
  }
}

function load() {
  const override = process.env.VALKYRIE_NATIVE_PATH;
  if (override) return require(override);
  const here = platform();
  if (!Object.hasOwn(PLATFORMS, here)) {
    throw missing(
      `valkyrie-sdk ${version} has no native part for ${here}: there is one for ${Object.keys(PLATFORMS).join(', ')}. ` +
        BUILD,
    );
  }
  try {
    return PLATFORMS[here]();
  } catch (cause) {
    const name = `valkyrie-sdk-${here}`;
    throw missing(
      cause.code === 'MODULE_NOT_FOUND'
        ? `valkyrie-sdk needs the package ${name} and it is not installed. Run "npm install ${name}@${version}", or ` +
            'delete node_modules and package-lock.json, which may come from another platform, and install again ' +
            'without --omit=optional.'
        : `valkyrie-sdk cannot load ${name}: ${cause.message}. ${BUILD}`,
      cause,
    );
  }
}

function missing(message, cause) {
  return Object.assign(new Error(message, { cause }), { code: 'VALKYRIE_NATIVE_MISSING' });
}

const native = load();
const built = native.version();
if (built.split(' ')[0] !== version) {
  throw new Error(
    `valkyrie-sdk is ${version} and its native part is ${built}: install the same version of both packages.`,
  );
}

// The layout of bindings/bridge/src/layout.rs that index.js reads.
const LAYOUT = 2;
const written = native.layoutVersion?.();
if (written !== LAYOUT) {
  throw new Error(
    `valkyrie-sdk reads completions in layout ${LAYOUT} and its native part writes layout ${written ?? 'unknown'}: ` +
      'install the same version of both packages.',
  );
}

module.exports = native;

// Finds the native part. Each path is a literal, so that bundlers see it.
'use strict';

const { version } = require('./package.json');

const platform = `${process.platform}-${process.arch}`;

function load() {
  const override = process.env.VALKYRIE_NATIVE_PATH;
  if (override) return require(override);
  if (platform === 'linux-x64') {
    try {
      return require('valkyrie-sdk-linux-x64-gnu');
    } catch (cause) {
      throw missing('valkyrie-sdk-linux-x64-gnu', cause);
    }
  }
  throw new Error(
    `valkyrie-sdk ${version} has no native part for ${platform}: there is one for linux-x64 (glibc). ` +
      'Build the crate valkyrie-node there and set VALKYRIE_NATIVE_PATH to the library, renamed to valkyrie.node.',
  );
}

function missing(name, cause) {
  const found = cause.code !== 'MODULE_NOT_FOUND';
  const error = new Error(
    found
      ? `valkyrie-sdk cannot load ${name} on ${platform}: ${cause.message}. It needs glibc; on musl (Alpine) build ` +
          'the crate valkyrie-node and set VALKYRIE_NATIVE_PATH to the library, renamed to valkyrie.node.'
      : `valkyrie-sdk needs the package ${name} on ${platform} and it is not installed. Run ` +
          `"npm install ${name}@${version}", or delete node_modules and package-lock.json and install again without ` +
          '--omit=optional.',
    { cause },
  );
  error.code = 'VALKYRIE_NATIVE_MISSING';
  return error;
}

const native = load();
const built = native.version();
if (built.split(' ')[0] !== version) {
  throw new Error(
    `valkyrie-sdk is ${version} and its native part is ${built}: install the same version of both packages.`,
  );
}

module.exports = native;

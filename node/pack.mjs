// Packs the two npm packages of a platform: node pack.mjs <native library> <folder for the tarballs> [its SBOM] [platform]
// The platform is a folder of npm/, linux-x64-gnu if none is given: the only one that our machines build and test.
// Prints the tarballs' paths, the one of the native part last.
import { execFileSync } from 'node:child_process';
import { copyFileSync, cpSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));

/** Packs both and gives the paths of the tarballs. */
export function pack(library, folder, sbom, platform = 'linux-x64-gnu') {
  const stage = mkdtempSync(join(tmpdir(), 'valkyrie-pack-'));
  try {
    cpSync(join(here, 'npm', platform), stage, { recursive: true });
    copyFileSync(library, join(stage, 'valkyrie.node'));
    if (sbom) copyFileSync(sbom, join(stage, 'sbom.cdx.json'));
    return [here, stage].map((source) => {
      const args = ['pack', '--json', '--pack-destination', resolve(folder), source];
      const [{ filename }] = JSON.parse(execFileSync('npm', args, { cwd: folder, encoding: 'utf8' }));
      return join(resolve(folder), filename);
    });
  } finally {
    rmSync(stage, { recursive: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  console.log(pack(...process.argv.slice(2, 6)).join('\n'));
}

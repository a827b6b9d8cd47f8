// Prints the version of the browser's package, for the check that every package has the same core.
import * as valkyrie from 'valkyrie-sdk-web';

export default async function () {
  await valkyrie.load();
  console.log(valkyrie.version);
}

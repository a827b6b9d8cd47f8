// A page as its author would write it, for every way to serve one: ../../../xtask/node/bundles.mjs builds and opens it.
// What the page and its worker were told goes where a driver finds it.
import { hello } from './hello.js';

function ask(worker, endpoint) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => resolve(data);
    worker.onerror = (event) => reject(new Error(event.message));
    worker.postMessage(endpoint);
  });
}

const endpoint = new URLSearchParams(location.search).get('endpoint');
const worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
Promise.all([hello(endpoint), ask(worker, endpoint)]).then(
  (said) => (document.documentElement.dataset.said = JSON.stringify(said)),
  (error) => (document.documentElement.dataset.said = `${error.stack ?? error}`),
);

import { hello } from './hello.js';

onmessage = ({ data: endpoint }) => hello(endpoint).then(postMessage, reportError);

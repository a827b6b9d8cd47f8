// The same module for `import`: one instance, however it is loaded.
import sdk from './index.js';

export const { Client, Metadata, StatusError, Stream, connect, setLogger, version } = sdk;

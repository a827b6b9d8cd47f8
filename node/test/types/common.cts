// The same package through require().
import sdk = require('valkyrie-sdk');

export const client: Promise<sdk.Client> = sdk.connect('tcp://127.0.0.1:1');

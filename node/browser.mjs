// What bundlers for browsers pick: a page has no sockets and no addons, so the WebAssembly build does the work.
export * from 'valkyrie-sdk-web';

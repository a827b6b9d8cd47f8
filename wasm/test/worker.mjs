// Makes calls where there is no window. A worker has no import map: the page says where the package is.
onmessage = async ({ data: { sdk, endpoint } }) => {
  const valkyrie = await import(sdk);
  const client = await valkyrie.connect(endpoint);
  const decoder = new TextDecoder();
  const hello = decoder.decode(await client.request('Hello from a worker'));
  const stream = client.open('/echo');
  for (const word of ['one', 'two']) await stream.send(word);
  await stream.halfClose();
  const words = [];
  for await (const message of stream) words.push(decoder.decode(message));
  const late = await client.call('/test/hang', 'worker', { timeoutMs: 20 }).catch((error) => error.code);
  await client.close();
  postMessage([hello, words, late, valkyrie.version]);
};

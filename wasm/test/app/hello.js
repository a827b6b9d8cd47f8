import { connect } from 'valkyrie-sdk-web';

/** A call and a stream: what they brought. */
export async function hello(endpoint) {
  const decoder = new TextDecoder();
  const client = await connect(endpoint);
  const reply = decoder.decode(await client.request('Hello'));
  const stream = client.open('/echo');
  for (const word of ['one', 'two']) await stream.send(word);
  await stream.halfClose();
  const words = [];
  for await (const message of stream) words.push(decoder.decode(message));
  await client.close();
  return [reply, ...words];
}

// The face of the package: checks arguments, keeps a promise per operation, and turns what the native part hands over
// into JavaScript values. It decides nothing about calls; the core does.
'use strict';

const { fileURLToPath } = require('node:url');
const { types } = require('node:util');
const native = require('./native.js');

const PRIORITIES = { critical: 0, normal: 1, bulk: 2 };
const IDEMPOTENT = 4; // beside the priority's number
const DRAWN = 8; // a key that the core draws
const SECURITIES = ['insecure', 'tls', 'mtls'];
const CONNECTIVITY = ['idle', 'connecting', 'ready', 'transient_failure', 'shutdown'];
const LEVELS = ['error', 'warn', 'info', 'debug'];
// Messages taken from the core at once; credit goes back to the server when they are taken.
const RECV_BATCH = 64;
const PRIVATE = Symbol('valkyrie-sdk');
const NO_OPTIONS = Object.freeze({});

/** Connects to an endpoint such as `tcp://localhost:8080`. */
async function connect(endpoint, options = {}) {
  if (typeof endpoint !== 'string') throw wrongType('endpoint', 'a string', endpoint);
  checkOptions(options);
  const timeoutMs = milliseconds(options.timeoutMs, 'timeoutMs');
  const connectTimeoutMs = milliseconds(options.connectTimeoutMs, 'connectTimeoutMs');
  const security = securityOf(options);
  const serviceConfig = serviceConfigOf(options.serviceConfig);
  const keepalive = keepaliveOf(options);
  let handle;
  const asking = {};
  try {
    await operation((slot) => {
      handle = loop().connect(slot, endpoint, timeoutMs, connectTimeoutMs, security, serviceConfig, ...keepalive);
      if (handle !== null && security.asksForTokens) answer(handle.id(), options.token, asking);
      return handle === null;
    }, checkSignal(options.signal));
  } catch (error) {
    handle?.free();
    if (error?.reason === 'CREDENTIALS_UNAVAILABLE' && asking.failure !== undefined) error.cause = asking.failure;
    throw traced(error);
  }
  return new Client(PRIVATE, handle, endpoint);
}

// Calls `source` whenever the core wants a token, until the client is closed or freed: it keeps nothing of it but its number.
async function answer(client, source, asking) {
  for (;;) {
    let request;
    try {
      await operation((slot) => {
        request = loop().tokenWanted(slot, client);
        return request === null;
      });
    } catch {
      return;
    }
    let token;
    let failure;
    try {
      token = await source();
      if (typeof token !== 'string') throw wrongType('what the token function gives', 'a string', token);
    } catch (error) {
      token = undefined;
      failure = error;
    }
    asking.failure = failure;
    const why = token === undefined ? `${failure?.message ?? failure}` : undefined;
    loop().tokenProvide(client, request, token, why);
  }
}

let logger = null;

/** Gives what happens to connections to `listener`, from that level up. */
function setLogger(listener, level = 'warn') {
  if (listener !== null && typeof listener !== 'function') throw wrongType('logger', 'a function or null', listener);
  if (typeof level !== 'string') throw wrongType('level', 'a string', level);
  const number = LEVELS.indexOf(level) + 1;
  if (number === 0) throw new RangeError(`level is '${level}', not 'error', 'warn', 'info' or 'debug'`);
  logger = listener;
  if (listener !== null || theLoop !== undefined) loop().log(listener === null ? 0 : number);
}

/** A client of one endpoint. Made by `connect`. */
class Client {
  #handle;
  #id;
  #endpoint;
  #stands;
  #breaks;
  #closed = false;

  constructor(token, handle, endpoint) {
    if (token !== PRIVATE) throw new TypeError('a Client is made by connect()');
    this.#handle = handle;
    const id = handle.id();
    this.#id = id;
    this.#stands = new Watch((slot, seen) => loop().connectivityOtherThan(slot, id, CONNECTIVITY.indexOf(seen)));
    this.#breaks = new Watch((slot, seen) => loop().breakersOtherThan(slot, id, seen));
    this.#endpoint = endpoint;
  }

  get endpoint() {
    return this.#endpoint;
  }

  get connectivity() {
    return CONNECTIVITY[loop().connectivity(this.#id)];
  }

  connectivityChanges() {
    return changes(this, this.#stands, undefined, (client) => {
      const state = client.connectivity;
      return { seen: state, value: state, last: state === 'shutdown' };
    });
  }

  async setServiceConfig(serviceConfig) {
    const config = serviceConfigOf(serviceConfig ?? null);
    await this.#ask((slot) => loop().setServiceConfig(slot, this.#id, config));
  }

  async breakers() {
    const { messages } = await this.#ask((slot) => loop().breakers(slot, this.#id));
    return breakersOf(messages[0]);
  }

  breakerChanges() {
    return changes(this, this.#breaks, 0, (client, answer) => {
      if (answer === undefined) return undefined;
      const [breakers, seen] = answer.messages;
      return { seen: Number(seen.toString()), value: breakersOf(breakers), last: false };
    });
  }

  async metrics() {
    const { messages } = await this.#ask((slot) => loop().metrics(slot, this.#id));
    return messages[0].toString();
  }

  async isolate(server, method) {
    await this.#isolate(server, method, true);
  }

  async restore(server, method) {
    await this.#isolate(server, method, false);
  }

  async #isolate(server, method, isolated) {
    if (typeof server !== 'string') throw wrongType('server', 'a string', server);
    if (method !== undefined) checkMethod(method);
    await this.#ask((slot) => loop().isolate(slot, this.#id, server, method, isolated));
  }

  async #ask(begin) {
    try {
      return await operation(begin);
    } catch (error) {
      throw traced(error);
    }
  }

  request(message, options) {
    return this.call('/echo', message, options);
  }

  call(method, message, options) {
    return this.#unary(method, message, options, true);
  }

  callWithResponse(method, message, options) {
    return this.#unary(method, message, options, false);
  }

  stream(method, message, options) {
    const bytes = toBytes(message);
    const stream = this.open(method, options);
    // Their failures are the stream's own, and come out of the next recv().
    stream.send(bytes).catch(ignore);
    stream.halfClose().catch(ignore);
    return stream;
  }

  open(method, options = {}) {
    checkMethod(method);
    checkOptions(options);
    const timeoutMs = milliseconds(options.timeoutMs, 'timeoutMs');
    const how = howOf(options);
    const [keys, values] = pairsOf(options.metadata);
    const key = keyOf(options.idempotencyKey);
    const signal = checkSignal(options.signal);
    let handle = null;
    let refused;
    if (signal?.aborted !== true) {
      refused = operation((slot) => {
        handle = this.#handle.open(slot, method, timeoutMs, how, keys, values, key);
        if (handle !== null) settle(slot);
        return handle === null;
      });
      refused.catch(ignore);
    }
    return new Stream(PRIVATE, handle, refused, signal, this);
  }

  async close() {
    if (this.#closed) return;
    await operation((slot) => this.#handle.close(slot));
    // The collector knows nothing of what the core keeps for it, and may come late.
    this.#closed = true;
    this.#handle.free();
  }

  async [Symbol.asyncDispose]() {
    await this.close();
  }

  // One function, so that a call costs two promises: the caller's and the operation's.
  async #unary(method, message, options = NO_OPTIONS, messageOnly) {
    checkMethod(method);
    checkOptions(options);
    const bytes = toBytes(message);
    const timeoutMs = milliseconds(options.timeoutMs, 'timeoutMs');
    const how = howOf(options);
    const { metadata } = options;
    const key = keyOf(options.idempotencyKey);
    const signal = checkSignal(options.signal);
    try {
      const response = await ((metadata === undefined && signal === undefined && key === undefined
        ? gather(this.#id, method, bytes, timeoutMs, how)
        : undefined) ?? this.#single(method, bytes, timeoutMs, how, metadata, key, signal));
      return messageOnly ? response.message : response;
    } catch (error) {
      throw traced(error);
    }
  }

  #single(method, bytes, timeoutMs, how, metadata, key, signal) {
    const [keys, values] = pairsOf(metadata);
    return operation((slot) => this.#handle.call(slot, method, bytes, timeoutMs, how, keys, values, key), signal);
  }
}

// What changes of a client, which is kept from being collected meanwhile. `look` reads what there is, perhaps out of what a wait of
// `watch` ended with: as what it is seen, its value, and whether it is the last.
function changes(client, watch, seen, look) {
  const leave = new Set(); // ends the waits of those next() that wait
  let over = false;
  const change = (resolve, reject) => {
    const wake = (answer, error) => {
      leave.delete(end);
      if (error === undefined) resolve(answer);
      else if (error.reason !== 'CLIENT_CLOSED') reject(traced(error));
      else {
        over = true;
        resolve();
      }
    };
    const forget = watch.add(seen, wake);
    const end = () => {
      forget();
      resolve();
    };
    leave.add(end);
  };
  return {
    next: async () => {
      let answer;
      while (!over) {
        const found = look(client, answer);
        if (found !== undefined && found.seen !== seen) {
          ({ seen, last: over } = found);
          return { value: found.value, done: false };
        }
        answer = await new Promise(change);
      }
      return { value: undefined, done: true };
    },
    return: async () => {
      over = true;
      for (const end of leave) end();
      leave.clear();
      return { value: undefined, done: true };
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}

// Who waits for something other than what was seen: one operation, which `begin` begins, for all that have seen the same. It keeps
// nothing of the client but its number.
class Watch {
  #begin;
  #waiting = new Map();

  constructor(begin) {
    this.#begin = begin;
  }

  // Calls `wake` with what the operation gives, or with the error that it ends with. Gives what ends the wait.
  add(seen, wake) {
    let waiting = this.#waiting.get(seen);
    if (waiting === undefined) {
      waiting = new Set();
      this.#waiting.set(seen, waiting);
      const done = (answer, error) => {
        this.#waiting.delete(seen);
        for (const wake of waiting) wake(answer, error);
      };
      operation((slot) => this.#begin(slot, seen)).then(done, (error) => done(undefined, error));
    }
    waiting.add(wake);
    return () => waiting.delete(wake);
  }
}

function breakersOf(bytes) {
  return JSON.parse(bytes.toString()).map(({ age_ms: ageMs, opens_for_ms: opensForMs, method, ...others }) => ({
    ...others,
    method: method ?? undefined,
    ageMs: ageMs ?? undefined,
    opensForMs: opensForMs ?? undefined,
  }));
}

/** A call with any number of messages each way. Made by `Client.open` and `Client.stream`. */
class Stream {
  #handle;
  #client; // keeps the client from being collected while the stream is in use
  #refused;
  #signal;
  #onAbort;
  #messages = [];
  #next = 0;
  #pull;
  #sent; // the last send that is under way: sends that nobody awaits keep their order
  #halfClosed = false;
  #over = false;
  #failure;
  #metadata = NO_METADATA;
  #trailers = NO_METADATA;

  constructor(token, handle, refused, signal, client) {
    if (token !== PRIVATE) throw new TypeError('a Stream is made by Client.open() or Client.stream()');
    this.#handle = handle;
    this.#client = client;
    this.#refused = refused;
    this.#signal = signal;
    if (signal !== undefined && handle !== null) {
      this.#onAbort = () => this.#handle.cancel();
      signal.addEventListener('abort', this.#onAbort, { once: true });
    }
  }

  get metadata() {
    return this.#metadata;
  }

  get trailers() {
    return this.#trailers;
  }

  async send(message) {
    let bytes = toBytes(message);
    // A message that has to wait is copied: its owner may change it as soon as this returns.
    if (this.#sent !== undefined) bytes = Buffer.from(bytes);
    await this.#inOrder((slot) => this.#handle.send(slot, bytes));
  }

  async halfClose() {
    await this.#inOrder((slot) => this.#handle.halfClose(slot));
    this.#halfClosed = true;
    this.#release();
  }

  async recv() {
    for (;;) {
      if (this.#next < this.#messages.length) return this.#messages[this.#next++];
      if (this.#failure !== undefined) throw this.#failure.error;
      if (this.#over) return null;
      // Callers that come while a batch is on its way wait for the same one.
      await (this.#pull ??= this.#fetch());
    }
  }

  cancel() {
    this.#handle?.cancel();
  }

  [Symbol.asyncIterator]() {
    return {
      next: async () => {
        const value = await this.recv();
        return value === null ? { value: undefined, done: true } : { value, done: false };
      },
      return: async () => {
        this.cancel();
        return { value: undefined, done: true };
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  async [Symbol.asyncDispose]() {
    this.cancel();
  }

  async #fetch() {
    try {
      const batch = await this.#operation((slot) => this.#handle.recv(slot, RECV_BATCH));
      this.#messages = batch.messages;
      this.#next = 0;
      if (batch.metadata !== undefined) {
        this.#metadata = batch.metadata;
        this.#trailers = batch.trailers;
        this.#over = true;
      }
    } catch (error) {
      if (error instanceof StatusError) {
        this.#metadata = error.metadata;
        this.#trailers = error.trailers;
      }
      this.#failure = { error };
      this.#over = true;
      this.#halfClosed = true;
    }
    this.#pull = undefined;
    this.#release();
  }

  #inOrder(start) {
    const run = () => this.#operation(start);
    const sent = this.#sent === undefined ? run() : this.#sent.then(run, run);
    this.#sent = sent;
    const done = () => {
      if (this.#sent === sent) this.#sent = undefined;
    };
    sent.then(done, done);
    return sent;
  }

  async #operation(start) {
    if (this.#signal?.aborted === true) throw this.#signal.reason;
    if (this.#handle === null) await this.#refused;
    try {
      return await operation(start);
    } catch (error) {
      throw this.#signal?.aborted === true ? this.#signal.reason : traced(error);
    }
  }

  // Both directions are done: nothing waits for the collector. What is called later gets the native part's answer.
  #release() {
    if (!this.#over || !this.#halfClosed) return;
    this.#handle?.free();
    this.#signal?.removeEventListener('abort', this.#onAbort);
  }
}

/** Key and value pairs in the order the peer gave them. */
class Metadata extends Array {
  // map() and the like give plain arrays.
  static get [Symbol.species]() {
    return Array;
  }

  get(key) {
    return this.find((pair) => pair[0] === key)?.[1];
  }

  getAll(key) {
    return this.filter((pair) => pair[0] === key).map((pair) => pair[1]);
  }
}

const NO_METADATA = Object.freeze(new Metadata());

/** How a call ended when it did not end with OK. */
class StatusError extends Error {
  constructor(message, facts) {
    super(message);
    Object.assign(this, facts);
  }

  get retryable() {
    return this.code === 'UNAVAILABLE';
  }
}
Object.defineProperty(StatusError.prototype, 'name', { value: 'StatusError', writable: true, configurable: true });

// Operations: JavaScript picks the slot, the native part completes it.

const slots = [];
const freeSlots = [];
let theLoop;

function loop() {
  return (theLoop ??= new native.Loop(drain));
}

// `start` submits under the slot it is given and says whether it was refused.
function operation(start, signal) {
  if (signal !== undefined) return abortable(start, signal);
  return new Promise((resolve, reject) => submit(start, { resolve, reject }));
}

function abortable(start, signal) {
  if (signal.aborted) return Promise.reject(signal.reason);
  return new Promise((resolve, reject) => {
    let slot;
    const abort = () => {
      // The slot stays taken until the core has let go of the call.
      loop().cancel(slot);
      reject(signal.reason);
    };
    signal.addEventListener('abort', abort, { once: true });
    const done = (settlePromise) => (value) => {
      signal.removeEventListener('abort', abort);
      settlePromise(value);
    };
    slot = submit(start, { resolve: done(resolve), reject: done(reject) });
  });
}

function submit(start, waiter) {
  flush();
  const slot = take(waiter);
  let refused;
  try {
    refused = start(slot);
  } catch (error) {
    settle(slot).reject(error);
    return slot;
  }
  if (refused) drain();
  return slot;
}

function take(waiter) {
  const slot = freeSlots.length > 0 ? freeSlots.pop() : slots.length;
  slots[slot] = waiter;
  return slot;
}

function settle(slot) {
  const waiter = slots[slot];
  slots[slot] = undefined;
  freeSlots.push(slot);
  return waiter;
}

function drain() {
  for (let more = true; more;) {
    const batch = loop().drain();
    if (batch === null) return;
    more = complete(new Batch(batch));
  }
}

// Unary calls with nothing but a small message are gathered, and cross together at the end of the turn: one crossing
// and one wake for all of them. bindings/node/src/gathered.rs has the layout.

const GATHERED_BYTES = 16 * 1024;
const GATHERED_MESSAGE_MAX = 1024;
// Each method that was called keeps a number; who calls ever new ones calls them one by one.
const METHODS_MAX = 256;
const methods = new Map();
let gathered = 0;
let gatheredBytes;
let gatheredWords;
let gatheredDoubles;
let waiter;

function deferred(resolve, reject) {
  waiter = { resolve, reject };
}

// The promise of a call that was gathered, undefined for one that has to cross alone.
function gather(client, method, message, timeoutMs, how) {
  if (message.length > GATHERED_MESSAGE_MAX) return undefined;
  const number = methods.get(method) ?? name(method);
  if (number === undefined) return undefined;
  const end = gathered + 32 + ((message.length + 7) & ~7);
  if (gathered === 0) {
    gatheredBytes ?? allocate();
    process.nextTick(flush);
  } else if (end > GATHERED_BYTES) {
    flush();
    return gather(client, method, message, timeoutMs, how);
  }
  const promise = new Promise(deferred);
  const word = gathered >> 2;
  gatheredWords[word] = take(waiter);
  gatheredWords[word + 1] = number;
  gatheredWords[word + 2] = how;
  gatheredWords[word + 3] = message.length;
  gatheredDoubles[(gathered >> 3) + 2] = client;
  gatheredDoubles[(gathered >> 3) + 3] = timeoutMs;
  gatheredBytes.set(message, gathered + 32);
  gathered = end;
  return promise;
}

function name(method) {
  if (methods.size === METHODS_MAX) return undefined;
  const number = loop().method(method);
  methods.set(method, number);
  return number;
}

function allocate() {
  const memory = new ArrayBuffer(GATHERED_BYTES);
  gatheredBytes = new Uint8Array(memory);
  gatheredWords = new Uint32Array(memory);
  gatheredDoubles = new Float64Array(memory);
}

function flush() {
  if (gathered === 0) return;
  const length = gathered;
  gathered = 0;
  if (loop().submit(gatheredBytes, length)) drain();
}

// ARCHITECTURE.md has the layout, bindings/bridge/src/layout.rs writes it.
function complete(batch) {
  for (let count = batch.count; count > 0; count--) {
    const slot = batch.word();
    const kind = batch.word();
    if (kind === 5) {
      // What a logger throws is not for a call to hear.
      for (const record of batch.records()) queueMicrotask(() => logger?.(record));
      continue;
    }
    const waiter = settle(slot);
    switch (kind) {
      case 0:
        waiter.resolve();
        break;
      case 1:
        waiter.resolve({ message: batch.bytes(), metadata: NO_METADATA, trailers: NO_METADATA });
        break;
      case 2:
        waiter.resolve({ message: batch.bytes(), metadata: batch.metadata(), trailers: batch.metadata() });
        break;
      case 3: {
        const messages = batch.list(() => batch.bytes());
        waiter.resolve(
          batch.word() === 1 ? { messages, metadata: batch.metadata(), trailers: batch.metadata() } : { messages },
        );
        break;
      }
      default:
        waiter.reject(batch.error());
    }
  }
  return batch.more;
}

class Batch {
  constructor(buffer) {
    const words = new Uint32Array(buffer.buffer, buffer.byteOffset, buffer.byteLength >>> 2);
    this.buffer = buffer;
    this.words = words;
    this.count = words[0];
    this.more = words[2] === 1;
    this.at = 3;
    this.offset = words[1] * 4;
  }

  word() {
    return this.words[this.at++];
  }

  bytes() {
    const start = this.offset;
    this.offset += this.word();
    return this.buffer.subarray(start, this.offset);
  }

  text() {
    const start = this.offset;
    this.offset += this.word();
    return this.buffer.toString('utf8', start, this.offset);
  }

  list(item) {
    return Array.from({ length: this.word() }, item);
  }

  metadata() {
    const count = this.word();
    if (count === 0) return NO_METADATA;
    const metadata = new Metadata();
    for (let i = 0; i < count; i++) {
      const key = this.text();
      metadata.push([key, key.endsWith('-bin') ? this.bytes() : this.text()]);
    }
    return metadata;
  }

  records() {
    return this.list(() => ({
      level: LEVELS[this.word() - 1],
      target: this.text(),
      message: this.text(),
      fields: Object.fromEntries(this.list(() => [this.text(), this.text()])),
    }));
  }

  error() {
    const number = this.word();
    const [code, reason, kind, message, timeline] = [this.text(), this.text(), this.text(), this.text(), this.text()];
    const pushback = this.word();
    return new StatusError(message, {
      code,
      number,
      reason,
      class: kind,
      timeline,
      pushbackMs: pushback === 0 ? undefined : pushback === 0xffffffff ? Infinity : pushback - 1,
      details: this.list(() => ({ type: this.text(), value: this.bytes() })),
      metadata: this.metadata(),
      trailers: this.metadata(),
    });
  }
}

// The core's errors are made while draining, where no caller is on the stack: what helps is where one awaits.
function traced(error) {
  if (error instanceof StatusError) Error.captureStackTrace(error, traced);
  return error;
}

// Arguments.

function toBytes(message) {
  if (typeof message === 'string') return Buffer.from(message);
  if (types.isUint8Array(message)) return message;
  throw wrongType('message', 'a string or a Uint8Array', message);
}

function checkMethod(method) {
  if (typeof method !== 'string') throw wrongType('method', 'a string', method);
}

function checkOptions(options) {
  if (typeof options !== 'object' || options === null) throw wrongType('options', 'an object', options);
}

function checkSignal(signal) {
  if (signal === undefined) return undefined;
  if (typeof signal?.aborted !== 'boolean' || typeof signal.addEventListener !== 'function') {
    throw wrongType('signal', 'an AbortSignal', signal);
  }
  return signal;
}

// NaN stands for "not given" from here to the native part, Infinity for "no limit".
function milliseconds(value, name) {
  if (value === undefined) return NaN;
  if (typeof value !== 'number') throw wrongType(name, 'a number', value);
  if (!(value >= 0)) throw new RangeError(`${name} is ${value}, not a number of milliseconds from 0`);
  return value;
}

// How long a server may be silent with calls and without, and between these how long its answer may take.
function keepaliveOf(options) {
  return ['keepaliveMs', 'keepaliveTimeoutMs', 'keepaliveIdleMs'].map((name) => milliseconds(options[name], name));
}

function securityOf(options) {
  const { identity, serverName, minSecurity, token } = options;
  if (identity !== undefined && (typeof identity !== 'object' || identity === null)) {
    throw wrongType('identity', 'an object { certificates, key }', identity);
  }
  if (serverName !== undefined && typeof serverName !== 'string') throw wrongType('serverName', 'a string', serverName);
  if (minSecurity !== undefined) {
    if (typeof minSecurity !== 'string') throw wrongType('minSecurity', 'a string', minSecurity);
    if (!SECURITIES.includes(minSecurity)) {
      throw new RangeError(`minSecurity is '${minSecurity}', not 'insecure', 'tls' or 'mtls'`);
    }
  }
  if (token !== undefined && typeof token !== 'string' && typeof token !== 'function') {
    throw wrongType('token', 'a string or a function that gives one', token);
  }
  return {
    trustedCertificates: pemOf(options.trustedCertificates, 'trustedCertificates'),
    systemRoots: flagOf(options.systemRoots, 'systemRoots'),
    revocationLists: pemOf(options.revocationLists, 'revocationLists'),
    identityCertificates: identity && pemOf(identity.certificates ?? null, 'identity.certificates'),
    identityKey: identity && pemOf(identity.key ?? null, 'identity.key'),
    serverName,
    sealed: flagOf(options.sealed, 'sealed'),
    minSecurity,
    token: typeof token === 'string' ? token : undefined,
    asksForTokens: typeof token === 'function',
  };
}

function serviceConfigOf(value) {
  if (value === undefined || typeof value === 'string') return value;
  if (typeof value !== 'object' || value === null) throw wrongType('serviceConfig', 'a string of JSON or an object', value);
  return `${JSON.stringify(value)}`;
}

// A string is PEM text, `{ file }` the path of a file of it.
function pemOf(value, name) {
  if (value === undefined) return undefined;
  if (typeof value === 'string') return { text: value };
  const file = value?.file;
  if (typeof file === 'string') return { file };
  if (file instanceof URL) return { file: fileURLToPath(file) };
  throw wrongType(name, 'a string of PEM text or { file: path }', value);
}

function flagOf(value, name) {
  if (value !== undefined && typeof value !== 'boolean') throw wrongType(name, 'a boolean', value);
  return value === true;
}

// What a call is sent as, in one number.
function howOf(options) {
  const idempotent = flagOf(options.idempotent, 'idempotent') ? IDEMPOTENT : 0;
  return priorityOf(options.priority) + idempotent + (options.idempotencyKey === true ? DRAWN : 0);
}

// The bytes of a key; undefined without one, and for one that the core draws.
function keyOf(value) {
  if (value === undefined || value === true) return undefined;
  if (typeof value === 'string' || types.isUint8Array(value)) return Buffer.from(value);
  throw wrongType('idempotencyKey', 'a string, a Uint8Array or true', value);
}

function priorityOf(value) {
  if (value === undefined) return PRIORITIES.normal;
  if (typeof value !== 'string') throw wrongType('priority', 'a string', value);
  if (!Object.hasOwn(PRIORITIES, value)) {
    throw new RangeError(`priority is '${value}', not 'critical', 'normal' or 'bulk'`);
  }
  return PRIORITIES[value];
}

function pairsOf(metadata) {
  if (metadata === undefined) return [undefined, undefined];
  if (typeof metadata !== 'object' || metadata === null) {
    throw wrongType('metadata', 'an object or an iterable of pairs', metadata);
  }
  const keys = [];
  const values = [];
  for (const pair of Symbol.iterator in metadata ? metadata : Object.entries(metadata)) {
    if (!Array.isArray(pair) || pair.length !== 2 || typeof pair[0] !== 'string') {
      throw wrongType('a metadata entry', 'a pair of a string and a value', pair);
    }
    const [key, value] = pair;
    if (typeof value !== 'string' && !types.isUint8Array(value)) {
      throw wrongType(`metadata value of ${key}`, 'a string or a Uint8Array', value);
    }
    keys.push(key);
    values.push(Buffer.from(value));
  }
  return [keys, values];
}

function wrongType(name, expected, value) {
  const actual =
    value === null ? 'null' : typeof value === 'object' ? (value.constructor?.name ?? 'object') : typeof value;
  return new TypeError(`${name} must be ${expected}, not ${actual}`);
}

function ignore() {}

module.exports = { Client, Metadata, StatusError, Stream, connect, setLogger, version: native.version() };

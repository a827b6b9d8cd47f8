// The face of the package: checks arguments, keeps a promise per operation, and turns what the WebAssembly part hands
// over into JavaScript values. It decides nothing about calls; the core does. Nothing is loaded before it is needed.

import { Batch, LAYOUT, LEVELS, Metadata, NO_METADATA, StatusError } from './layout.js';
import init, * as core from './pkg/valkyrie.js';

export { Metadata, StatusError };

const PRIORITIES = { critical: 0, normal: 1, bulk: 2 };
const IDEMPOTENT = 4; // beside the priority's number
const CONNECTIVITY = ['idle', 'connecting', 'ready', 'transient_failure', 'shutdown'];
// Messages taken from the core at once; credit goes back to the server when they are taken.
const RECV_BATCH = 64;
const PRIVATE = Symbol('valkyrie-sdk-web');

const encoder = new TextEncoder();

export let version = '';
let loading;

/** Loads the WebAssembly part. */
export function load(module) {
  loading ??= start(module).catch((error) => {
    loading = undefined;
    throw error;
  });
  return loading;
}

async function start(module) {
  await init(module === undefined ? undefined : { module_or_path: module });
  const written = core.layout_version?.();
  if (written !== LAYOUT) {
    const both = 'the files of two versions of valkyrie-sdk-web are mixed: deploy those of one';
    throw new Error(`index.js reads completions in layout ${LAYOUT}, the module writes layout ${written}; ${both}`);
  }
  core.start(() => queueMicrotask(turn), fail);
  core.log(level);
  loaded = true;
  version = core.version();
}

let logger = null;
let level = 0;
let loaded = false;

/** Gives what happens to connections to `listener`, from that level up. */
export function setLogger(listener, least = 'warn') {
  if (listener !== null && typeof listener !== 'function') throw wrongType('logger', 'a function or null', listener);
  if (typeof least !== 'string') throw wrongType('level', 'a string', least);
  const number = LEVELS.indexOf(least) + 1;
  if (number === 0) throw new RangeError(`level is '${least}', not 'error', 'warn', 'info' or 'debug'`);
  logger = listener;
  level = listener === null ? 0 : number;
  if (loaded) enter(core.log, level);
}

/** Connects to an endpoint such as `ws://localhost:8080`. */
export async function connect(endpoint, options = {}) {
  if (typeof endpoint !== 'string') throw wrongType('endpoint', 'a string', endpoint);
  checkOptions(options);
  const timeoutMs = milliseconds(options.timeoutMs, 'timeoutMs');
  const connectTimeoutMs = milliseconds(options.connectTimeoutMs, 'connectTimeoutMs');
  const sealed = sealedOf(options);
  const serviceConfig = serviceConfigOf(options.serviceConfig);
  const keepalive = keepaliveOf(options);
  const { token } = options;
  const asks = typeof token === 'function';
  if (token !== undefined && typeof token !== 'string' && !asks) {
    throw wrongType('token', 'a string or a function that gives one', token);
  }
  const signal = checkSignal(options.signal);
  signal?.throwIfAborted();
  await load();
  let id = 0;
  const asking = {};
  try {
    await operation((slot) => {
      const text = asks ? undefined : token;
      id = sealed
        ? core.connect_sealed(slot, endpoint, timeoutMs, connectTimeoutMs, text, asks, serviceConfig, ...keepalive, ...sealed)
        : core.connect(slot, endpoint, timeoutMs, connectTimeoutMs, text, asks, serviceConfig, ...keepalive);
      if (asks && id !== 0) answer(id, token, asking);
    }, signal);
  } catch (error) {
    free(core.client_free, id);
    if (error?.reason === 'CREDENTIALS_UNAVAILABLE' && asking.failure !== undefined) error.cause = asking.failure;
    throw traced(error);
  }
  return new Client(PRIVATE, id, endpoint);
}

// Calls `source` whenever the core wants a token, until the client is closed or freed: it keeps nothing of it but its number.
async function answer(client, source, asking) {
  for (;;) {
    let request;
    try {
      await operation((slot) => {
        request = slot;
        core.token_wanted(client, slot);
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
    enter(() => core.token_provide(client, request, token, why));
  }
}

// Whether this is `sealed.js`, which is this text over the module with TLS in it.
const SEALS = false;
// What only a sealed session reads: outside of one the browser decides whom it trusts and what it shows.
const OF_SEALED = { trustedCertificates: 'string', serverName: 'string', identity: 'object' };
const NOT_HERE = { systemRoots: true, revocationLists: true, minSecurity: true };

/** The arguments of a sealed session; undefined without one. */
function sealedOf(options) {
  const { trustedCertificates, serverName, identity } = options;
  const sealed = flagOf(options.sealed, 'sealed');
  for (const name in NOT_HERE) {
    if (options[name] !== undefined) throw new TypeError(`${name} is not for a page`);
  }
  for (const [name, type] of Object.entries(OF_SEALED)) {
    if (options[name] === undefined) continue;
    if (!sealed) throw new TypeError(`${name} is for sealed sessions in a page: its browser decides whom it trusts`);
    if (typeof options[name] !== type) throw wrongType(name, type === 'object' ? 'an object { certificates, key }' : 'a string', options[name]);
  }
  if (!sealed) return undefined;
  const { certificates, key } = identity ?? {};
  if (identity !== undefined && (typeof certificates !== 'string' || typeof key !== 'string')) {
    throw wrongType('identity', 'an object { certificates, key } of strings', identity);
  }
  if (!SEALS) {
    throw new TypeError("sealed sessions are in another module: import 'valkyrie-sdk-web/sealed'");
  }
  return [trustedCertificates, serverName, certificates, key];
}

/** A client of one endpoint. Made by `connect`. */
export class Client {
  #id;
  #endpoint;
  #stands;
  #breaks;

  constructor(token, id, endpoint) {
    if (token !== PRIVATE) throw new TypeError('a Client is made by connect()');
    this.#id = id;
    this.#endpoint = endpoint;
    this.#stands = new Watch((slot, seen) => core.connectivity_other_than(id, slot, CONNECTIVITY.indexOf(seen)));
    this.#breaks = new Watch((slot, seen) => core.breakers_other_than(id, slot, seen));
    clients.register(this, id, this);
  }

  get endpoint() {
    return this.#endpoint;
  }

  get connectivity() {
    return CONNECTIVITY[enter(core.connectivity, this.#id) ?? 4];
  }

  connectivityChanges() {
    return changes(this, this.#stands, undefined, (client) => {
      const state = client.connectivity;
      return { seen: state, value: state, last: state === 'shutdown' };
    });
  }

  async setServiceConfig(serviceConfig) {
    const config = serviceConfigOf(serviceConfig ?? null);
    await this.#ask((slot) => core.set_service_config(this.#id, slot, config));
  }

  async breakers() {
    const { messages } = await this.#ask((slot) => core.breakers(this.#id, slot));
    return breakersOf(messages[0]);
  }

  breakerChanges() {
    return changes(this, this.#breaks, 0, (client, answer) => {
      if (answer === undefined) return undefined;
      const [breakers, seen] = answer.messages;
      return { seen: Number(new TextDecoder().decode(seen)), value: breakersOf(breakers), last: false };
    });
  }

  async metrics() {
    throw new TypeError('metrics are not for a page: its module has no room for what counts them');
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
    await this.#ask((slot) => core.isolate(this.#id, slot, server, method, isolated));
  }

  async #ask(begin) {
    try {
      return await operation(begin, undefined, this);
    } catch (error) {
      throw traced(error);
    }
  }

  request(message, options) {
    return this.call('/echo', message, options);
  }

  async call(method, message, options) {
    return (await this.callWithResponse(method, message, options)).message;
  }

  async callWithResponse(method, message, options = {}) {
    checkMethod(method);
    checkOptions(options);
    const bytes = toBytes(message);
    const timeoutMs = milliseconds(options.timeoutMs, 'timeoutMs');
    const how = howOf(options);
    const metadata = packed(options.metadata);
    const key = keyOf(options.idempotencyKey);
    const signal = checkSignal(options.signal);
    try {
      return await operation(
        (slot) => core.call(this.#id, slot, method, bytes, timeoutMs, how, metadata, key),
        signal,
        this,
      );
    } catch (error) {
      throw traced(error);
    }
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
    const metadata = packed(options.metadata);
    const key = keyOf(options.idempotencyKey);
    const signal = checkSignal(options.signal);
    let id = 0;
    let refused;
    if (signal?.aborted !== true) {
      refused = operation((slot) => {
        id = core.open(this.#id, slot, method, timeoutMs, how, metadata, key);
        if (id !== 0) settle(slot);
      });
      refused.catch(ignore);
    }
    return new Stream(PRIVATE, id, refused, signal, this);
  }

  async close() {
    await operation((slot) => core.close(this.#id, slot), undefined, this);
    clients.unregister(this);
  }

  async [Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')]() {
    await this.close();
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
  return JSON.parse(new TextDecoder().decode(bytes)).map(({ age_ms: ageMs, opens_for_ms: opensForMs, method, ...others }) => ({
    ...others,
    method: method ?? undefined,
    ageMs: ageMs ?? undefined,
    opensForMs: opensForMs ?? undefined,
  }));
}

/** A call with any number of messages each way. Made by `Client.open` and `Client.stream`. */
export class Stream {
  #id;
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

  constructor(token, id, refused, signal, client) {
    if (token !== PRIVATE) throw new TypeError('a Stream is made by Client.open() or Client.stream()');
    this.#id = id;
    this.#client = client;
    this.#refused = refused;
    this.#signal = signal;
    if (id === 0) return;
    streams.register(this, id, this);
    if (signal !== undefined) {
      this.#onAbort = () => free(core.stream_cancel, id);
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
    if (this.#sent !== undefined && bytes === message) bytes = bytes.slice();
    await this.#inOrder((slot) => core.send(this.#id, slot, bytes));
  }

  async halfClose() {
    await this.#inOrder((slot) => core.half_close(this.#id, slot));
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
    free(core.stream_cancel, this.#id);
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

  async [Symbol.asyncDispose ?? Symbol.for('Symbol.asyncDispose')]() {
    this.cancel();
  }

  async #fetch() {
    try {
      const batch = await this.#operation((slot) => core.recv(this.#id, slot, RECV_BATCH));
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

  #inOrder(begin) {
    const run = () => this.#operation(begin);
    const sent = this.#sent === undefined ? run() : this.#sent.then(run, run);
    this.#sent = sent;
    const done = () => {
      if (this.#sent === sent) this.#sent = undefined;
    };
    sent.then(done, done);
    return sent;
  }

  async #operation(begin) {
    if (this.#signal?.aborted === true) throw this.#signal.reason;
    if (this.#id === 0) await this.#refused;
    try {
      return await operation(begin, undefined, this);
    } catch (error) {
      throw this.#signal?.aborted === true ? this.#signal.reason : traced(error);
    }
  }

  // Both directions are done: nothing waits for the collector. What is called later gets the core's answer.
  #release() {
    if (!this.#over || !this.#halfClosed || this.#id === 0) return;
    streams.unregister(this);
    free(core.stream_free, this.#id);
    this.#signal?.removeEventListener('abort', this.#onAbort);
  }
}

// What the collector finds is given up in the core.
const clients = new FinalizationRegistry((id) => free(core.client_free, id));
const streams = new FinalizationRegistry((id) => free(core.stream_free, id));

// Operations: JavaScript picks the slot, the core completes it.

const slots = [];
const freeSlots = [];
let failure; // why the core must not be entered again

// `begin` submits under the slot it is given. `owner` is kept from the collector until the operation has ended.
function operation(begin, signal, owner) {
  if (signal !== undefined) return abortable(begin, signal, owner);
  return new Promise((resolve, reject) => submit(begin, { resolve, reject, owner }));
}

function abortable(begin, signal, owner) {
  if (signal.aborted) return Promise.reject(signal.reason);
  return new Promise((resolve, reject) => {
    let slot;
    const abort = () => {
      // The slot stays taken until the core has let go of the call.
      enter(core.cancel, slot);
      reject(signal.reason);
    };
    signal.addEventListener('abort', abort, { once: true });
    const done = (settlePromise) => (value) => {
      signal.removeEventListener('abort', abort);
      settlePromise(value);
    };
    slot = submit(begin, { resolve: done(resolve), reject: done(reject), owner });
  });
}

function submit(begin, waiter) {
  const slot = freeSlots.length > 0 ? freeSlots.pop() : slots.length;
  slots[slot] = waiter;
  enter(begin, slot);
  return slot;
}

function settle(slot) {
  const waiter = slots[slot];
  slots[slot] = undefined;
  freeSlots.push(slot);
  return waiter;
}

function free(release, id) {
  if (id !== 0) enter(release, id);
}

// Every way into the core leads through here. What it throws is a trap: it has lost its footing, and must not hold up
// the promises that wait for it.
function enter(entry, argument) {
  try {
    if (failure === undefined) return entry(argument);
    queueMicrotask(rejectAll);
  } catch (error) {
    fail(error);
  }
  return undefined;
}

function fail(error) {
  failure ??= `the core failed: ${error?.message ?? error}; load the page again`;
  queueMicrotask(rejectAll);
}

function rejectAll() {
  for (const slot of slots.keys()) {
    if (slots[slot] === undefined) continue;
    const facts = { code: 'INTERNAL', number: 13, reason: 'INTERNAL', class: 'server', timeline: '', pushbackMs: undefined };
    settle(slot).reject(
      new StatusError(failure, { ...facts, details: [], metadata: NO_METADATA, trailers: NO_METADATA }),
    );
  }
}

function turn() {
  for (let more = true; more; ) {
    const batch = enter(core.turn);
    if (batch === undefined) return;
    const completions = new Batch(batch);
    completions.read(resolve, reject, log);
    more = completions.more;
  }
}

const resolve = (slot, value) => settle(slot).resolve(value);
const reject = (slot, error) => settle(slot).reject(error);

function log(records) {
  // What a logger throws is not for a call to hear.
  for (const record of records) queueMicrotask(() => logger?.(record));
}

// The core's errors are made in a turn, where no caller is on the stack: what helps is where one awaits.
function traced(error) {
  if (error instanceof StatusError) Error.captureStackTrace?.(error, traced);
  return error;
}

// Arguments.

// Not instanceof: an array may come from another frame.
function isBytes(value) {
  return Object.prototype.toString.call(value) === '[object Uint8Array]';
}

function toBytes(message) {
  if (typeof message === 'string') return encoder.encode(message);
  if (isBytes(message)) return message;
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

// NaN stands for "not given" from here to the core, Infinity for "no limit".
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

function serviceConfigOf(value) {
  if (value === undefined || typeof value === 'string') return value;
  if (typeof value !== 'object' || value === null) throw wrongType('serviceConfig', 'a string of JSON or an object', value);
  return `${JSON.stringify(value)}`;
}

function flagOf(value, name) {
  if (value !== undefined && typeof value !== 'boolean') throw wrongType(name, 'a boolean', value);
  return value === true;
}

// What a call is sent as, in one number.
function howOf(options) {
  return priorityOf(options.priority) + (flagOf(options.idempotent, 'idempotent') ? IDEMPOTENT : 0);
}

// The bytes of a key, drawn for `true`: a page's random numbers are its own.
function keyOf(value) {
  if (value === undefined) return undefined;
  if (value === true) return crypto.getRandomValues(new Uint8Array(16));
  if (typeof value === 'string') return encoder.encode(value);
  if (isBytes(value)) return value;
  throw wrongType('idempotencyKey', 'a string, a Uint8Array or true', value);
}

function priorityOf(value = 'normal') {
  if (typeof value !== 'string') throw wrongType('priority', 'a string', value);
  if (!Object.hasOwn(PRIORITIES, value)) {
    throw new RangeError(`priority is '${value}', not 'critical', 'normal' or 'bulk'`);
  }
  return PRIORITIES[value];
}

// For each entry the lengths of key and value, then both.
function packed(metadata) {
  if (metadata === undefined) return undefined;
  if (typeof metadata !== 'object' || metadata === null) {
    throw wrongType('metadata', 'an object or an iterable of pairs', metadata);
  }
  const entries = [];
  let length = 0;
  for (const pair of Symbol.iterator in metadata ? metadata : Object.entries(metadata)) {
    if (!Array.isArray(pair) || pair.length !== 2 || typeof pair[0] !== 'string') {
      throw wrongType('a metadata entry', 'a pair of a string and a value', pair);
    }
    const [key, value] = pair;
    if (typeof value !== 'string' && !isBytes(value)) {
      throw wrongType(`metadata value of ${key}`, 'a string or a Uint8Array', value);
    }
    const entry = [encoder.encode(key), typeof value === 'string' ? encoder.encode(value) : value];
    length += 8 + entry[0].length + entry[1].length;
    entries.push(entry);
  }
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const [key, value] of entries) {
    view.setUint32(at, key.length, true);
    view.setUint32(at + 4, value.length, true);
    bytes.set(key, at + 8);
    bytes.set(value, at + 8 + key.length);
    at += 8 + key.length + value.length;
  }
  return bytes;
}

function wrongType(name, expected, value) {
  const actual =
    value === null ? 'null' : typeof value === 'object' ? (value.constructor?.name ?? 'object') : typeof value;
  return new TypeError(`${name} must be ${expected}, not ${actual}`);
}

function ignore() {}

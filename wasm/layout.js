// Reads the layout of completions that ARCHITECTURE.md shows and bindings/bridge/src/layout.rs writes, and has the classes
// of what is in it.

/** The version of the layout that is read here. */
export const LAYOUT = 2;
export const LEVELS = ['error', 'warn', 'info', 'debug'];

const decoder = new TextDecoder();

/** Key and value pairs in the order the peer gave them. */
export class Metadata extends Array {
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

export const NO_METADATA = Object.freeze(new Metadata());

/** How a call ended when it did not end with OK. */
export class StatusError extends Error {
  constructor(message, facts) {
    super(message);
    Object.assign(this, facts);
  }

  get retryable() {
    return this.code === 'UNAVAILABLE';
  }
}
Object.defineProperty(StatusError.prototype, 'name', { value: 'StatusError', writable: true, configurable: true });

/** A batch of completions. */
export class Batch {
  constructor(buffer) {
    const words = new Uint32Array(buffer.buffer, buffer.byteOffset, buffer.byteLength >>> 2);
    this.buffer = buffer;
    this.words = words;
    this.count = words[0];
    this.more = words[2] === 1;
    this.at = 3;
    this.offset = words[1] * 4;
  }

  /** Hands each completion to one of these, in order. */
  read(resolve, reject, log) {
    for (let count = this.count; count > 0; count--) {
      const slot = this.word();
      const kind = this.word();
      if (kind === 5) log(this.records());
      else if (kind === 4) reject(slot, this.error());
      else resolve(slot, this.value(kind));
    }
  }

  value(kind) {
    if (kind === 0) return undefined;
    if (kind === 1) return { message: this.bytes(), metadata: NO_METADATA, trailers: NO_METADATA };
    if (kind === 2) return { message: this.bytes(), metadata: this.metadata(), trailers: this.metadata() };
    const messages = this.list(() => this.bytes());
    return this.word() === 1 ? { messages, metadata: this.metadata(), trailers: this.metadata() } : { messages };
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
    return decoder.decode(this.bytes());
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

// One function per action of ../README.md, over the face that valkyrie-sdk and valkyrie-sdk-web share. It knows nothing
// of a single case, and uses nothing that a page does not have.

const CASE_TIMEOUT_MS = 60_000;
const EMPTY = new Uint8Array();

/** Runs every case with `sdk` and hands `{case, ok, detail}` to `report` as each ends. `settings`: `endpoint`, `absent`, `options` of connect,
 * a `prefix` for tokens that no other runner uses, and `pem`, which gives what a case has for a file to an option. */
export async function run(sdk, cases, settings, report) {
  const client = await sdk.connect(settings.endpoint, settings.options);
  let number = 0;
  for (const fields of cases) {
    const one = new Case(sdk, client, settings, fields, `${settings.prefix}x${number++}`);
    let ok = true;
    let detail = '';
    try {
      detail = (await withLimit(one.run())) ?? '';
    } catch (error) {
      ok = false;
      detail = error instanceof Mismatch ? error.message : `${error?.stack ?? error}`;
    }
    report({ case: fields.case, ok, detail });
  }
  await client.close();
}

class Mismatch extends Error {}

async function withLimit(promise) {
  let timer;
  const limit = new Promise((_, reject) => {
    const late = () => reject(new Mismatch(`no end within ${CASE_TIMEOUT_MS} ms`));
    timer = setTimeout(late, CASE_TIMEOUT_MS);
  });
  try {
    return await Promise.race([promise, limit]);
  } finally {
    clearTimeout(timer);
  }
}

class Case {
  constructor(sdk, client, settings, fields, token) {
    Object.assign(this, { sdk, client, settings, fields, token });
  }

  run() {
    const action = ACTIONS[this.fields.action];
    if (action === undefined) throw new Mismatch(`unknown action ${this.fields.action}`);
    return action(this);
  }

  text(key) {
    return this.fields[key]?.replaceAll('$TOKEN', this.token).replaceAll('$ABSENT', this.settings.absent);
  }

  get count() {
    return this.fields.count ?? 0;
  }

  get message() {
    const { hex, size = 0 } = this.fields;
    if (this.fields.text !== undefined) return utf8(this.text('text'));
    if (hex !== undefined) return fromHex(hex);
    return Uint8Array.from({ length: size }, (_, i) => i % 251);
  }

  // What is no UTF-8 is a text of surrogates that stand alone: only such text is none.
  get method() {
    if (this.fields.method_hex === undefined) return this.text('method');
    const bytes = fromHex(this.fields.method_hex);
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    } catch {
      return String.fromCharCode(...Array.from(bytes, (byte) => (byte < 0x80 ? byte : 0xdc00 + byte)));
    }
  }

  pattern(i) {
    return new Uint8Array(this.fields.size ?? 0).fill(i % 251);
  }

  get options() {
    const metadata = entries(this.text('metadata'));
    if (this.fields.metadata_size !== undefined) metadata.push(['x-large', 'x'.repeat(this.fields.metadata_size)]);
    const { timeout_ms: timeoutMs, idempotent, draw_idempotency_key: draws } = this.fields;
    const idempotencyKey = draws === 1 ? true : this.text('idempotency_key');
    return { metadata, timeoutMs, idempotent: idempotent === undefined ? undefined : idempotent === 1, idempotencyKey };
  }

  // The reply, or the error in the same shape.
  async outcome(promise) {
    try {
      return await promise;
    } catch (error) {
      return this.failed(error);
    }
  }

  failed(error) {
    if (error?.name === 'AbortError') return { code: 'CANCELLED', message: EMPTY };
    if (!(error instanceof this.sdk.StatusError)) throw error;
    const { code, number, reason, message, timeline, details, pushbackMs, metadata, trailers } = error;
    return { code, number, reason, status: message, timeline, details, pushbackMs, metadata, trailers, message: EMPTY };
  }

  async check(got) {
    const { fields } = this;
    const wrong = [];
    const compare = (what, expected, value) => {
      if (expected !== undefined && expected !== value)
        wrong.push(`${what}: expected ${show(expected)}, got ${show(value)}`);
    };
    compare('code', fields.code, got.code ?? 'OK');
    compare('code number', fields.code_number, got.number ?? 0);
    compare('reason', fields.reason, got.reason ?? '');
    compare('status message', this.text('status_message'), got.status ?? '');
    compare('detail type', fields.detail_type, got.details?.[0]?.type);
    compare('detail', fields.detail_text, fromUtf8(got.details?.[0]?.value ?? EMPTY));
    compare('pushback', fields.pushback_ms, got.pushbackMs);
    compare('reply', fields.reply_text, fromUtf8(got.message));
    compare('reply size', fields.reply_size, got.message.length);
    for (const [key, metadata] of [
      ['expect_metadata', got.metadata],
      ['expect_trailers', got.trailers],
    ]) {
      if (fields[key] !== undefined) compare(key, written(entries(this.text(key))), written(metadata ?? []));
    }
    if (fields.reply_echo === 1 && !equal(got.message, this.message)) {
      wrong.push(`the reply of ${got.message.length} bytes is not the message`);
    }
    if (fields.reply_max !== undefined) {
      const reply = Number(fromUtf8(got.message));
      if (!(reply >= 1 && reply <= fields.reply_max))
        wrong.push(`reply: expected 1 to ${fields.reply_max}, got ${reply}`);
    }
    if (wrong.length > 0)
      throw new Mismatch(`${wrong.join('; ')} (${got.code ?? 'OK'} ${got.reason ?? ''} ${got.status ?? ''})`);
    if (fields.then_dropped === 1) await this.hangUntil('dropped');
  }

  async hangUntil(until) {
    const stats = await this.client.call('/test/hang_stats', this.token, { metadata: { until }, timeoutMs: 30_000 });
    return JSON.parse(fromUtf8(stats));
  }

  get scheme() {
    return this.settings.endpoint.split(':')[0];
  }

  // A fresh server, a client for it, and what ends it.
  async freshServer() {
    const endpoint = fromUtf8(await this.client.call('/test/private', this.scheme));
    const { service_config: serviceConfig } = this.fields;
    const client = await this.sdk.connect(endpoint, { ...this.settings.options, serviceConfig });
    const shutdown = (how) => client.call('/test/shutdown', how).catch(() => {});
    return { client, shutdown };
  }

  // Receives to the end: how many messages came, and how it ended.
  async receiveAll(stream, isRight = () => true, from = 0) {
    let count = from;
    try {
      for (let message; (message = await stream.recv()) !== null; count++) {
        if (!isRight(message, count))
          throw new Mismatch(`message ${count} of ${message.length} bytes is not the pattern`);
      }
      return [count, { message: EMPTY, metadata: stream.metadata, trailers: stream.trailers }];
    } catch (error) {
      return [count, this.failed(error)];
    }
  }
}

const ACTIONS = {
  async request(one) {
    const message = one.text('text') ?? one.message;
    await one.check(await one.outcome(one.client.request(message).then((message) => ({ message }))));
  },

  async unary(one) {
    const call = one.client.callWithResponse(one.text('method'), one.message, one.options);
    await one.check(await one.outcome(call));
  },

  // Two calls with the same options; a server says which of the answers is not the first of its key.
  async twice(one) {
    const call = (message) => one.outcome(one.client.callWithResponse(one.text('method'), message, one.options));
    const first = await call(one.message);
    const then = await call(one.text('then_message') ?? one.message);
    const { then_code: code, then_reply: reply } = one.fields;
    if (code !== undefined && code !== (then.code ?? 'OK')) throw new Mismatch(`the second call: ${show(then)}`);
    if (reply !== undefined && reply !== fromUtf8(then.message)) throw new Mismatch(`the second reply: ${fromUtf8(then.message)}`);
    const replayed = [first, then].map(({ metadata }) => metadata?.get('valkyrie-replayed') === 'true');
    if (replayed[0] || replayed[1] !== (one.fields.replayed === 1)) throw new Mismatch(`replayed: ${replayed}`);
    await one.check(first);
  },

  async stream_with_key(one) {
    const [, got] = await one.receiveAll(one.client.open(one.text('method'), one.options));
    await one.check(got);
  },

  async server_stream(one) {
    const stream = one.client.stream(one.text('method'), one.text('text') ?? '', one.options);
    const [count, got] = await one.receiveAll(stream, (message, i) => equal(message, one.pattern(i)));
    if (count !== one.count) throw new Mismatch(`expected ${one.count} messages, got ${count}, then ${show(got)}`);
    await one.check(got);
  },

  async client_stream(one) {
    const stream = one.client.open(one.text('method'), one.options);
    try {
      for (let i = 0; i < one.count; i++) await stream.send(one.pattern(i));
      await stream.halfClose();
    } catch {
      // The call may be over already; receiving says how it ended.
    }
    let reply = EMPTY;
    const keep = (message) => ((reply = message), true);
    const [count, got] = await one.receiveAll(stream, keep);
    if (got.code === undefined && count !== 1) throw new Mismatch(`expected one reply, got ${count}`);
    await one.check({ ...got, message: reply });
  },

  async bidi(one) {
    const stream = one.client.open(one.text('method'), one.options);
    const receive = async (i) => {
      const message = await stream.recv();
      if (message === null || !equal(message, one.pattern(i))) throw new Mismatch(`message ${i} is not the one sent`);
    };
    for (let i = 0; i < one.count; i++) {
      await stream.send(one.pattern(i));
      if (one.fields.lockstep === 1) await receive(i);
    }
    await stream.halfClose();
    for (let i = 0; i < one.count && one.fields.lockstep !== 1; i++) await receive(i);
    const [count, got] = await one.receiveAll(stream);
    if (count !== 0) throw new Mismatch('a message after the last');
    await one.check(got);
  },

  async cancel_before(one) {
    const signal = AbortSignal.abort();
    await one.check(
      await one.outcome(one.client.callWithResponse(one.text('method'), one.message, { ...one.options, signal })),
    );
  },

  async cancel_during(one) {
    const controller = new AbortController();
    const options = { ...one.options, signal: controller.signal };
    const call = one.outcome(one.client.callWithResponse(one.text('method'), one.message, options));
    await one.hangUntil('started');
    controller.abort();
    await one.check(await call);
  },

  async cancel_times(one) {
    const took = [];
    for (let number = 0; number < one.count; number++) {
      const round = new Case(one.sdk, one.client, one.settings, one.fields, `${one.token}-${number}`);
      const controller = new AbortController();
      const options = { ...round.options, signal: controller.signal };
      const call = round.outcome(round.client.callWithResponse(round.text('method'), round.message, options));
      await round.hangUntil('started');
      const since = (performance.timeOrigin + performance.now()) * 1000;
      controller.abort();
      await round.check(await call);
      took.push(Math.round(Math.max((await round.hangUntil('dropped')).dropped_us - since, 0)));
    }
    took.sort((a, b) => a - b);
    return `${took[took.length >> 1]} µs, ${took.at(-1)} at worst`;
  },

  async cancel_after(one) {
    const controller = new AbortController();
    const call = (options) => one.outcome(one.client.callWithResponse(one.text('method'), one.message, options));
    await one.check(await call({ ...one.options, signal: controller.signal }));
    controller.abort();
    await one.check(await call(one.options));
  },

  async cancel_stream(one) {
    const stream = one.client.open(one.text('method'), one.options);
    await stream.send(one.message);
    await one.hangUntil('started');
    stream.cancel();
    const [, got] = await one.receiveAll(stream);
    await one.check(got);
  },

  async leave_stream(one) {
    let left = one.count;
    for await (const _ of one.client.stream(one.text('method'), one.message, one.options)) {
      if (--left === 0) break;
    }
    if (left !== 0) throw new Mismatch(`the stream ended ${left} messages early`);
    await one.check(await one.outcome(one.client.callWithResponse('/echo', 'x')));
  },

  async in_flight(one) {
    const message = (i) => utf8(`${i}`);
    const call = (_, i) => one.client.callWithResponse(one.text('method'), message(i), one.options);
    const replies = await Promise.all(Array.from({ length: one.count }, call));
    const wrong = replies.findIndex((reply, i) => !equal(reply.message, message(i)));
    if (wrong >= 0) throw new Mismatch(`reply ${wrong} is ${fromUtf8(replies[wrong].message)}`);
  },

  async go_away(one) {
    const { client, shutdown } = await one.freshServer();
    const stream = client.stream(one.text('method'), one.message, one.options);
    for (let i = 0; i < one.count; i++) {
      if ((await stream.recv()) === null) throw new Mismatch(`the stream ended after ${i} messages`);
    }
    await shutdown(one.fields.how);
    const [count, got] = await one.receiveAll(stream, undefined, one.count);
    if (one.fields.total !== undefined && count !== one.fields.total) {
      throw new Mismatch(`expected ${one.fields.total} messages, got ${count}, then ${show(got)}`);
    }
    await one.check(got);
    const after = await one.outcome(client.callWithResponse('/echo', 'x'));
    if (after.code !== one.fields.then_code)
      throw new Mismatch(`then: expected ${one.fields.then_code}, got ${show(after)}`);
    await client.close();
  },

  async connect(one) {
    const call = async () => {
      const client = await one.sdk.connect(one.text('endpoint'), one.settings.options);
      return client.callWithResponse('/echo', 'x');
    };
    await one.check(await one.outcome(call()));
  },

  // As the case says, and in no other way.
  async connect_with(one) {
    const pem = (key) => (one.fields[key] === undefined ? undefined : one.settings.pem(one.fields[key]));
    const identity = one.fields.identity && { certificates: pem('identity'), key: pem('key') };
    const call = async () => {
      const client = await one.sdk.connect(one.fields.endpoint, {
        trustedCertificates: pem('trusted'),
        revocationLists: pem('revoked'),
        identity,
        serverName: one.fields.server_name,
        minSecurity: one.fields.min_security,
        sealed: one.fields.sealed === 1,
      });
      const response = await client.callWithResponse('/echo', 'x');
      await client.close();
      return response;
    };
    await one.check(await one.outcome(call()));
  },

  // One of several servers is killed among many calls, 50 at a time, that may be executed twice.
  async failover(one) {
    const client = await one.sdk.connect(one.fields.endpoint, one.settings.options);
    const failures = [];
    for (let first = 0; first < one.count; first += 50) {
      const numbers = Array.from({ length: 50 }, (_, i) => `${first + i}`);
      const call = (number) => one.outcome(client.callWithResponse('/echo', number, { idempotent: true }));
      const dies = first === Math.floor(one.count / 4 / 50) * 50;
      const [answers] = await Promise.all([
        Promise.all(numbers.map(call)),
        dies ? one.outcome(client.callWithResponse('/test/die', '')) : undefined,
      ]);
      for (const [i, got] of answers.entries()) {
        if (fromUtf8(got.message) === numbers[i]) continue;
        failures.push(`call ${numbers[i]}: ${got.code} ${got.reason} ${got.status} ${got.timeline}`);
      }
    }
    await client.close();
    if (failures.length > 0) throw new Mismatch(`${failures.length} of ${one.count} failed: ${failures[0]}`);
  },

  // The outcomes of its calls, and the core's trace of them.
  async script(one) {
    const { endpoint, service_config: serviceConfig, steps } = one.fields;
    const client = await one.sdk.connect(endpoint, { serviceConfig });
    let trace = '';
    for (const step of steps.split(';')) {
      let words = step.trim().split(' ');
      let count = 1;
      const kind = words[0].at(-1);
      if (kind === 'x' || kind === '&') {
        count = Number(words[0].slice(0, -1));
        words = words.slice(1);
      }
      const [method, ...others] = words;
      const timeout = others.find((word) => word.startsWith('timeout='));
      const options = { idempotent: others.includes('idempotent'), timeoutMs: timeout && Number(timeout.slice(8)) };
      const call = () => one.outcome(client.callWithResponse(method, '', options));
      let outcomes = [];
      if (kind === '&') {
        await client.call(`/script/together/${count}`, '');
        outcomes = await Promise.all(Array.from({ length: count }, call));
      } else {
        for (let i = 0; i < count; i++) outcomes.push(await call());
      }
      for (const got of method.startsWith('/script/') ? [] : outcomes) {
        trace += `${got.code ?? 'OK'} ${got.reason ?? fromUtf8(got.message)}\n`;
        if (got.timeline) trace += `  ${got.timeline.replaceAll('\n', '\n  ')}\n`;
      }
    }
    trace += fromUtf8(await client.call('/script/trace', ''));
    await client.close();
    return trace;
  },

  // By the text, and by the object that a text may stand for.
  async configured(one) {
    const config = one.fields.service_config;
    const forms = [config];
    try {
      forms.push(JSON.parse(config));
    } catch {
      // The core says what is wrong with it.
    }
    for (const [number, serviceConfig] of forms.entries()) {
      const other = new Case(one.sdk, one.client, one.settings, one.fields, `${one.token}-${number}`);
      const call = async () => {
        const client = await one.sdk.connect(one.settings.endpoint, { ...one.settings.options, serviceConfig });
        try {
          return await client.callWithResponse(other.text('method'), other.message, other.options);
        } finally {
          await client.close();
        }
      };
      await other.check(await other.outcome(call()));
    }
  },

  async credentials(one) {
    const { token, source, asked: wanted = 0, hold, connect_timeout_ms: connectTimeoutMs } = one.fields;
    const fixed = one.text('endpoint');
    let asked = 0;
    const ask = () => {
      asked++;
      if (source === 'fails' || (source === 'once' && asked > 1)) throw new Error('no token today');
      return source === 'silent' ? new Promise(() => {}) : token;
    };
    const options = { ...(fixed === undefined ? one.settings.options : {}), token: source === undefined ? token : ask };
    if (connectTimeoutMs !== undefined) options.connectTimeoutMs = connectTimeoutMs;
    const server = `${one.scheme} ${one.fields.server ?? 'credentials'}`;
    const endpoint = fixed ?? fromUtf8(await one.client.call('/test/private', server));
    let client;
    let logged = '';
    one.sdk.setLogger((record) => (logged += `${JSON.stringify(record)}\n`), 'debug');
    const calls = async () => {
      client = await one.sdk.connect(endpoint, options);
      const stream = client.open('/echo');
      try {
        if (hold === 1) {
          await stream.recv();
          throw new Mismatch('the stream ended well');
        }
        for (let i = 1; i < one.count; i++) await client.call(one.method, '');
        while (asked < wanted) {
          await stream.send('x');
          if ((await stream.recv()) === null) throw new Mismatch('the stream ended meanwhile');
          await client.call(one.method, '');
        }
        return await client.callWithResponse(one.method, '');
      } finally {
        stream.cancel();
      }
    };
    const got = await one.outcome(calls());
    await client?.close();
    one.sdk.setLogger(null);
    if (token !== undefined && `${JSON.stringify(got)} ${logged}`.includes(token)) throw new Mismatch('the token is shown');
    if ((got.code ?? 'OK') === 'OK' && !logged.includes('connected to')) throw new Mismatch(`nothing is logged: ${logged}`);
    await one.check(got);
  },

  async bad_metadata(one) {
    try {
      await one.client.call('/echo', 'x', one.options);
    } catch (error) {
      if (error instanceof TypeError || error instanceof RangeError || error.code === 'INVALID_ARGUMENT')
        return error.message;
      throw error;
    }
    throw new Mismatch('the metadata was taken');
  },

  async wrong_type(one) {
    const wrong = {
      message: () => one.client.call('/echo', 42),
      method: () => one.client.call(42, 'x'),
      timeout: () => one.client.call('/echo', 'x', { timeoutMs: 'soon' }),
      idempotent: () => one.client.call('/echo', 'x', { idempotent: 'yes' }),
      idempotency_key: () => one.client.call('/echo', 'x', { idempotencyKey: 42 }),
      service_config: () => one.sdk.connect(one.settings.endpoint, { ...one.settings.options, serviceConfig: 42 }),
      keepalive: () => one.sdk.connect(one.settings.endpoint, { ...one.settings.options, keepaliveMs: 'often' }),
    };
    try {
      await wrong[one.fields.argument]();
    } catch (error) {
      if (error instanceof TypeError) return error.message;
      throw error;
    }
    throw new Mismatch('the argument was taken');
  },

  // Ready, another while the server goes, and the end.
  async connectivity(one) {
    const { client, shutdown } = await one.freshServer();
    const changes = client.connectivityChanges();
    const { value: ready } = await changes.next();
    if (ready !== 'ready' || client.connectivity !== ready) throw new Mismatch(`connected, and ${ready}`);
    const going = shutdown(one.fields.how);
    const { value: without } = await changes.next();
    await going;
    const closing = client.close();
    const states = [without];
    for await (const state of changes) states.push(state);
    await closing;
    if (states.at(-1) !== 'shutdown' || client.connectivity !== 'shutdown') throw new Mismatch(`closed, and ${states}`);
    return `${without} in between`;
  },

  async reconfigured(one) {
    const { service_config: serviceConfig, first_code: firstCode, then_config: thenConfig } = one.fields;
    const client = await one.sdk.connect(one.settings.endpoint, { ...one.settings.options, serviceConfig });
    const call = () => client.callWithResponse(one.text('method'), one.message, one.options);
    const first = await one.outcome(call());
    if ((first.code ?? 'OK') !== firstCode) throw new Mismatch(`the first call: ${show(first)}`);
    const then = await one.outcome(client.setServiceConfig(thenConfig).then(call));
    await client.close();
    await one.check(then);
  },

  // Of the server as a whole, and of one of its methods.
  async isolate(one) {
    const client = await one.sdk.connect(one.settings.endpoint, one.settings.options);
    const [method, other] = [one.text('method'), '/test/sleep'];
    const reason = async (method) => (await one.outcome(client.callWithResponse(method, '1'))).reason ?? 'OK';
    const seen = [await reason(method)];
    const [{ server }] = await client.breakers();
    await client.isolate(server);
    seen.push(await reason(method), await reason(other));
    const isolated = (await client.breakers()).some((it) => it.method === undefined && it.state === 'isolated');
    await client.restore(server);
    seen.push(await reason(method));
    await client.isolate(server, method);
    seen.push(await reason(method), await reason(other));
    await client.restore(server, method);
    seen.push(await reason(method));
    const restored = (await client.breakers()).every(({ state }) => state === 'closed');
    if (!isolated || !restored || seen.join(' ') !== one.fields.reasons) {
      throw new Mismatch(`isolated ${isolated}, restored ${restored}, ${seen}`);
    }
    const stranger = await one.outcome(client.isolate('tcp://192.0.2.1:1').then(() => ({ message: EMPTY })));
    await client.close();
    await one.check(stranger);
  },

  // Nothing yet, a breaker that changes by itself, and the end.
  async breaker_changes(one) {
    const { service_config: serviceConfig, state } = one.fields;
    const client = await one.sdk.connect(one.settings.endpoint, { ...one.settings.options, serviceConfig });
    const changes = client.breakerChanges();
    const { value: before } = await changes.next();
    const waiting = changes.next();
    const method = one.text('method');
    for (let i = 0; i < one.fields.count; i++) await one.outcome(client.callWithResponse(method, one.message, one.options));
    const states = (await waiting).value.filter((it) => it.method === method).map((it) => it.state);
    const closing = client.close();
    const further = [];
    for await (const breakers of changes) further.push(breakers);
    await closing;
    if (before.length + further.length > 0 || `${states}` !== state) {
      throw new Mismatch(`before ${show(before)}, ${states}, then ${show(further)}`);
    }
  },

  async metrics(one) {
    const client = await one.sdk.connect(one.settings.endpoint, one.settings.options);
    for (let i = 0; i < one.count; i++) await one.outcome(client.callWithResponse(one.text('method'), one.message, one.options));
    const text = await client.metrics().catch((error) => error);
    await client.close();
    // A page has none, and says so.
    if (text instanceof TypeError) return text.message;
    if (!text.split('\n').includes(one.fields.line)) throw new Mismatch(`no ${one.fields.line} in ${text}`);
    return '';
  },

  async keepalive(one) {
    const { keepalive_ms: keepaliveMs, keepalive_timeout_ms: keepaliveTimeoutMs, keepalive_idle_ms: keepaliveIdleMs } = one.fields;
    const call = async () => {
      const options = { ...one.settings.options, keepaliveMs, keepaliveTimeoutMs, keepaliveIdleMs };
      const client = await one.sdk.connect(one.settings.endpoint, options);
      const response = await client.callWithResponse('/echo', 'x');
      await client.close();
      return response;
    };
    await one.check(await one.outcome(call()));
  },

  async call_closed(one) {
    const client = await one.sdk.connect(one.settings.endpoint, one.settings.options);
    await client.close();
    await one.check(await one.outcome(client.callWithResponse(one.text('method'), one.message, one.options)));
  },

  async double_close(one) {
    const client = await one.sdk.connect(one.settings.endpoint, one.settings.options);
    await client.close();
    await client.close();
  },

  async after_shutdown(one) {
    const { client, shutdown } = await one.freshServer();
    await client.call('/echo', 'x');
    await shutdown('now');
    for (let tries = 0; tries < 100; tries++) {
      const got = await one.outcome(client.callWithResponse(one.text('method'), one.message, one.options));
      if (got.code === undefined) continue;
      await one.check(got);
      return client.close();
    }
    throw new Mismatch('100 calls succeeded');
  },
};

function entries(text) {
  if (text === undefined || text === '') return [];
  return text.split('&').map((entry) => {
    const at = entry.indexOf('=');
    const [key, value] = [entry.slice(0, at), entry.slice(at + 1)];
    return [key, key.endsWith('-bin') ? fromHex(value) : value];
  });
}

function written(metadata) {
  return metadata.map(([key, value]) => `${key}=${typeof value === 'string' ? value : toHex(value)}`).join('&');
}

function fromHex(hex) {
  return Uint8Array.from({ length: hex.length / 2 }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16));
}

function toHex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function utf8(text) {
  return new TextEncoder().encode(text);
}

function fromUtf8(bytes) {
  return new TextDecoder().decode(bytes);
}

function equal(a, b) {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

function show(value) {
  const text =
    typeof value === 'string' ? JSON.stringify(value) : typeof value === 'object' ? JSON.stringify(value) : `${value}`;
  return text.slice(0, 120);
}

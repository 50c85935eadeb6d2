'use strict';
// The part of Hearth's guest for Node.js that is loaded when first needed:
// errors, streams, callbacks, warm-ups.

module.exports = (g) => {
  const { calls, frame, header, send, finish, respond, DATA, END, RESPONSE, ERROR, INIT_ERROR, CHUNK, stringify } = g;
  const BURST = 256 << 10; // bytes written at a time
  const HERE = __dirname + '/hearth_guest';

  class Canceled extends Error {}

  // ---- errors ----

  /** Returns the function's own lines of an error's stack, as Node.js prints them. */
  function stackOf(e, depth = 0) {
    let lines = [];
    const stack = e?.stack;
    if (typeof stack === 'string') {
      const all = stack.split('\n');
      const first = all.findIndex((l) => /^\s+at /.test(l));
      // A SyntaxError is preceded by its place and the line of code.
      if (e instanceof SyntaxError && first > 0 && !/^\w*Error/.test(all[0])) lines = all.slice(0, 3);
      if (first >= 0) lines.push(...all.slice(first).filter((l) => !l.includes(HERE) && !/\((node:|internal\/)|at (async )?(node:|internal\/)/.test(l)));
    }
    lines = lines.slice(0, 60).map((l) => l.slice(0, 2000));
    if (e?.cause instanceof Error && depth < 4) {
      lines.push(`Caused by: ${textOf(e.cause.name)}: ${textOf(e.cause.message).slice(0, 1000)}`, ...stackOf(e.cause, depth + 1));
    }
    return lines;
  }

  function textOf(v) {
    try { return String(v).slice(0, CHUNK); } catch { return '(cannot be shown as text)'; }
  }

  function describe(e) {
    try {
      if (e instanceof Error || (e !== null && typeof e === 'object' && typeof e.message === 'string')) {
        const name = typeof e.name === 'string' && e.name !== '' ? e.name : 'Error';
        return { type: name, message: textOf(e.message), stack: stackOf(e) };
      }
    } catch { /* a getter of the function's error failed */ }
    return { type: e === null ? 'null' : typeof e, message: textOf(e), stack: [] };
  }

  function failWith(call, kind, type, message) {
    finish(call, frame(ERROR, call.sid, stringify({ kind, type, message, stack: [] })));
  }

  /** Ends a call whose handler threw e. */
  function fail(call, e) {
    if (call.done) return;
    if (call.websocket !== null && typeof call.websocket === 'object' && call.websocket.failed(e)) return;
    if (e instanceof g.InvalidResponse) return failWith(call, 'response', 'Runtime.InvalidResponse', e.message);
    if (e instanceof Canceled) return failCanceled(call);
    const d = describe(e);
    const aborted = call.canceled !== null && (d.type === 'AbortError' || (call.abort !== null && e === call.abort.signal.reason));
    finish(call, frame(ERROR, call.sid, stringify({ kind: aborted ? 'canceled' : 'handler', ...d })));
  }

  function failCanceled(call) {
    failWith(call, 'canceled', 'Runtime.Canceled', `the call was canceled (${call.canceled})`);
  }

  function failEvent(call, e) {
    failWith(call, 'handler', 'Runtime.InvalidEvent', `the event is no valid JSON: ${e.message}`);
  }

  function failMarshal(call, e) {
    failWith(call, 'response', 'Runtime.MarshalError', `the handler's value cannot be written as JSON: ${textOf(e?.message ?? e)}`);
  }

  /** Answers INIT when loading the handler threw e. */
  function failInit(e, name) {
    const d = describe(e);
    if (e?.code === 'ERR_MODULE_NOT_FOUND' || e?.code === 'MODULE_NOT_FOUND') {
      d.type = 'Runtime.ImportModuleError';
      d.message = `cannot load ${name}: ${d.message.split('\nRequire stack')[0]}`;
    } else if (e instanceof SyntaxError) {
      d.type = 'Runtime.UserCodeSyntaxError';
      d.message = `syntax error while loading ${name}: ${d.message}`;
    }
    send(frame(INIT_ERROR, 0, stringify(d)));
  }

  /** Writes the files of INIT, which nobody else may read. */
  function writeFiles(directory, files) {
    const fs = require('fs');
    try {
      fs.mkdirSync(directory, 0o700);
      for (const [name, data] of Object.entries(files)) {
        if (name === '.' || name === '..' || name.includes('/')) throw new Error(`${stringify(name)} is no name of a file`);
        fs.writeFileSync(`${directory}/${name}`, Buffer.from(data, 'base64'), { flag: 'wx', mode: 0o400 });
      }
    } catch (e) {
      const invalid = new Error(`the files of secrets cannot be written into ${directory}: ${e.message}`);
      invalid.name = 'Runtime.InvalidFiles';
      invalid.stack = undefined;
      throw invalid;
    }
  }

  // ---- cancellation ----

  function signalOf(call) {
    if (call.abort === null) {
      call.abort = new AbortController();
      if (call.canceled !== null) abort(call);
    }
    return call.abort.signal;
  }

  function abort(call) {
    if (!call.abort.signal.aborted) {
      call.abort.abort(new DOMException(`the call was canceled (${call.canceled})`, 'AbortError'));
    }
  }

  // ---- responses ----

  function addMany(pairs, value, add) {
    const { multiValueHeaders: many, cookies } = value;
    if (many) {
      if (typeof many !== 'object' || Array.isArray(many)) throw new g.InvalidResponse('multiValueHeaders must be an object');
      for (const name of Object.keys(many)) {
        if (!Array.isArray(many[name])) throw new g.InvalidResponse(`multiValueHeaders: ${name} must be an array`);
        pairs = pairs.filter((p) => p[0] !== name.toLowerCase()); // it wins over the one in headers
        for (const v of many[name]) add(pairs, name, v);
      }
    }
    if (cookies) {
      if (!Array.isArray(cookies)) throw new g.InvalidResponse('cookies must be an array');
      for (const c of cookies) add(pairs, 'set-cookie', c);
    }
    return pairs;
  }

  function decodeBase64(text) {
    if (!/^[\sA-Za-z0-9+/_-]*=*\s*$/.test(text)) throw new g.InvalidResponse('isBase64Encoded is true but body is no base64');
    return Buffer.from(text, 'base64');
  }

  const { isUtf8: native } = require('buffer');
  function isUtf8(body) {
    if (native) return native(body);
    try {
      new TextDecoder('utf-8', { fatal: true }).decode(body);
      return true;
    } catch {
      return false;
    }
  }

  function isFetchResponse(v) {
    return typeof v.status === 'number' && typeof v.arrayBuffer === 'function' && typeof v.headers?.entries === 'function';
  }

  /** Waits until the host has sent something for the call. */
  function wait(call) {
    return new Promise((wake) => { (call.waiters ??= []).push(wake); });
  }

  /** Sends data as far as the window allows, waiting for more; start goes before it. */
  async function sendBody(call, start, data) {
    let pos = 0;
    while (start !== null || pos < data.length) {
      while (call.window <= 0 && start === null) {
        if (call.canceled !== null) throw new Canceled();
        await wait(call);
      }
      const end = Math.min(data.length, pos + call.window, pos + BURST);
      call.window -= end - pos;
      const out = start === null ? [] : [start];
      start = null;
      while (pos < end) {
        const n = Math.min(CHUNK, end - pos);
        out.push(header(DATA, call.sid, n), data.subarray(pos, pos + n));
        pos += n;
      }
      send(out.length === 1 ? out[0] : Buffer.concat(out));
    }
  }

  /** Sends a response of more than one frame of body. */
  function sendLarge(call, start, body) {
    sendBody(call, start, body).then(() => finish(call, header(END, call.sid, 0)), (e) => fail(call, e));
  }

  function encodeItem(item) {
    if (typeof item === 'string') return Buffer.from(item);
    if (Buffer.isBuffer(item)) return item;
    if (ArrayBuffer.isView(item)) return Buffer.from(item.buffer, item.byteOffset, item.byteLength);
    if (item instanceof ArrayBuffer) return Buffer.from(item);
    throw new g.InvalidResponse(`a streamed response must yield strings or bytes, not ${item === null ? 'null' : typeof item}`);
  }

  /** Returns the head of a streamed response whose first item is given. */
  function streamHead(call, source, result, item) {
    if (!call.http) return '{}';
    if (isFetchResponse(source)) {
      const headers = [...source.headers.entries()].filter(([name]) => name !== 'set-cookie');
      // Older versions of Node.js only have them joined; dates in them have commas too.
      const cookies = source.headers.getSetCookie?.() ??
        source.headers.get('set-cookie')?.split(/,\s*(?=[^\s;,=]+=)/) ?? [];
      headers.push(...cookies.map((c) => ['set-cookie', c]));
      if (source.status < 200 || source.status > 599) throw new g.InvalidResponse(`status must be from 200 to 599, not ${source.status}`);
      if (source.body && !source.headers.has('content-type')) headers.push(['content-type', 'application/octet-stream']);
      return stringify({ status: source.status, headers });
    }
    const kind = typeof item === 'string' ? 'text/plain; charset=utf-8' : 'application/octet-stream';
    return g.encodeHead(result ?? {}, result === null ? 200 : result.statusCode, kind);
  }

  async function* readAll(stream) {
    const reader = stream.getReader();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        yield value;
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  const nothing = { next: () => ({ done: true }) };

  function iterate(source) {
    if (isFetchResponse(source)) source = source.body;
    if (source === null || source === undefined) return nothing;
    if (typeof source[Symbol.asyncIterator] === 'function') return source[Symbol.asyncIterator]();
    if (typeof source.getReader === 'function') return readAll(source);
    if (typeof source.next === 'function') return source;
    const { Readable, PassThrough } = require('stream'); // an old-style stream
    return (typeof source.read === 'function' ? new Readable().wrap(source) : source.pipe(new PassThrough()))[Symbol.asyncIterator]();
  }

  /** Returns the next item of it; a CANCEL breaks the wait. */
  function next(call, it) {
    return new Promise((resolve, reject) => {
      const watch = () => {
        if (call.canceled !== null) reject(new Canceled());
        else (call.waiters ??= []).push(watch);
      };
      watch();
      Promise.resolve(it.next()).then(resolve, reject);
    });
  }

  /** Sends what source yields; result is the object with statusCode that holds it, or null. */
  function stream(call, source, result) {
    streamAll(call, source, result).then(() => finish(call, header(END, call.sid, 0)), (e) => fail(call, e));
  }

  async function streamAll(call, source, result) {
    const it = iterate(source);
    let started = false;
    let over = false;
    try {
      for (;;) {
        call.waiters = null; // the watch of the item before
        const { done, value } = await next(call, it);
        if (done) break;
        const data = call.warmup ? EMPTY : encodeItem(value);
        let start = null;
        if (!started) {
          start = frame(RESPONSE, call.sid, streamHead(call, source, result, value));
          started = true;
        }
        await sendBody(call, start, data);
      }
      over = true;
      if (!started) send(frame(RESPONSE, call.sid, streamHead(call, source, result, EMPTY)));
    } finally {
      if (!over) {
        try {
          if (typeof source.destroy === 'function') source.destroy();
          Promise.resolve(it.return?.()).catch(() => {});
        } catch { /* the call fails with what came first */ }
      }
    }
  }

  const EMPTY = Buffer.alloc(0);

  // ---- warm-up ----

  /** Runs a warm-up: the module's warmup, then the handler, unless they are null. */
  async function warm(call, warmup, handle) {
    try {
      if (warmup !== null) await warmup();
      if (call.canceled !== null) throw new Canceled();
      if (handle !== null) handle(); else discard(call, null);
    } catch (e) {
      fail(call, e);
    }
  }

  /** Ends a warm-up, once all of what the handler has returned is there. */
  function discard(call, value) {
    if (value !== null && typeof value === 'object' && g.isStream(value)) stream(call, value, null);
    else finish(call, Buffer.concat([frame(RESPONSE, call.sid, '{}'), header(END, call.sid, 0)]));
  }

  // ---- requests ----

  /** Returns context.body: the chunks of the request as they arrive. */
  function requestBody(call) {
    return {
      [Symbol.asyncIterator]() { return this; },
      async next() {
        for (;;) {
          const parts = call.parts;
          if (parts !== null && parts.length > 0) {
            const value = parts.shift();
            g.consume(call, value.length);
            return { done: false, value };
          }
          if (parts === null || call.complete || call.done) return { done: true, value: undefined };
          if (call.canceled !== null) throw new Canceled('the call was canceled');
          await wait(call);
        }
      },
      async return() { return { done: true, value: undefined }; },
    };
  }

  let WebSocket = null;
  /** Returns context.websocket. */
  function webSocket(call) {
    WebSocket ??= require('./hearth_guest_websocket.cjs')(g, { Canceled, wait, isUtf8 });
    return new WebSocket(call);
  }

  /** Calls a handler in the old style: (event, context, callback). */
  function runWithCallback(call, handler, event, context) {
    let settled = false;
    const callback = (error, value) => {
      if (settled) return;
      settled = true;
      if (error !== null && error !== undefined) fail(call, error); else respond(call, value);
    };
    context.done = callback;
    context.fail = (e) => callback(e ?? new Error('context.fail was called'));
    context.succeed = (value) => callback(null, value);
    let value;
    try {
      value = handler(event, context, callback);
    } catch (e) {
      return callback(e ?? new Error(String(e)));
    }
    if (value !== null && typeof value === 'object' && typeof value.then === 'function') {
      value.then((v) => callback(null, v), (e) => callback(e ?? new Error(String(e))));
    }
  }

  return {
    fail, failCanceled, failEvent, failMarshal, failInit, signalOf, abort, addMany, decodeBase64, isUtf8,
    isFetchResponse, sendLarge, stream, requestBody, webSocket, runWithCallback, warm, discard, writeFiles,
  };
};

'use strict';
// Hearth's guest for Node.js 18 and later. It speaks docs/guest-protocol.md on
// the descriptor named by HEARTH_FD.
//
// Until INIT there is nothing to do but to wait, so it reads synchronously;
// then a socket joins the event loop. Writes are always synchronous: whatever
// was logged has left before the function can exit or crash. What only some
// calls need is in hearth_guest_more.cjs and loaded when first needed.

const { readSync, writeSync, fstatSync } = require('fs');
const { parse, stringify } = JSON;
const exit = process.exit.bind(process);
const now = Date.now;

const HELLO = 1, INIT = 2, INVOKE = 3, DATA = 4, END = 5, CANCEL = 6, PING = 7, SHUTDOWN = 8, WINDOW = 9;
const READY = 0x11, INIT_ERROR = 0x12, RESPONSE = 0x13, ERROR = 0x14, LOG = 0x15, PONG = 0x16;

const MAX_PAYLOAD = 1 << 20;
const WINDOW_SIZE = 1 << 20;
const CHUNK = 64 << 10;
const EMPTY = Buffer.alloc(0);

/** One call, from INVOKE to its END or ERROR. */
class Call {
  constructor(sid, head) {
    this.sid = sid;
    this.id = head.id;
    this.deadline = head.deadline_ms;
    this.http = head.kind === 'http' || head.kind === 'websocket';
    this.websocket = head.kind === 'websocket' ? head.max_message : null; // then the WebSocket
    this.warmup = head.kind === 'warmup';
    this.event = head.event;
    this.traceparent = head.traceparent; // W3C Trace Context of the handler's span
    this.tracestate = head.tracestate;
    this.parts = head.body ? [] : null; // chunks of the body
    this.complete = !head.body; // END has arrived
    this.streams = this.websocket !== null; // the handler reads the body as a stream
    this.window = WINDOW_SIZE; // bytes that may be sent
    this.credit = WINDOW_SIZE; // bytes the host may send
    this.consumed = 0; // bytes taken since the last WINDOW
    this.canceled = null; // the reason, once CANCEL has arrived
    this.abort = null; // AbortController, once the handler has asked for it
    this.begun = false; // the handler was called
    this.done = false;
    this.waiters = null; // wake on window, body or CANCEL
    this.line1 = EMPTY; // unfinished line of stdout
    this.line2 = EMPTY; // and of stderr
  }
}

/** What a handler gets as its second argument. */
class Context {
  #call;
  constructor(call) {
    this.#call = call;
    this.awsRequestId = call.id;
    this.traceparent = call.traceparent;
    this.tracestate = call.tracestate;
    this.callbackWaitsForEmptyEventLoop = true; // accepted, without effect
  }
  getRemainingTimeInMillis() { return Math.max(0, Math.floor(this.#call.deadline - now())); }
  get signal() { return more().signalOf(this.#call); }
}

// ---- state ----

let fd = -1;
let secret = '';
let greeted = false;
let init = null; // the head of INIT
let archive = null; // unpacks the archive while it arrives
let loading = true; // the handler is not there yet
let handler = null;
let warmup = null; // what the module exports under that name, if it is a function
let requestStream = false;
let stopping = false;
let lastSid = 0;
let partial = EMPTY; // the start of a frame whose rest has not arrived
let filled = 0; // bytes of partial that are filled, if it was allocated for a whole frame
const calls = new Map(); // stream id -> Call
const early = []; // calls that came before the handler was loaded
const idle = new Call(0, { id: '', deadline_ms: 0, kind: 'event' }); // owns the output outside of calls
let running = 0; // calls that have begun
let sole = null; // the call that began while no other ran
let storage = null; // AsyncLocalStorage of the others, made when first needed

let rest = null;
/** The part of the guest that most calls do without. */
function more() {
  return rest ??= require('./hearth_guest_more.cjs')({
    Call, calls, frame, header, send, finish, respond, consume, encodeHead, isStream, InvalidResponse, protocolError, wake,
    DATA, END, RESPONSE, ERROR, INIT_ERROR, CHUNK, stringify,
  });
}

class InvalidResponse extends Error {}

// ---- output ----

let out = Buffer.allocUnsafeSlow(CHUNK + 4096);
let dead = false;

function writeAll(buffer, end) {
  let start = 0;
  while (start < end && !dead) {
    try {
      start += writeSync(fd, buffer, start, end - start);
    } catch (e) {
      if (e.code === 'EAGAIN') {
        pause();
      } else {
        dead = true; // the host is gone, or the handler closed the descriptor
        exit(e.code === 'EPIPE' || e.code === 'ECONNRESET' ? 0 : 70);
      }
    }
  }
}

let cell = null;
/** Waits a little while the host takes what was written. */
function pause() {
  cell ??= new Int32Array(new SharedArrayBuffer(4));
  Atomics.wait(cell, 0, 0, 1);
}

function putHeader(buffer, pos, kind, sid, size) {
  buffer[pos] = size >>> 24;
  buffer[pos + 1] = size >>> 16;
  buffer[pos + 2] = size >>> 8;
  buffer[pos + 3] = size;
  buffer[pos + 4] = kind;
  buffer[pos + 5] = sid >>> 24;
  buffer[pos + 6] = sid >>> 16;
  buffer[pos + 7] = sid >>> 8;
  buffer[pos + 8] = sid;
  return pos + 9;
}

function header(kind, sid, size) {
  const b = Buffer.allocUnsafe(9);
  putHeader(b, 0, kind, sid, size);
  return b;
}

function frame(kind, sid, payload = EMPTY) {
  if (typeof payload === 'string') payload = Buffer.from(payload);
  const b = Buffer.allocUnsafe(9 + payload.length);
  putHeader(b, 0, kind, sid, payload.length);
  b.set(payload, 9);
  return b;
}

/** Writes whole frames. */
function send(buffer) { writeAll(buffer, buffer.length); }

function sendLog(call, k, data) {
  const sid = call.done ? 0 : call.sid;
  for (let i = 0; i < data.length; i += CHUNK - 1) {
    const part = data.subarray(i, i + CHUNK - 1);
    putHeader(out, 0, LOG, sid, part.length + 1);
    out[9] = k;
    out.set(part, 10);
    writeAll(out, 10 + part.length);
  }
}

/** Sends the unfinished lines of a call. */
function flush(call) {
  if (call.line1.length) { sendLog(call, 1, call.line1); call.line1 = EMPTY; }
  if (call.line2.length) { sendLog(call, 2, call.line2); call.line2 = EMPTY; }
}

/** Takes what the function prints; whole lines become LOG frames. */
function print(k, data) {
  let call = storage !== null ? storage.getStore() ?? sole ?? idle : sole ?? idle;
  if (call.done) call = idle;
  const key = k === 1 ? 'line1' : 'line2';
  const i = data.lastIndexOf(10) + 1;
  const line = call[key];
  if (i === 0) {
    const all = line.length ? Buffer.concat([line, data]) : Buffer.from(data);
    if (all.length < CHUNK / 4) { call[key] = all; return; }
    call[key] = EMPTY;
    sendLog(call, k, all);
    return;
  }
  call[key] = i < data.length ? Buffer.from(data.subarray(i)) : EMPTY;
  if (i < data.length) data = data.subarray(0, i);
  sendLog(call, k, line.length ? Buffer.concat([line, data]) : data);
}

/** Makes the stream that stands for process.stdout or process.stderr. */
function makeOutput(k) {
  const { Writable } = require('stream');
  const stream = new Writable({ decodeStrings: false });
  stream.fd = k;
  stream._type = 'pipe';
  stream._isStdio = true;
  stream.write = function (chunk, encoding, cb) {
    if (typeof encoding === 'function') { cb = encoding; encoding = undefined; }
    if (typeof chunk === 'string') chunk = Buffer.from(chunk, encoding);
    else if (!ArrayBuffer.isView(chunk)) throw new TypeError('The "chunk" argument must be of type string, Buffer, TypedArray or DataView');
    else if (!Buffer.isBuffer(chunk)) chunk = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
    print(k, chunk);
    if (typeof cb === 'function') process.nextTick(cb);
    return true;
  };
  stream.end = function (chunk, encoding, cb) { // as with the real ones, it stays open
    if (typeof chunk === 'function') { cb = chunk; chunk = undefined; }
    if (typeof encoding === 'function') { cb = encoding; encoding = undefined; }
    if (chunk !== undefined && chunk !== null) stream.write(chunk, encoding);
    if (typeof cb === 'function') process.nextTick(cb);
    return stream;
  };
  stream.destroy = () => stream;
  return stream;
}

function replaceOutput(name, k) {
  let stream = null;
  Object.defineProperty(process, name, {
    configurable: true, enumerable: true, get: () => stream ??= makeOutput(k),
  });
}

// ---- input ----

/** Ends the guest because the host broke a rule. */
function protocolError(why) {
  if (dead) return;
  dead = true;
  try { writeSync(2, `hearth: protocol error: ${why}\n`); } catch { /* descriptor 2 is closed */ }
  exit(70);
}

/** Dispatches the whole frames in the first n bytes of buffer, which is reused. */
function receive(n, buffer) {
  let data = buffer;
  let end = n;
  if (filled > 0) { // partial waits for the rest of one frame
    const take = Math.min(partial.length - filled, n);
    buffer.copy(partial, filled, 0, take);
    filled += take;
    if (filled < partial.length) return;
    const whole = partial;
    partial = EMPTY;
    filled = 0;
    dispatch(whole[4], whole.readUInt32BE(5), whole, 9, whole.length);
    data = buffer.subarray(take, n);
    end = n - take;
  } else if (partial.length) { // less than a header
    data = Buffer.concat([partial, buffer.subarray(0, n)]);
    end = data.length;
    partial = EMPTY;
  }
  let pos = 0;
  while (end - pos >= 9 && !dead) {
    const size = data.readUInt32BE(pos);
    if (size > MAX_PAYLOAD) return protocolError(`a frame of ${size} bytes`);
    const start = pos + 9;
    if (start + size > end) {
      partial = Buffer.allocUnsafeSlow(9 + size);
      filled = data.copy(partial, 0, pos, end);
      return;
    }
    pos = start + size;
    dispatch(data[start - 5], data.readUInt32BE(start - 4), data, start, pos);
  }
  if (pos < end) partial = Buffer.from(data.subarray(pos, end));
}

function parseHead(data, start, end, what) {
  let head = null;
  try { head = parse(data.toString('utf8', start, end)); } catch { /* reported below */ }
  if (head === null || typeof head !== 'object' || Array.isArray(head)) {
    protocolError(`${what} is no JSON object`);
    return {};
  }
  return head;
}

function unknown(sid, what) {
  if (sid > lastSid || !(sid & 1)) protocolError(`${what} of the unknown stream ${sid}`);
}

function dispatch(kind, sid, data, start, end) {
  if (dead) return;
  if (kind === INVOKE) {
    if (init === null) return protocolError('INVOKE before INIT');
    if (!(sid & 1) || sid <= lastSid) return protocolError(`bad stream id ${sid} of INVOKE`);
    if (stopping) return protocolError('INVOKE after SHUTDOWN');
    const head = parseHead(data, start, end, 'INVOKE');
    const { event, body } = head;
    if (typeof head.id !== 'string' || typeof head.deadline_ms !== 'number' ||
        (body !== undefined && typeof body !== 'boolean') ||
        (head.kind === 'http' || head.kind === 'websocket' ? event === null || typeof event !== 'object' || Array.isArray(event) : head.kind !== 'event' && head.kind !== 'warmup') ||
        (head.kind === 'websocket' && (!body || !Number.isInteger(head.max_message)))) {
      return protocolError('INVOKE lacks a field or has a wrong one');
    }
    lastSid = sid;
    const call = new Call(sid, head);
    calls.set(sid, call);
    if (loading) early.push(call);
    else if (call.streams || (requestStream && !call.warmup)) { call.streams = true; begin(call); } else if (!body) begin(call);
  } else if (kind === DATA || kind === END) {
    if (sid === 0) {
      if (archive === null || archive.complete) return protocolError('DATA or END on stream 0 without an archive');
      if (kind === DATA) archive.add(Buffer.from(data.subarray(start, end)));
      else if (end > start) protocolError('END with a payload');
      else archive.end();
      return;
    }
    if (kind === END && end > start) return protocolError('END with a payload');
    const call = calls.get(sid);
    if (call === undefined) return unknown(sid, 'DATA or END');
    if (call.complete) return protocolError('DATA or END after END');
    if (kind === DATA) {
      call.credit -= end - start;
      if (call.credit < 0) return protocolError('the window was exceeded');
      call.parts.push(Buffer.from(data.subarray(start, end)));
      if (!call.streams) consume(call, end - start);
    } else {
      call.complete = true;
      if (!call.streams && !loading) begin(call);
    }
    if (call.waiters !== null) wake(call);
  } else if (kind === WINDOW) {
    if (end - start !== 4) return protocolError('WINDOW without a number');
    const call = calls.get(sid);
    if (call === undefined) return unknown(sid, 'WINDOW');
    call.window += data.readUInt32BE(start);
    if (call.waiters !== null) wake(call);
  } else if (kind === CANCEL) {
    const head = parseHead(data, start, end, 'CANCEL');
    const call = calls.get(sid);
    if (call === undefined) return unknown(sid, 'CANCEL');
    call.canceled = String(head.reason);
    if (!call.begun) more().failCanceled(call);
    else if (call.abort !== null) more().abort(call);
    if (call.waiters !== null) wake(call);
  } else if (kind === PING && sid === 0 && greeted) {
    if (end - start > 64) return protocolError(`a PING of ${end - start} bytes`);
    send(frame(PONG, 0, data.subarray(start, end)));
  } else if (kind === HELLO && sid === 0 && !greeted) {
    const head = parseHead(data, start, end, 'HELLO');
    if (dead) return;
    if (head.protocol !== 1 || (head.secret ?? '') !== secret) return protocolError('HELLO with another protocol or secret');
    greeted = true;
    send(frame(READY, 0, `{"protocol":1,"runtime":"nodejs${process.versions.node}","pid":${process.pid}}`));
  } else if (kind === INIT && sid === 0 && greeted && init === null) {
    init = parseHead(data, start, end, 'INIT');
    if (dead) return;
    if (typeof init.code !== 'string' || typeof init.handler !== 'string' ||
        (init.env !== undefined && (init.env === null || typeof init.env !== 'object')) ||
        (init.files !== undefined && (init.files === null || typeof init.files !== 'object' || Array.isArray(init.files) || typeof init.files_dir !== 'string'))) {
      return protocolError('INIT lacks a field or has a wrong one');
    }
    if (init.archive) archive = new (require('./hearth_guest_tar.cjs'))(init.code);
  } else if (kind === SHUTDOWN && sid === 0 && greeted) {
    parseHead(data, start, end, 'SHUTDOWN');
    stopping = true;
    if (calls.size === 0 && !dead) setImmediate(stop); // after the frames that came with it
    if (init === null) stop();
  } else {
    protocolError(`unexpected frame of type 0x${kind.toString(16)} on stream ${sid}`);
  }
}

/** Gives the host window for n bytes that were taken. */
function consume(call, n) {
  call.consumed += n;
  if (call.consumed >= WINDOW_SIZE / 2 && !call.complete) {
    const b = Buffer.allocUnsafe(4);
    b.writeUInt32BE(call.consumed);
    call.credit += call.consumed;
    call.consumed = 0;
    send(frame(WINDOW, call.sid, b));
  }
}

function wake(call) {
  const waiters = call.waiters;
  call.waiters = null;
  for (const w of waiters) w();
}

// ---- calls ----

function begin(call) {
  if (call.done || call.begun) return;
  call.begun = true;
  if (running++ === 0) {
    sole = call;
    run(call);
  } else {
    storage ??= new (require('async_hooks').AsyncLocalStorage)();
    storage.run(call, run, call);
  }
}

function run(call) {
  let event = call.event;
  const bare = call.parts === null;
  if (call.parts !== null && !call.streams) {
    const parts = call.parts;
    const body = parts.length === 1 ? parts[0] : Buffer.concat(parts);
    call.parts = null;
    if (call.http) {
      if (event.isBase64Encoded || !more().isUtf8(body)) {
        event.isBase64Encoded = true;
        event.body = body.toString('base64');
      } else {
        event.body = body.toString('utf8', 0, body.length);
      }
    } else {
      try {
        event = parse(body.toString('utf8', 0, body.length));
      } catch (e) {
        return more().failEvent(call, e);
      }
    }
  } else if (!call.http) {
    event = null;
  }
  if (call.warmup) more().warm(call, warmup, bare ? null : () => handle(call, event));
  else handle(call, event);
}

/** Calls the handler. */
function handle(call, event) {
  let value;
  try {
    const context = new Context(call);
    if (call.websocket !== null) context.websocket = more().webSocket(call);
    else if (requestStream) context.body = more().requestBody(call);
    if (handler.length >= 3) return more().runWithCallback(call, handler, event, context);
    value = handler(event, context);
  } catch (e) {
    return more().fail(call, e);
  }
  if (value !== null && typeof value === 'object' && typeof value.then === 'function') {
    value.then((v) => respond(call, v), (e) => more().fail(call, e));
  } else {
    respond(call, value);
  }
}

const TEXT = Buffer.from('{"status":200,"headers":[["content-type","text/plain; charset=utf-8"]]}');
const JSON_ = Buffer.from('{"status":200,"headers":[["content-type","application/json"]]}');
const OCTETS = Buffer.from('{"status":200,"headers":[["content-type","application/octet-stream"]]}');
const NONE = Buffer.from('{}');

/** Sends the handler's value. */
function respond(call, value) {
  if (call.done) return;
  let head, body;
  try {
    if (call.warmup) return more().discard(call, value);
    if (call.websocket !== null) return call.websocket.respond(value);
    if (value !== null && typeof value === 'object') {
      if (call.http && value.statusCode !== undefined) {
        body = bodyOf(value.body, value.isBase64Encoded);
        if (body === null) return more().stream(call, value.body, value);
        head = encodeHead(value, value.statusCode, typeof value.body === 'string' ? 'application/json'
          : value.body === undefined || value.body === null ? null : 'application/octet-stream');
      } else if (call.http && (ArrayBuffer.isView(value) || value instanceof ArrayBuffer)) {
        head = OCTETS;
        body = bytesOf(value);
      } else if (isStream(value)) {
        return more().stream(call, value, null);
      }
    } else if (call.http && typeof value === 'string') {
      head = TEXT;
      body = value;
    }
    if (head === undefined) {
      head = call.http ? JSON_ : NONE;
      try {
        body = value === undefined ? 'null' : stringify(value);
        if (body === undefined) throw new TypeError(`a ${typeof value} has no JSON`);
      } catch (e) {
        return more().failMarshal(call, e);
      }
    }
    sendResponse(call, head, body);
  } catch (e) {
    more().fail(call, e);
  }
}

function isStream(v) {
  return typeof v[Symbol.asyncIterator] === 'function' || typeof v.getReader === 'function' ||
    (typeof v.pipe === 'function' && typeof v.on === 'function') ||
    (typeof v.next === 'function' && typeof v[Symbol.iterator] === 'function') ||
    more().isFetchResponse(v);
}

function bytesOf(v) {
  if (Buffer.isBuffer(v)) return v;
  return ArrayBuffer.isView(v) ? Buffer.from(v.buffer, v.byteOffset, v.byteLength) : Buffer.from(v);
}

/** Returns a response's body as string or Buffer, null if it is a stream. */
function bodyOf(body, base64) {
  if (typeof body === 'string') return base64 ? more().decodeBase64(body) : body;
  if (body === undefined || body === null) return '';
  if (ArrayBuffer.isView(body) || body instanceof ArrayBuffer) return bytesOf(body);
  if (typeof body === 'object' && isStream(body)) return null;
  throw new InvalidResponse(`body must be a string, bytes or a stream, not ${typeof body} (use JSON.stringify)`);
}

/** Encodes the head of a response; kind is the default content type. */
function encodeHead(value, status, kind) {
  if (!Number.isInteger(status)) throw new InvalidResponse(`statusCode must be an integer, not ${typeof status === 'number' ? status : typeof status}`);
  if (status < 200 || status > 599) throw new InvalidResponse(`statusCode must be from 200 to 599, not ${status}`);
  let pairs = [];
  const headers = value.headers;
  if (headers !== undefined && headers !== null) {
    if (typeof headers !== 'object' || Array.isArray(headers)) throw new InvalidResponse('headers must be an object');
    for (const name in headers) addHeader(pairs, name, headers[name]);
  }
  if (value.multiValueHeaders || value.cookies) pairs = more().addMany(pairs, value, addHeader);
  if (kind !== null && !pairs.some((p) => p[0] === 'content-type')) pairs.push(['content-type', kind]);
  return stringify({ status, headers: pairs });
}

const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const BREAK = /[\r\n\0]/;

function addHeader(pairs, name, value) {
  if (!TOKEN.test(name)) throw new InvalidResponse(`${stringify(name).slice(0, 80)} is no valid name of a header`);
  if (typeof value !== 'string') {
    if (typeof value !== 'number' && typeof value !== 'boolean') {
      throw new InvalidResponse(`header ${name} must be a string, not ${value === null ? 'null' : typeof value}`);
    }
    value = String(value);
  }
  if (BREAK.test(value)) throw new InvalidResponse(`header ${name} contains a line break or a NUL`);
  pairs.push([name.toLowerCase(), value]);
}

/** Sends RESPONSE, DATA and END; head and body are a string or Buffer each. */
function sendResponse(call, head, body) {
  const sid = call.sid;
  const headBytes = typeof head === 'string' ? Buffer.byteLength(head) : head.length;
  const size = typeof body === 'string' ? Buffer.byteLength(body) : body.length;
  if (size > CHUNK || headBytes > 4000) {
    return more().sendLarge(call, frame(RESPONSE, sid, head), typeof body === 'string' ? Buffer.from(body) : body);
  }
  flush(call);
  let pos = putHeader(out, 0, RESPONSE, sid, headBytes);
  if (typeof head === 'string') out.write(head, pos); else out.set(head, pos);
  pos += headBytes;
  if (size > 0) {
    pos = putHeader(out, pos, DATA, sid, size);
    if (typeof body === 'string') out.write(body, pos); else out.set(body, pos);
    pos += size;
  }
  pos = putHeader(out, pos, END, sid, 0);
  close(call);
  writeAll(out, pos);
  if (stopping) stop();
}

/** Ends a call with the last of its frames, after what it has printed. */
function finish(call, buffer) {
  if (call.done) return;
  flush(call);
  close(call);
  send(buffer);
  if (stopping) stop();
}

function close(call) {
  call.done = true;
  call.parts = null;
  calls.delete(call.sid);
  if (call === sole) sole = null;
  if (call.begun) running--;
}

/** Exits after SHUTDOWN once no call runs. */
function stop() {
  if (calls.size === 0) exit(0);
}

// ---- life ----

function start() {
  fd = Number(process.env.HEARTH_FD || NaN);
  secret = process.env.HEARTH_SECRET ?? '';
  delete process.env.HEARTH_FD;
  delete process.env.HEARTH_SECRET;
  try {
    fstatSync(fd);
  } catch {
    writeSync(2, 'hearth: HEARTH_FD names no open descriptor; start this program through Hearth\n');
    exit(64);
  }
  replaceOutput('stdout', 1);
  replaceOutput('stderr', 2);
  process.on('exit', () => {
    if (dead) return;
    for (const call of calls.values()) flush(call);
    flush(idle);
  });
}

/** Reads once, waiting for data. */
function readNext(buffer) {
  for (;;) {
    try {
      const n = readSync(fd, buffer, 0, buffer.length, null);
      if (n === 0) { dead = true; exit(0); }
      return receive(n, buffer);
    } catch (e) {
      if (e.code === 'EAGAIN') pause();
      else if (e.code === 'ECONNRESET') { dead = true; exit(0); } else if (e.code !== 'EINTR') throw e;
    }
  }
}

/** Joins the event loop. */
function listen(net, buffer) {
  const end = () => { dead = true; exit(0); };
  const socket = new net.Socket({
    fd, readable: true, writable: false, allowHalfOpen: true,
    onread: { buffer, callback: (n, b) => { receive(n, b); return true; } },
  });
  socket.on('end', end);
  socket.on('error', end);
  socket.on('close', end);
}

function ready(loaded) {
  ({ handler, warmup } = loaded);
  loading = false;
  requestStream = handler.requestStream === true;
  flush(idle);
  send(frame(READY, 0, `{"request_stream":${requestStream},"websocket":${handler.websocket === true},"concurrent":true}`));
  for (const call of early.splice(0)) {
    call.streams ||= requestStream && !call.warmup;
    if (call.streams || call.complete) begin(call);
  }
}

function main() {
  start();
  const buffer = Buffer.allocUnsafeSlow(CHUNK);
  while (!greeted && !dead) readNext(buffer);
  const net = require('net'); // while the host prepares INIT
  while (!dead && (init === null || (archive !== null && !archive.complete))) readNext(buffer);
  if (dead) return;
  listen(net, buffer);
  const { env, code, handler: name } = init;
  Object.assign(process.env, env);
  Object.assign(Context.prototype, {
    functionName: String(init.function), functionVersion: String(init.version), memoryLimitInMB: init.memory_mb,
    invokedFunctionArn: `arn:hearth:lambda:local:0:function:${init.function}:${init.version}`,
    logGroupName: '', logStreamName: '', identity: undefined, clientContext: undefined, websocket: null,
  });
  const failed = (e) => { flush(idle); more().failInit(e, name, code); };
  try {
    if (archive !== null) archive.check();
    if (init.files !== undefined) more().writeFiles(init.files_dir, init.files);
    init = {}; // what is in it is the function's now, and may be secret
    process.chdir(code);
    const loaded = require('./hearth_guest_load.cjs')(code, name);
    if (typeof loaded.then === 'function') loaded.then(ready).catch(failed); else ready(loaded);
  } catch (e) {
    failed(e);
  }
}

main();

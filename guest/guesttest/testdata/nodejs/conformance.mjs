// Handlers of the guest conformance suite; python/conformance.py has the same.

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { Readable } from 'node:stream';

console.log('loading');

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export const echo = (event) => event;

export const hello = async () => ({
  statusCode: 201,
  headers: { 'X-Test': 'yes', 'X-Number': 7 },
  multiValueHeaders: { 'X-Many': ['a', 'b'] },
  cookies: ['a=1', 'b=2'],
  body: 'héllo',
});

export const mirror = async (event) => ({ statusCode: 200, body: event.body, isBase64Encoded: event.isBase64Encoded ?? false });

export const empty = async () => ({ statusCode: 204 });

export const text = () => 'héllo';

export const octets = () => Buffer.from([0x00, 0xff, 0x80]);

export const none = async () => {};

export function* stream() {
  yield 'one ';
  yield Buffer.from('two ');
  yield 'three';
}

export async function* stream_async() {
  yield Buffer.from('one ');
  await sleep(1);
  yield 'two';
}

export const stream_head = () => ({ statusCode: 202, headers: { 'content-type': 'text/event-stream' }, body: Readable.from(stream()) });

export const stream_empty = () => Readable.from([]);

export function* endless() {
  const chunk = Buffer.alloc(1000, 'x');
  try {
    for (;;) yield chunk;
  } finally {
    console.log('closed');
  }
}

export async function* endless_async() {
  yield* endless();
}

export const large = () => {
  const b = Buffer.alloc(3 << 20);
  for (let i = 0; i < b.length; i++) b[i] = i;
  return b;
};

export const large_async = async () => large();

export const large_value = () => 'x'.repeat(3 << 20);

function inner() {
  const e = new Error('bad thing');
  e.name = 'ValueError';
  throw e;
}

export const throw_ = () => {
  console.log('before');
  inner();
};
export { throw_ as throw };

export const throw_async = async () => {
  await sleep(1);
  inner();
};

export function* throw_late() {
  yield 'begun';
  inner();
}

export const unserialisable = () => ({ x: 1n });

export const circular = async () => {
  const a = [];
  a.push(a);
  return a;
};

export const bad_status = () => ({ statusCode: '200', body: '' });

export const bad_headers = () => ({ statusCode: 200, headers: [1], body: '' });

export const bad_header = () => ({ statusCode: 200, headers: { x: 'a\r\nb: c' }, body: '' });

export const bad_body = () => ({ statusCode: 200, body: { a: 1 } });

export function* bad_item() {
  yield 'fine';
  yield 5;
}

export const output = async () => {
  console.log('line one\nline two');
  console.error('error line');
  process.stdout.write(Buffer.from('bytes é\n'));
  process.stdout.write('unfinished');
};

export const big_output = () => { console.log('x'.repeat(200_000)); };

export const overlap = async (event) => {
  console.log('begin', event.n);
  await sleep(event.ms);
  console.log('end', event.n);
  return event.n;
};

export const patient = (event, context) => new Promise((_, reject) => {
  console.log('waiting');
  context.signal.addEventListener('abort', () => reject(context.signal.reason));
});

export const environment = () => ({
  greeting: process.env.GREETING,
  hearth: Object.keys(process.env).filter((k) => k.startsWith('HEARTH_')),
  cwd: process.cwd(),
});

export const files = () => {
  const directory = process.env.FILES;
  const mode = (path) => (fs.statSync(path).mode & 0o777).toString(8);
  return {
    mode: mode(directory),
    found: Object.fromEntries(fs.readdirSync(directory).map((name) => {
      const path = `${directory}/${name}`;
      return [name, [mode(path), fs.readFileSync(path).toString('hex')]];
    })),
  };
};

export const context = (event, context) => ({
  id: context.awsRequestId,
  function: context.functionName,
  version: context.functionVersion,
  memory: context.memoryLimitInMB,
  remaining: context.getRemainingTimeInMillis(),
  trace: [context.traceparent, context.tracestate],
});

export const upload = async (event, context) => {
  let n = 0;
  for await (const chunk of context.body) n += chunk.length;
  return n;
};
upload.requestStream = true;

export const upload_async = async function* (event, context) {
  yield* context.body;
};
upload_async.requestStream = true;

export const upload_ignored = () => 'no';
upload_ignored.requestStream = true;

export const vandal = () => {
  console.log('kept');
  process.stdout.end();
  process.stdout.destroy();
  process.chdir('/');
  for (const fd of [0, 1, 2]) {
    try { fs.closeSync(fd); } catch { /* was not open */ }
  }
  process.removeAllListeners();
  JSON.stringify = () => { throw new Error('vandal'); };
  fs.writeSync = () => { throw new Error('vandal'); };
  console.log = () => {};
  return 'done';
};

export const descriptors = () => execFileSync('ls', ['-l', '/proc/self/fd'], { stdio: ['ignore', 'pipe', 'ignore'] }).toString();

export const leave = () => {
  console.log('bye');
  process.stdout.write('unfinished');
  process.exit(3);
};

export const callback = (event, context, callback) => {
  setTimeout(() => callback(null, { statusCode: 200, body: 'called back' }), 1);
};

export const callback_error = (event, context, callback) => { callback(new RangeError('told')); };

export const fetched = () => new Response('fetched', { status: 203, headers: [['set-cookie', 'a=1; Expires=Wed, 21 Oct 2026 07:28:00 GMT'], ['set-cookie', 'b=2'], ['x-a', 'b']] });

export const web_stream = () => new ReadableStream({
  start(c) { c.enqueue(new TextEncoder().encode('web')); c.close(); },
});

export const readable = () => fs.createReadStream(new URL(import.meta.url));

export const crash = () => { setTimeout(() => { throw new Error('in a timer'); }, 1); return sleep(10_000); };

export const number = 5;

export const upload_patient = () => sleep(3_600_000);
upload_patient.requestStream = true;

export async function ws_echo(event, context) {
  const ws = context.websocket;
  for await (const message of ws) await ws.send(message);
  console.log("closed", ws.closeCode, ws.closeReason);
}
ws_echo.websocket = true;

export async function ws_echo_async(event, context) {
  const ws = context.websocket;
  for (let message = await ws.receive(); message !== null; message = await ws.receive()) ws.send(message);
  console.log("closed", ws.closeCode, ws.closeReason);
}
ws_echo_async.websocket = true;

export const ws_refuse = () => ({ statusCode: 403, headers: { "x-why": "no" }, body: "not you" });

export const ws_silent = () => null;

export const ws_accept = async (event, context) => {
  context.websocket.accept({ subprotocol: "two", headers: { "X-Extra": "yes" } });
};

export async function ws_throw(event, context) {
  await context.websocket.send("so far");
  inner();
}

export const ws_throw_async = ws_throw;

export async function ws_close(event, context) {
  const ws = context.websocket;
  await ws.close(4001, "dône");
  await ws.close();
  try {
    await ws.send("more");
  } catch (e) {
    console.log("closed", e instanceof ws.constructor.Closed ? await ws.receive() === null && "None" : e);
  }
}

export const ws_close_async = ws_close;

export async function ws_endless(event, context) {
  for (;;) {
    await context.websocket.send(Buffer.alloc(1000, "x"));
    await new Promise(setImmediate);
  }
}

export const ws_endless_async = ws_endless;

export async function ws_ignore(event, context) {
  context.websocket.accept();
  await sleep(300);
}

export const ws_ignore_async = ws_ignore;

export async function* ws_yield(event, context) {
  context.websocket.accept();
  yield "no";
}

export async function ws_tasks(event, context) {
  const ws = context.websocket;
  const small = async () => {
    for (let i = 0; i < 1000; i++) {
      await ws.send("s");
      await new Promise(setImmediate);
    }
  };
  await Promise.all([...[...Array(9).keys()].map((n) => ws.send(String(n).repeat(200_000))), small()]);
}

export async function ws_misuse(event, context) {
  const ws = context.websocket;
  const wrong = [];
  for (const call of [
    () => ws.accept({ subprotocol: "three" }),
    () => ws.send(5),
    () => ws.send("x".repeat((1 << 20) + 1)),
    () => ws.close(1005),
    () => ws.close(1000, "x".repeat(124)),
    () => { ws.accept(); ws.accept(); },
  ]) {
    try {
      call();
      wrong.push("nothing");
    } catch (e) {
      wrong.push({ RangeError: "ValueError", Error: "RuntimeError" }[e.name] ?? e.name);
    }
  }
  await ws.send(wrong.join(" "));
}

export async function ws_collect(event, context) {
  const ws = context.websocket;
  const words = [];
  for await (const m of ws) words.push(m.toString());
  console.log(...words, "closed", ws.closeCode);
}

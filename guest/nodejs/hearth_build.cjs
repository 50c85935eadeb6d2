'use strict';
// Installs a function's dependencies with npm and sends them to Hearth.
//
//     node hearth_build.cjs
//
// It runs in a sandbox of its own, made for one build. It reads what to install
// from /function/source and writes to the descriptor named by HEARTH_FD: one
// line of JSON that says how it went and, after a success, a tar archive of
// node_modules. What npm says goes to the standard output and error.
//
// Node.js 18 and later.

const fs = require('fs');
const path = require('path');
const { spawnSync } = require('child_process');

const SOURCE = '/function/source';
const CERTIFICATES = '/function/ca.crt';
const WORK = '/tmp/build';
const OUT = `${WORK}/source`;
const MODULES = 'node_modules';

/** A build that cannot succeed; fields are for the host. */
class Failure extends Error {
  constructor(fields) {
    super(fields.kind);
    this.head = { ok: false, ...fields };
  }
}

/** Returns npm's main file. */
function npm() {
  const prefix = path.dirname(path.dirname(fs.realpathSync(process.execPath)));
  for (const dir of [`${prefix}/lib/node_modules`, '/usr/lib/node_modules', '/usr/local/lib/node_modules', '/usr/share/nodejs']) {
    const main = `${dir}/npm/bin/npm-cli.js`;
    if (fs.existsSync(main)) return main;
  }
  throw new Failure({ kind: 'no-installer', installer: 'npm' });
}

/** Returns npm's environment; what the operator has set wins. */
function environment() {
  const defaults = {
    npm_config_cache: `${WORK}/cache`,
    npm_config_userconfig: `${WORK}/home/.npmrc`,
    npm_config_globalconfig: `${WORK}/home/npmrc`,
    npm_config_update_notifier: 'false',
    npm_config_audit: 'false',
    npm_config_fund: 'false',
    npm_config_progress: 'false',
    npm_config_foreground_scripts: 'true',
    npm_config_fetch_retries: '2',
    npm_config_fetch_retry_mintimeout: '1000',
    npm_config_fetch_retry_maxtimeout: '5000',
  };
  if (fs.existsSync(CERTIFICATES)) {
    defaults.npm_config_cafile = CERTIFICATES;
    defaults.NODE_EXTRA_CA_CERTS = CERTIFICATES;
    defaults.SSL_CERT_FILE = CERTIFICATES;
    defaults.GIT_SSL_CAINFO = CERTIFICATES;
  }
  return { ...defaults, ...process.env, HOME: `${WORK}/home`, TMPDIR: `${WORK}/tmp` };
}

function copy(from, to) {
  const info = fs.lstatSync(from);
  if (info.isDirectory()) {
    fs.mkdirSync(to, { recursive: true });
    for (const name of fs.readdirSync(from)) copy(`${from}/${name}`, `${to}/${name}`);
  } else if (info.isSymbolicLink()) {
    fs.symlinkSync(fs.readlinkSync(from), to);
  } else {
    fs.copyFileSync(from, to);
    fs.chmodSync(to, info.mode & 0o100 ? 0o755 : 0o644);
  }
}

function install() {
  const cli = npm();
  for (const dir of ['home', 'tmp', 'cache']) fs.mkdirSync(`${WORK}/${dir}`, { recursive: true });
  copy(SOURCE, OUT); // npm writes beside it
  // The function's own scripts are for whoever develops it; those of its
  // dependencies run.
  const manifest = JSON.parse(fs.readFileSync(`${OUT}/package.json`, 'utf8').replace(/^\ufeff/, ''));
  delete manifest.scripts;
  fs.writeFileSync(`${OUT}/package.json`, JSON.stringify(manifest));
  const locked = fs.existsSync(`${OUT}/package-lock.json`) || fs.existsSync(`${OUT}/npm-shrinkwrap.json`);
  const done = spawnSync(process.execPath, [cli, locked ? 'ci' : 'install', '--omit=dev', '--no-audit', '--no-fund'], {
    cwd: OUT, env: environment(), stdio: ['ignore', 'inherit', 'inherit'],
  });
  if (done.error) throw done.error;
  if (done.status !== 0) {
    throw new Failure({ kind: 'installer', installer: 'npm', status: done.status ?? -1 });
  }
}

/** Calls f with the path of each entry below dir, directories first. */
function walk(dir, f) {
  for (const name of fs.readdirSync(`${OUT}/${dir}`).sort()) {
    const p = `${dir}/${name}`;
    const info = fs.lstatSync(`${OUT}/${p}`);
    f(p, info);
    if (info.isDirectory()) walk(p, f);
  }
}

/** Returns bytes and number of files, and the largest packages. */
function measure() {
  let bytes = 0;
  let files = 0;
  const sizes = new Map();
  if (fs.existsSync(`${OUT}/${MODULES}`)) {
    walk(MODULES, (p, info) => {
      if (info.isDirectory()) return;
      files++;
      bytes += info.size;
      const parts = p.split('/');
      const name = parts[1].startsWith('@') ? parts.slice(1, 3).join('/') : parts[1];
      sizes.set(name, (sizes.get(name) ?? 0) + info.size);
    });
  }
  const largest = [...sizes].sort((a, b) => b[1] - a[1]).slice(0, 5);
  return { ok: true, bytes, files, largest };
}

// ---- output ----

let fd = -1;

function write(buffer) {
  for (let start = 0; start < buffer.length;) {
    try {
      start += fs.writeSync(fd, buffer, start);
    } catch (e) {
      if (e.code !== 'EAGAIN') throw e;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
    }
  }
}

/** Returns a block of a tar archive. */
function block(name, type, size, mode, link) {
  const b = Buffer.alloc(512);
  const octal = (value, at, length) => b.write(value.toString(8).padStart(length - 1, '0'), at);
  b.write(name, 0, 100);
  octal(mode, 100, 8);
  octal(0, 108, 8);
  octal(0, 116, 8);
  octal(size, 124, 12);
  octal(0, 136, 12);
  b.write('        ', 148);
  b.write(type, 156);
  b.write(link, 157, 100);
  b.write('ustar  \0', 257);
  let sum = 0;
  for (const byte of b) sum += byte;
  b.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return b;
}

const pad = (n) => Buffer.alloc((512 - (n % 512)) % 512);

/** Writes the header of an entry, with its long names before it as GNU tar does. */
function header(name, type, size, mode, link = '') {
  for (const [text, kind] of [[link, 'K'], [name, 'L']]) {
    const long = Buffer.from(`${text}\0`);
    if (long.length > 100) write(Buffer.concat([block('././@LongLink', kind, long.length, 0o644, ''), long, pad(long.length)]));
  }
  write(block(name, type, size, mode, link));
}

function send() {
  const chunk = Buffer.allocUnsafe(256 << 10);
  header(`${MODULES}/`, '5', 0, 0o755);
  walk(MODULES, (p, info) => {
    if (info.isDirectory()) {
      header(`${p}/`, '5', 0, 0o755);
    } else if (info.isSymbolicLink()) {
      header(p, '2', 0, 0o777, fs.readlinkSync(`${OUT}/${p}`));
    } else if (info.isFile()) {
      header(p, '0', info.size, info.mode & 0o100 ? 0o755 : 0o644);
      const file = fs.openSync(`${OUT}/${p}`, 'r');
      for (let left = info.size; left > 0;) {
        const n = fs.readSync(file, chunk, 0, Math.min(chunk.length, left), null);
        if (n === 0) throw new Error(`${p} became shorter`);
        write(chunk.subarray(0, n));
        left -= n;
      }
      fs.closeSync(file);
      write(pad(info.size));
    }
  });
  write(Buffer.alloc(1024));
}

function main() {
  fd = Number(process.env.HEARTH_FD);
  delete process.env.HEARTH_FD;
  delete process.env.HEARTH_SECRET;
  let head;
  try {
    install();
    head = measure();
  } catch (e) {
    head = e.head ?? { ok: false, kind: 'system', message: String(e.message) };
  }
  write(Buffer.from(`${JSON.stringify(head)}\n`));
  if (head.ok && head.files > 0) send();
  if (!head.ok) process.exitCode = 1;
}

main();

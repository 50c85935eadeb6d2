'use strict';
// Unpacks the tar archive that may follow INIT, as it arrives.

const fs = require('fs');
const { dirname, join, normalize } = require('path');

const BLOCK = 512;
const MAX_NAME = 1 << 20;

function text(block, start, size) {
  const field = block.subarray(start, start + size);
  const end = field.indexOf(0);
  return field.toString('utf8', 0, end < 0 ? size : end);
}

function number(block, start, size) {
  if (block[start] & 0x80) { // GNU: binary
    let n = block[start] & 0x7f;
    for (let i = 1; i < size; i++) n = n * 256 + block[start + i];
    return n;
  }
  const digits = text(block, start, size).trim();
  const n = digits === '' ? 0 : parseInt(digits, 8);
  if (!(n >= 0)) throw new Error(`the archive has a bad number ${JSON.stringify(digits)}`);
  return n;
}

function pax(data) {
  const out = {};
  for (let pos = 0; pos < data.length;) {
    const space = data.indexOf(32, pos);
    const size = Number(data.toString('latin1', pos, space));
    if (space < 0 || !(size > space - pos) || pos + size > data.length) throw new Error('the archive has a bad extended header');
    const equals = data.indexOf(61, space);
    out[data.toString('utf8', space + 1, equals)] = data.toString('utf8', equals + 1, pos + size - 1);
    pos += size;
  }
  return out;
}

module.exports = class Archive {
  constructor(code) {
    this.code = code;
    this.complete = false;
    this.error = null;
    this.rest = Buffer.alloc(0);
    this.left = 0; // bytes of the entry's content to come
    this.padding = 0;
    this.file = -1; // open file that gets the content
    this.chunks = null; // or where an extended header is gathered
    this.kind = '';
    this.extended = {};
    this.links = [];
    this.finished = false; // the end marker has come
    this.dirs = new Set();
  }

  /** Takes a chunk; an error is kept for check(). */
  add(chunk) {
    if (this.error !== null) return;
    try {
      if (this.dirs.size === 0) this.makeDir(this.code);
      this.take(this.rest.length ? Buffer.concat([this.rest, chunk]) : chunk);
    } catch (e) {
      this.error = e;
    }
  }

  end() {
    this.complete = true;
    if (this.error === null) {
      try {
        if (this.left > 0 || (this.rest.length > 0 && !this.finished)) throw new Error('the archive ends in the middle of a file');
        this.makeDir(this.code);
        for (const [path, target] of this.links) {
          fs.rmSync(path, { force: true });
          fs.symlinkSync(target, path);
        }
      } catch (e) {
        this.error = e;
      }
    }
    if (this.file >= 0) fs.closeSync(this.file);
  }

  check() {
    if (this.error !== null) {
      const e = new Error(`the function's files cannot be unpacked into ${this.code}: ${this.error.message}`);
      e.name = 'Runtime.InvalidArchive';
      throw e;
    }
  }

  makeDir(path) {
    if (this.dirs.has(path)) return;
    fs.mkdirSync(path, { recursive: true });
    this.dirs.add(path);
  }

  take(data) {
    let pos = 0;
    for (;;) {
      if (this.left > 0) {
        const n = Math.min(this.left, data.length - pos);
        if (n === 0) break;
        const part = data.subarray(pos, pos + n);
        if (this.file >= 0) this.write(part);
        else if (this.chunks !== null) this.chunks.push(Buffer.from(part));
        pos += n;
        this.left -= n;
        if (this.left > 0) break;
        this.close();
      }
      if (data.length - pos < this.padding) break;
      pos += this.padding;
      this.padding = 0;
      if (data.length - pos < BLOCK) break;
      const block = data.subarray(pos, pos + BLOCK);
      pos += BLOCK;
      if (this.finished || block.every((b) => b === 0)) {
        this.finished = true;
        continue;
      }
      this.entry(block);
    }
    this.rest = Buffer.from(data.subarray(pos));
  }

  write(data) {
    for (let pos = 0; pos < data.length;) pos += fs.writeSync(this.file, data, pos); // less if the disk is nearly full
  }

  /** Starts the entry that a header block describes. */
  entry(block) {
    let sum = 256; // the checksum's own field counts as spaces
    for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += block[i];
    if (sum !== number(block, 148, 8)) throw new Error('the archive has a header with a wrong checksum');
    this.kind = String.fromCharCode(block[156]);
    this.left = number(block, 124, 12);
    const meta = 'xgLK'.includes(this.kind);
    if (!meta && this.extended.size !== undefined) this.left = Number(this.extended.size);
    if (!Number.isSafeInteger(this.left)) throw new Error('the archive has a file of impossible size');
    this.padding = (BLOCK - this.left % BLOCK) % BLOCK;
    if (meta) {
      if (this.left > MAX_NAME) throw new Error('the archive has a too large extended header');
      this.chunks = [];
      if (this.left === 0) this.close();
      return;
    }
    let name = text(block, 0, 100);
    const prefix = text(block, 257, 5) === 'ustar' && block[263] !== 32 ? text(block, 345, 155) : '';
    if (prefix) name = `${prefix}/${name}`;
    name = normalize(this.extended.path ?? name);
    const target = this.extended.linkpath ?? text(block, 157, 100);
    this.extended = {};
    if (name.startsWith('/') || name === '..' || name.startsWith('../')) throw new Error(`the archive's file ${JSON.stringify(name)} lies outside of it`);
    const path = join(this.code, name);
    const mode = number(block, 100, 8) & 0o777;
    if (this.kind === '5') {
      this.makeDir(path);
    } else if (this.kind === '0' || this.kind === '\0' || this.kind === '7') {
      this.makeDir(dirname(path));
      this.file = fs.openSync(path, 'w', mode | 0o600);
      if (this.left === 0) this.close();
    } else if (this.kind === '2') { // made last, so that nothing is written through it
      const inside = normalize(join(dirname(name), target));
      if (target.startsWith('/') || inside === '..' || inside.startsWith('../')) throw new Error(`the archive's link ${JSON.stringify(name)} points outside of it`);
      this.makeDir(dirname(path));
      this.links.push([path, target]);
    } else if (this.kind === '1') {
      const source = normalize(target);
      if (source.startsWith('/') || source.startsWith('..')) throw new Error(`the archive's link ${JSON.stringify(name)} points outside of it`);
      this.makeDir(dirname(path));
      fs.copyFileSync(join(this.code, source), path);
    } else {
      throw new Error(`the archive's file ${JSON.stringify(name)} is of an unsupported type`);
    }
  }

  /** Ends the entry whose content is complete. */
  close() {
    if (this.file >= 0) {
      fs.closeSync(this.file);
      this.file = -1;
    }
    if (this.chunks !== null) {
      const data = Buffer.concat(this.chunks);
      this.chunks = null;
      if (this.kind === 'x') Object.assign(this.extended, pax(data));
      else if (this.kind === 'L') this.extended.path = text(data, 0, data.length);
      else if (this.kind === 'K') this.extended.linkpath = text(data, 0, data.length);
    }
  }
};

'use strict';
// The part of Hearth's guest for Node.js that is loaded with the first WebSocket.

module.exports = (g, { Canceled, wait, isUtf8 }) => {
  const TEXT = 1, BINARY = 2, CLOSE = 8;
  const HEAD = 5; // bytes before the payload of a message
  const BURST = 256 << 10; // bytes written at a time
  const ABNORMAL = 1006;

  /** The connection was closed before the handler was done with it. */
  class WebSocketClosed extends Error {
    constructor(code, reason) {
      super(`the WebSocket is closed (${code}${reason ? ` ${reason}` : ''})`);
      this.name = 'WebSocketClosed';
      this.code = code;
      this.reason = reason;
    }
  }

  /** context.websocket: one connection. */
  class WebSocket {
    static Closed = WebSocketClosed;
    #call;
    #max;
    #head = Buffer.allocUnsafe(HEAD); // of the message that arrives
    #payload = null; // of it, once its head is there
    #have = 0; // bytes of the head, then of the payload
    #accepted = false;
    #refused = false;
    #closing = false; // the handler has sent its close
    #tail = null; // the last of what waits to be sent

    constructor(call) {
      this.#call = call;
      this.#max = call.websocket;
      this.closeCode = null; // of the client or Hearth, once it has closed
      this.closeReason = '';
      call.websocket = this;
    }

    // ---- the handshake ----

    /** What the client offers, the one it likes best first. */
    get subprotocols() {
      const offered = this.#call.event.headers?.['sec-websocket-protocol'] ?? '';
      return offered.split(',').map((s) => s.trim()).filter((s) => s !== '');
    }

    /** Accepts the connection; send and receive do so too. */
    accept({ subprotocol, headers } = {}) {
      if (this.#accepted) throw new Error('the WebSocket is accepted already');
      if (this.#refused) throw new Error('the WebSocket is refused already: the handler has returned a response');
      if (this.#call.done) throw this.#gone();
      headers = { ...headers };
      if (subprotocol !== undefined && subprotocol !== null) {
        if (!this.subprotocols.includes(subprotocol)) throw new RangeError(`the client does not offer the subprotocol ${subprotocol}`);
        headers['sec-websocket-protocol'] = subprotocol;
      }
      const head = JSON.parse(g.encodeHead({ headers }, 200, null));
      head.status = 101;
      this.#accepted = true;
      g.send(g.frame(g.RESPONSE, this.#call.sid, g.stringify(head)));
    }

    // ---- what comes ----

    /** Returns the next message, a string or Buffer; null once the connection is closed. */
    async receive() {
      if (!this.#accepted) this.accept();
      const call = this.#call;
      for (;;) {
        const message = this.#take();
        if (message !== null || this.closed) return message;
        if (call.canceled !== null) throw new Canceled('the call was canceled');
        await wait(call);
      }
    }

    async* [Symbol.asyncIterator]() {
      for (;;) {
        const message = await this.receive();
        if (message === null) return;
        yield message;
      }
    }

    /** Copies what has arrived into target from this.#have on; true if that is full. */
    #fill(target) {
      const { parts } = this.#call;
      while (this.#have < target.length) {
        if (parts === null || parts.length === 0) return false;
        const n = parts[0].copy(target, this.#have);
        this.#have += n;
        if (n === parts[0].length) parts.shift(); else parts[0] = parts[0].subarray(n);
        g.consume(this.#call, n);
      }
      return true;
    }

    /** Returns a message that has arrived, else null. */
    #take() {
      const call = this.#call;
      while (!this.closed) {
        if (!this.#fill(this.#payload ?? this.#head)) {
          if (call.complete) g.protocolError('END of a WebSocket that was not closed');
          return null;
        }
        this.#have = 0;
        const kind = this.#head[0];
        if (this.#payload === null) {
          const n = this.#head.readUInt32BE(1);
          if (kind !== TEXT && kind !== BINARY && kind !== CLOSE || n > Math.max(this.#max, 125) || kind === CLOSE && n < 2) {
            g.protocolError(`a WebSocket message of kind ${kind} and ${n} bytes`);
            return null;
          }
          this.#payload = Buffer.allocUnsafe(n);
          continue;
        }
        const payload = this.#payload;
        this.#payload = null;
        if (kind === BINARY) return payload;
        if (!isUtf8(kind === TEXT ? payload : payload.subarray(2))) {
          g.protocolError('text of a WebSocket that is not UTF-8');
          return null;
        }
        if (kind === TEXT) return payload.toString();
        this.closeCode = payload.readUInt16BE(0);
        this.closeReason = payload.toString('utf8', 2);
      }
      return null;
    }

    // ---- what goes ----

    /** True once nothing can be sent or received any more. */
    get closed() { return this.#closing || this.closeCode !== null || this.#call.done; }

    #gone() { return new WebSocketClosed(this.closeCode ?? ABNORMAL, this.closeReason); }

    /** Sends a string as text, bytes as binary; waits while the client is slow to read. */
    send(message) {
      let kind = BINARY;
      if (typeof message === 'string') {
        kind = TEXT;
        message = Buffer.from(message);
      } else if (ArrayBuffer.isView(message)) {
        message = Buffer.from(message.buffer, message.byteOffset, message.byteLength);
      } else if (message instanceof ArrayBuffer) {
        message = Buffer.from(message);
      } else {
        throw new TypeError(`a message must be a string or bytes, not ${message === null ? 'null' : typeof message}`);
      }
      if (message.length > this.#max) {
        throw new RangeError(`the message has ${message.length} bytes, the limit is ${this.#max} (websocket.max_message in hearth.yaml)`);
      }
      if (!this.#accepted) this.accept();
      return this.#send(kind, message);
    }

    /** Closes the connection; what follows in the handler can do without it. */
    close(code = 1000, reason = '') {
      if (!Number.isInteger(code) || !((code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999))) {
        throw new RangeError(`${code} is no code to close a WebSocket with; an application's own are 4000 to 4999`);
      }
      const text = Buffer.from(String(reason));
      if (text.length > 123) throw new RangeError(`the reason has ${text.length} bytes, the limit is 123`);
      if (!this.#accepted) this.accept();
      return this.#send(CLOSE, Buffer.concat([Buffer.from([code >> 8, code & 255]), text]));
    }

    #send(kind, payload) {
      const data = Buffer.allocUnsafe(HEAD + payload.length);
      data[0] = kind;
      data.writeUInt32BE(payload.length, 1);
      data.set(payload, HEAD);
      const call = this.#call;
      if (this.#tail === null && data.length <= g.CHUNK && data.length <= call.window && !this.closed && !call.complete && call.canceled === null) {
        if (kind === CLOSE) this.#closing = true;
        call.window -= data.length;
        g.send(g.frame(g.DATA, call.sid, data));
        return Promise.resolve();
      }
      const sent = this.#transmit(kind, data, this.#tail);
      // A handler may leave it at that; a rejection nobody handles would end the process.
      const tail = sent.catch(() => {}).then(() => { if (this.#tail === tail) this.#tail = null; });
      this.#tail = tail;
      return sent;
    }

    /** Sends data once what is before it was, as the window allows. */
    async #transmit(kind, data, before) {
      if (before !== null) await before;
      const call = this.#call;
      if (this.closed || call.complete) {
        if (kind === CLOSE) return;
        while (!this.closed && this.#take() !== null) { /* nobody can answer these any more */ }
        throw this.#gone();
      }
      if (kind === CLOSE) this.#closing = true;
      for (let pos = 0; pos < data.length;) {
        for (;;) {
          if (call.done) throw this.#gone();
          if (call.canceled !== null) throw new Canceled('the call was canceled');
          if (call.window > 0) break;
          await wait(call);
        }
        const end = Math.min(data.length, pos + call.window, pos + BURST);
        call.window -= end - pos;
        const out = [];
        while (pos < end) {
          const n = Math.min(g.CHUNK, end - pos);
          out.push(g.header(g.DATA, call.sid, n), data.subarray(pos, pos + n));
          pos += n;
        }
        g.send(Buffer.concat(out));
      }
    }

    // ---- the end ----

    /** Ends the call of a handler that has returned. */
    respond(value) {
      const call = this.#call;
      if (this.#accepted) return this.#finish();
      if (value === undefined || value === null) {
        throw new g.InvalidResponse('the handler neither accepted the WebSocket nor returned a response that refuses it');
      }
      this.#refused = true;
      call.websocket = null;
      g.respond(call, value);
    }

    /** Tells whether a handler that threw e has just ended, as its client had left. */
    failed(e) {
      if (!this.#accepted || !(e instanceof WebSocketClosed)) return false;
      this.#finish();
      return true;
    }

    #finish() {
      const call = this.#call;
      g.finish(call, g.header(g.END, call.sid, 0));
      if (call.waiters !== null) g.wake(call); // of what outlives the handler
    }
  }

  return WebSocket;
};

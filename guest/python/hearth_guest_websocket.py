"""The part of Hearth's guest for Python that is loaded with the first WebSocket.

g is the module of hearth_guest_core.py, which sets it.
"""

g = g  # noqa: F821
more = g.load_more()
more.OURS += ((lambda: 0).__code__.co_filename,)

TEXT, BINARY, CLOSE = 1, 2, 8
HEAD = 5  # bytes before the payload of a message
CLOSED_ABNORMALLY = 1006


class WebSocketClosed(ConnectionError):
    """The connection was closed before the handler was done with it."""

    def __init__(self, code, reason):
        ConnectionError.__init__(self, "the WebSocket is closed (%d%s)" % (code, " " + reason if reason else ""))
        self.code = code
        self.reason = reason


class Nothing:
    """What accept returns, so that it may be awaited."""

    def __await__(self):
        return iter(())


NOTHING = Nothing()


class WebSocket:
    """context.websocket: one connection. In async handlers what waits is awaited."""

    __slots__ = ("_call", "_max", "_buf", "_lock", "_accepted", "_refused", "_closing", "close_code", "close_reason")

    Closed = WebSocketClosed

    def __init__(self, call):
        self._call = call
        self._max = call.websocket
        self._buf = b""  # received, not yet a message
        self._lock = None  # asyncio.Lock, once two tasks have something to send
        self._accepted = self._refused = False
        self._closing = False  # the handler has sent its close
        self.close_code = None  # of the client or Hearth, once it has closed
        self.close_reason = ""
        call.websocket = self

    def __repr__(self):
        return "<WebSocket %s %s>" % (self._call.id, "closed" if self.closed else "open" if self._accepted else "new")

    # ---- the handshake ----

    @property
    def subprotocols(self):
        """What the client offers, the one it likes best first."""
        headers = (self._call.event or {}).get("headers") or {}
        return [s.strip() for s in headers.get("sec-websocket-protocol", "").split(",") if s.strip()]

    def accept(self, subprotocol=None, headers=None):
        """Accepts the connection; send and receive do so too."""
        if self._accepted:
            raise RuntimeError("the WebSocket is accepted already")
        if self._refused:
            raise RuntimeError("the WebSocket is refused already: the handler has returned a response")
        if self._call.done:
            raise self._gone()
        headers = dict(headers or ())
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise ValueError("the client does not offer the subprotocol %r" % (subprotocol,))
            headers["sec-websocket-protocol"] = subprotocol
        head = g.loads(g.encode_head({"headers": headers}, 200, None))
        head["status"] = 101
        self._accepted = True
        g.send(g.frame(g.RESPONSE, self._call.sid, g.dumps(head).encode()))
        return NOTHING

    def _refuse(self):
        """A response is about to be sent."""
        self._refused = True
        self._call.websocket = None

    # ---- what comes ----

    def receive(self):
        """Returns the next message, a str or bytes; None once the connection is closed."""
        if not self._accepted:
            self.accept()
        return self._receive_async() if more.loop is not None else self._receive_sync()

    def _receive_sync(self):
        call = self._call
        while True:
            message = self._take()
            if message is not None or self.closed:
                return message
            if call.canceled is not None:
                raise more.Canceled
            g.pump()

    async def _receive_async(self):
        while True:
            message = self._take()
            if message is not None or self.closed:
                return message
            await more.wait(self._call)

    def __iter__(self):
        return self

    def __next__(self):
        message = self.receive()
        if message is None:
            raise StopIteration
        return message

    def __aiter__(self):
        return self

    async def __anext__(self):
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message

    def _take(self):
        """Returns a message that has arrived, else None."""
        call = self._call
        while not self.closed:
            buf = self._buf
            have = len(buf)
            if have >= HEAD:
                n = int.from_bytes(buf[1:HEAD], "big")
                end = HEAD + n
                if buf[0] not in (TEXT, BINARY, CLOSE) or n > max(self._max, 125) or buf[0] == CLOSE and n < 2:
                    g.protocol_error("a WebSocket message of kind %d and %d bytes" % (buf[0], n))
                if have >= end:
                    kind, payload = buf[0], bytes(buf[HEAD:end])
                    if have == end:
                        self._buf = b""
                    else:
                        if type(buf) is bytes:
                            self._buf = buf = bytearray(buf)
                        del buf[:end]
                    return self._message(kind, payload)
            if not call.parts:
                if call.complete:
                    g.protocol_error("END of a WebSocket that was not closed")
                return None
            chunk = call.parts.pop(0)
            g.consume(call, len(chunk))
            if not buf:
                self._buf = chunk
            elif type(buf) is bytes:
                self._buf = bytearray(buf + chunk)
            else:
                buf += chunk
        return None

    def _message(self, kind, payload):
        if kind == BINARY:
            return payload
        try:
            if kind == TEXT:
                return str(payload, "utf-8")
            self.close_reason = str(payload[2:], "utf-8")
        except UnicodeDecodeError:
            g.protocol_error("text of a WebSocket that is not UTF-8")
        self.close_code = int.from_bytes(payload[:2], "big")
        return None

    # ---- what goes ----

    @property
    def closed(self):
        """True once nothing can be sent or received any more."""
        return self._closing or self.close_code is not None or self._call.done

    def _gone(self):
        return WebSocketClosed(self.close_code or CLOSED_ABNORMALLY, self.close_reason)

    def send(self, message):
        """Sends a str as text, bytes as binary; waits while the client is slow to read."""
        if isinstance(message, str):
            kind, data = TEXT, message.encode("utf-8")
        elif isinstance(message, g.BYTES):
            kind, data = BINARY, bytes(message)
        else:
            raise TypeError("a message must be str or bytes, not %s" % type(message).__name__)
        if len(data) > self._max:
            raise ValueError("the message has %d bytes, the limit is %d (websocket.max_message in hearth.yaml)" % (len(data), self._max))
        if not self._accepted:
            self.accept()
        return self._send(kind, data)

    def close(self, code=1000, reason=""):
        """Closes the connection; what follows in the handler can do without it."""
        if type(code) is not int or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
            raise ValueError("%r is no code to close a WebSocket with; an application's own are 4000 to 4999" % (code,))
        data = reason.encode("utf-8")
        if len(data) > 123:
            raise ValueError("the reason has %d bytes, the limit is 123" % len(data))
        if not self._accepted:
            self.accept()
        return self._send(CLOSE, code.to_bytes(2, "big") + data)

    def _send(self, kind, payload):
        data = b"%c%b%b" % (kind, len(payload).to_bytes(4, "big"), payload)
        if more.loop is not None:
            return self._send_async(kind, data)
        self._poll()
        if self._over(kind):
            return None
        if kind == CLOSE:
            self._closing = True
        more.send_sync(self._call, b"", data)
        return None

    def _over(self, kind):
        """Raises if the connection is closed; a second close is no error."""
        if not self.closed and not self._call.complete:
            return False
        if kind == CLOSE:
            return True
        while not self.closed and self._take() is not None:
            pass  # nobody can answer these any more
        raise self._gone()

    async def _send_async(self, kind, data):
        call = self._call
        if self._over(kind):
            return
        n = len(data)
        if n <= g.CHUNK and n <= call.window and (self._lock is None or not self._lock.locked()):
            if kind == CLOSE:
                self._closing = True
            call.window -= n
            return g.send(g.header(g.DATA, call.sid, n) + data)
        if self._lock is None:
            from asyncio import Lock
            self._lock = Lock()
        async with self._lock:
            if self._over(kind):
                return
            if kind == CLOSE:
                self._closing = True
            pos = 0
            while pos < len(data):
                while call.window <= 0:
                    if call.done:
                        raise self._gone()
                    await more.wait(call)
                out, pos = more.take(call, data, pos)
                g.send(b"".join(out))

    def _poll(self):
        """Reads what the host has sent; raises if the call was canceled."""
        more.make_check(self._call)()

    # ---- the end ----

    def _respond(self, result):
        """Ends the call of a handler that has returned."""
        call = self._call
        if not self._accepted:
            if result is None:
                raise g.InvalidResponse(
                    "the handler neither accepted the WebSocket nor returned a response that refuses it")
            self._refuse()
            return g.respond(call, result)
        close = getattr(result, "close", None)
        if close is not None and hasattr(result, "__next__"):
            close()
        self._finish()

    def _failed(self, e):
        """Tells whether a handler that raised e has just ended, as its client had left."""
        if not self._accepted or not isinstance(e, WebSocketClosed):
            return False
        self._finish()
        return True

    def _finish(self):
        call = self._call
        g.finish(call, g.header(g.END, call.sid, 0))
        if call.waiter is not None:
            call.waiter.set()  # tasks that outlive the handler

"""Hearth's guest for Python 3.9 and later.

It speaks docs/guest-protocol.md on the descriptor named by HEARTH_FD.
hearth_guest.py loads it. This file, and what it loads at once, is what every start
pays for, so it imports only modules that the interpreter has loaded anyway or that
are built in: hearth_guest_output.py writes frames, hearth_guest_response.py makes
responses, and hearth_guest_load.py loads the function. What only some calls need
(streams, async handlers, tracebacks, warm-ups) is in hearth_guest_more.py and
loaded when first needed, as is what snapshots need in hearth_guest_snapshot.py,
archives in hearth_guest_tar.py and WebSockets in hearth_guest_websocket.py.

One thread does everything. Sync handlers run in the loop of main(), one call
after the other; the first handler that returns an awaitable or an async
generator moves the guest into an asyncio loop for the rest of its life.
"""

import posix
import sys
from time import time

# Frame types.
HELLO, INIT, INVOKE, DATA, END, CANCEL, PING, SHUTDOWN, WINDOW, SNAPSHOT, RESTORED = range(1, 12)
READY, INIT_ERROR, RESPONSE, ERROR, LOG, PONG = range(0x11, 0x17)

MAX_PAYLOAD = 1 << 20
WINDOW_SIZE = 1 << 20
CHUNK = 64 << 10
PROTOCOL_ERROR = 70  # exit status

HEAD_JSON = b'{"status":200,"headers":[["content-type","application/json"]]}'
HEAD_TEXT = b'{"status":200,"headers":[["content-type","text/plain; charset=utf-8"]]}'
HEAD_BYTES = b'{"status":200,"headers":[["content-type","application/octet-stream"]]}'
BYTES = (bytes, bytearray, memoryview)


class Call:
    """One call, from INVOKE to its END or ERROR."""

    __slots__ = (
        "sid", "id", "deadline", "http", "event", "parts", "complete", "streams",
        "window", "credit", "consumed", "canceled", "done", "text", "task", "begun", "waiter", "warmup",
        "websocket", "traceparent", "tracestate",
    )

    def __init__(self, sid, id, deadline, http, event, body):
        self.sid = sid
        self.id = id
        self.deadline = deadline
        self.http = http
        self.event = event
        self.parts = [] if body else None  # chunks of the body
        self.complete = not body  # END has arrived
        self.streams = False  # the handler reads the body as a stream
        self.window = WINDOW_SIZE  # bytes that may be sent
        self.credit = WINDOW_SIZE  # bytes the host may send
        self.consumed = 0  # bytes taken since the last WINDOW
        self.canceled = None  # the reason, once CANCEL has arrived
        self.done = False
        self.text = ["", "", ""]  # unfinished lines of stdout (1) and stderr (2)
        self.task = None  # asyncio.Task
        self.begun = False  # the task has run
        self.waiter = None  # asyncio.Event set on more window or body
        self.warmup = False
        self.websocket = None  # the greatest size of a message, then the WebSocket
        self.traceparent = None  # W3C Trace Context of the handler's span
        self.tracestate = None


class Context:
    """What a handler gets as its second argument."""

    function_name = ""
    function_version = ""
    memory_limit_in_mb = 0
    invoked_function_arn = ""
    log_group_name = ""
    log_stream_name = ""
    client_context = None
    identity = None
    body = None
    websocket = None

    def __init__(self, call):
        self.aws_request_id = call.id
        self.traceparent = call.traceparent
        self.tracestate = call.tracestate
        self._deadline = call.deadline

    def get_remaining_time_in_millis(self):
        return max(0, int(self._deadline - time() * 1000))

    def __repr__(self):
        return "Context(aws_request_id=%r, function_name=%r, function_version=%r)" % (
            self.aws_request_id, self.function_name, self.function_version)


# ---- state ----

fd = -1
secret = ""
buffer = b""  # received, not yet dispatched
missing = 0  # bytes the frame at the start of buffer still lacks
greeted = False  # HELLO has arrived
init = None  # the head of INIT
archive = None  # chunks of the archive while it arrives
archive_complete = False
calls = {}  # stream id -> Call, from INVOKE to END or ERROR
ready = []  # calls that can be run
last_sid = 0
stopping = False
handler = None
warmup = None  # the module's function of that name
request_stream = False
on_ready = ready.append  # what to do with a call that can be run
idle = Call(0, "", 0, False, None, False)  # owns the output outside of calls
current = idle  # the call that runs, in sync mode
find_current = None  # returns the call of the asyncio task
more = None  # hearth_guest_more
sockets = None  # hearth_guest_websocket
forked = False  # this process is a child made by the handler
loaded = False  # READY has answered INIT
saved = False  # SNAPSHOT was granted; only RESTORED may follow
preloaded = frozenset()  # names of modules that hearth_zygote.py has loaded


def load_part(name):
    """Loads one of the files beside this one."""
    module = type(sys)(name)
    module.g = sys.modules[__name__]
    exec(read_code(name), module.__dict__)  # read_code: set by hearth_guest.py
    return module


def load_more():
    """Loads the part of the guest that most calls do without."""
    global more
    if more is None:
        more = load_part("hearth_guest_more")
    return more


# ---- JSON: what json.loads and json.dumps do by default, without importing
# json, which would double the start-up time ----

def _default(o):
    raise TypeError("Object of type %s is not JSON serializable" % o.__class__.__name__)


try:
    import _json

    class _Scanner:
        strict = True
        object_hook = object_pairs_hook = None
        parse_float = float
        parse_int = int
        parse_constant = {
            "-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan"),
        }.__getitem__
        memo = {}

    _markers = {}
    _scan = _json.make_scanner(_Scanner)
    _encode = _json.make_encoder(
        _markers, _default, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True)

    def loads(data):
        s = str(data, "utf-8")
        try:
            value, end = _scan(s, 0)
            if end == len(s):
                return value
        except (StopIteration, SystemError):  # the latter in older versions, while json is not imported
            pass
        from json import loads  # white space around the value, or an error
        return loads(s)

    def dumps(value):
        try:
            return "".join(_encode(value, 0))
        except BaseException:
            _markers.clear()
            raise

except (ImportError, AttributeError, TypeError):
    from json import dumps, loads as _loads

    def loads(data):
        return _loads(str(data, "utf-8"))


# ---- the parts that every start needs ----

output = load_part("hearth_guest_output")
header, frame, send, finish, Output = output.header, output.frame, output.send, output.finish, output.Output
responses = load_part("hearth_guest_response")
InvalidResponse, http_response = responses.InvalidResponse, responses.http_response
http_head, encode_head = responses.http_head, responses.encode_head
load = load_part("hearth_guest_load").load


# ---- input ----

def protocol_error(why):
    """Ends the guest because the host broke a rule."""
    try:
        posix.write(2, ("hearth: protocol error: %s\n" % why).encode("utf-8", "replace"))
    except OSError:
        pass
    posix._exit(PROTOCOL_ERROR)


def pump():
    """Reads what has arrived, waiting for some, and dispatches whole frames."""
    global buffer, missing
    data = posix.read(fd, missing if missing > 65536 else 65536)
    if not data:
        posix._exit(0)
    if buffer:
        data = buffer + data
    size = len(data)
    pos = 0
    from_bytes = int.from_bytes
    while size - pos >= 9:
        head = from_bytes(data[pos:pos + 9], "big")
        n = head >> 40
        if n > MAX_PAYLOAD:
            protocol_error("a frame of %d bytes" % n)
        start = pos + 9
        pos = start + n
        if pos > size:
            pos = start - 9
            missing = start + n - size
            break
        dispatch(head >> 32 & 0xFF, head & 0xFFFFFFFF, data[start:start + n])
    else:
        missing = 0
    buffer = data[pos:] if pos < size else b""


def parse(payload, what):
    try:
        head = loads(payload)
    except (ValueError, RecursionError):
        head = None
    if type(head) is not dict:
        protocol_error(what + " is no JSON object")
    return head


def dispatch(kind, sid, payload):
    global last_sid, stopping, greeted, init, archive, archive_complete, saved
    if saved and kind != RESTORED:
        protocol_error("a frame of type %#x after SNAPSHOT" % kind)
    if kind == INVOKE:
        if init is None:
            protocol_error("INVOKE before INIT")
        if not sid & 1 or sid <= last_sid:
            protocol_error("bad stream id %d of INVOKE" % sid)
        if stopping:
            protocol_error("INVOKE after SHUTDOWN")
        head = parse(payload, "INVOKE")
        get = head.get
        id, deadline, body, event, invoked = (
            get("id"), get("deadline_ms"), get("body", False), get("event"), get("kind"))
        socket = invoked == "websocket"
        http = invoked == "http" or socket
        if (type(id) is not str or type(deadline) not in (int, float) or type(body) is not bool
                or not http and invoked != "event" and invoked != "warmup" or http and type(event) is not dict
                or socket and (not body or type(get("max_message")) is not int)):
            protocol_error("INVOKE lacks a field or has a wrong one")
        last_sid = sid
        call = calls[sid] = Call(sid, id, deadline, http, event, body)
        call.traceparent = get("traceparent")
        call.tracestate = get("tracestate")
        if invoked == "warmup":
            call.warmup = True
        if socket:
            call.websocket = get("max_message")
            call.streams = True
            on_ready(call)
        elif request_stream and not call.warmup:
            call.streams = True
            on_ready(call)
        elif not body:
            on_ready(call)
    elif kind == DATA or kind == END:
        if sid == 0:
            if archive is None or archive_complete:
                protocol_error("DATA or END on stream 0 without an archive")
            if kind == DATA:
                archive.append(payload)
            else:
                if payload:
                    protocol_error("END with a payload")
                archive_complete = True
            return
        call = calls.get(sid)
        if call is None:
            if sid > last_sid or not sid & 1:
                protocol_error("DATA or END of the unknown stream %d" % sid)
            return  # crossed the end of the call
        if call.complete:
            protocol_error("DATA or END after END")
        if kind == DATA:
            n = len(payload)
            call.credit -= n
            if call.credit < 0:
                protocol_error("the window was exceeded")
            call.parts.append(payload)
            if call.waiter is not None:
                call.waiter.set()
            if not call.streams:
                consume(call, n)
        else:
            if payload:
                protocol_error("END with a payload")
            call.complete = True
            if call.waiter is not None:
                call.waiter.set()
            if not call.streams:
                on_ready(call)
    elif kind == WINDOW:
        if len(payload) != 4:
            protocol_error("WINDOW without a number")
        call = calls.get(sid)
        if call is None:
            if sid > last_sid or not sid & 1:
                protocol_error("WINDOW of the unknown stream %d" % sid)
            return
        call.window += int.from_bytes(payload, "big")
        if call.waiter is not None:
            call.waiter.set()
    elif kind == CANCEL:
        head = parse(payload, "CANCEL")
        call = calls.get(sid)
        if call is None:
            if sid > last_sid or not sid & 1:
                protocol_error("CANCEL of the unknown stream %d" % sid)
            return
        call.canceled = str(head.get("reason"))
        if call.task is not None:
            more.cancel(call)
        elif not call.complete and not call.streams:
            on_ready(call)  # its body is of no more interest; it ends canceled
    elif kind == PING and sid == 0 and greeted:
        if len(payload) > 64:
            protocol_error("a PING of %d bytes" % len(payload))
        send(frame(PONG, 0, payload))
    elif kind == HELLO and sid == 0 and not greeted:
        head = parse(payload, "HELLO")
        if head.get("protocol") != 1 or head.get("secret", "") != secret:
            protocol_error("HELLO with another protocol or secret")
        greeted = True
        v = sys.version_info
        send(frame(READY, 0, b'{"protocol":1,"runtime":"python%d.%d.%d","pid":%d}' % (
            v[0], v[1], v[2], posix.getpid())))
    elif kind == INIT and sid == 0 and greeted and init is None:
        init = parse(payload, "INIT")
        if init.get("archive"):
            archive = []
    elif kind == SNAPSHOT and sid == 0 and loaded and not calls and not stopping:
        parse(payload, "SNAPSHOT")
        try:
            why = load_part("hearth_guest_snapshot").obstacle()
        except Exception as e:
            why = "%s: %s" % (type(e).__name__, e)
        saved = why is None
        send(frame(READY, 0, dumps({"snapshot": saved, "reason": why or ""}).encode()))
    elif kind == RESTORED and sid == 0 and saved:
        head = parse(payload, "RESTORED")
        if head.get("secret", "") != secret or type(head.get("seed")) is not str:
            protocol_error("RESTORED without a seed or with another secret")
        saved = False
        last_sid = 0
        try:
            load_part("hearth_guest_snapshot").refresh(head["seed"])
        except Exception as e:
            protocol_error("the state could not be renewed: %s: %s" % (type(e).__name__, e))
        send(frame(READY, 0, b"{}"))
    elif kind == SHUTDOWN and sid == 0 and greeted:
        parse(payload, "SHUTDOWN")
        stopping = True
        if init is None:
            stop()
        if find_current is not None:
            more.check_stop()
    else:
        protocol_error("unexpected frame of type %#x on stream %d" % (kind, sid))


def consume(call, n):
    """Gives the host window for n bytes that were taken."""
    call.consumed += n
    if call.consumed >= WINDOW_SIZE // 2 and not call.complete:
        call.credit += call.consumed
        send(frame(WINDOW, call.sid, call.consumed.to_bytes(4, "big")))
        call.consumed = 0


# ---- calls ----

def make_event(call):
    """Returns the event the handler gets."""
    event = call.event
    parts = call.parts
    if call.streams:
        return event
    if call.http:
        if parts is not None:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            if not event.get("isBase64Encoded"):
                try:
                    event["body"] = str(body, "utf-8")
                    return event
                except UnicodeDecodeError:
                    event["isBase64Encoded"] = True
            from binascii import b2a_base64
            event["body"] = b2a_base64(body, newline=False).decode()
        return event
    if parts is not None:
        return loads(parts[0] if len(parts) == 1 else b"".join(parts))
    return None


def make_context(call):
    """Returns the context the handler gets."""
    context = Context(call)
    if call.websocket is not None:
        global sockets
        if sockets is None:
            sockets = load_part("hearth_guest_websocket")
        context.websocket = sockets.WebSocket(call)
    elif request_stream:
        context.body = load_more().request_body(call)
    return context


def run(call):
    """Runs one call in sync mode."""
    global current
    if call.done:
        return
    if call.canceled is not None:
        return load_more().fail_canceled(call)
    if call.warmup:
        return load_more().warm(call)
    current = call
    try:
        try:
            event = make_event(call)
        except (ValueError, RecursionError) as e:
            return load_more().fail_event(call, e)
        result = handler(event, make_context(call))
        t = type(result)
        if t is not dict and t is not str and (hasattr(t, "__await__") or hasattr(t, "__aiter__")):
            return load_more().go_async(call, result)
        respond(call, result)
    except BaseException as e:
        load_more().fail(call, e)
    finally:
        current = idle


def respond(call, result):
    """Sends the handler's value, unless it is to be streamed asynchronously."""
    if call.websocket is not None:
        return call.websocket._respond(result)
    t = type(result)
    if call.http:
        if t is dict and "statusCode" in result or isinstance(result, dict) and "statusCode" in result:
            head, body = http_response(result)
            if head is None:
                return load_more().stream(call, result, body)
        elif t is str:
            head = HEAD_TEXT
            body = result.encode("utf-8", "replace")
        elif t is bytes or isinstance(result, BYTES):
            head = HEAD_BYTES
            body = result
        elif hasattr(t, "__next__"):
            return load_more().stream(call, None, result)
        else:
            head = HEAD_JSON
            body = marshal(call, result)
    else:
        if t is not dict and hasattr(t, "__next__"):
            return load_more().stream(call, None, result)
        head = b"{}"
        body = marshal(call, result)
    if body is None:
        return
    sid = call.sid
    n = len(body)
    if n == 0:
        finish(call, frame(RESPONSE, sid, head) + header(END, sid, 0))
    elif n <= CHUNK:
        finish(call, b"".join((
            header(RESPONSE, sid, len(head)), head,
            header(DATA, sid, n), body, header(END, sid, 0))))
    else:
        return load_more().send_large(call, head, body)


def marshal(call, result):
    """Returns the value as JSON; after a failure None, with the call ended."""
    try:
        return dumps(result).encode()
    except (TypeError, ValueError, RecursionError) as e:
        load_more().fail_marshal(call, e)


# ---- life ----

def start():
    """Takes what the environment says and what must not be inherited."""
    global fd, secret
    env = posix.environ

    def take(name):
        value = env.pop(name, b"")
        try:
            posix.unsetenv(name)
        except OSError:
            pass
        return value.decode("utf-8", "surrogateescape")

    number = take(b"HEARTH_FD")
    secret = take(b"HEARTH_SECRET")
    try:
        fd = int(number)
        if fd == 0:  # the handler's standard input is no business of the host's
            fd = posix.dup(0)
            null = posix.open("/dev/null", posix.O_RDONLY)
            posix.dup2(null, 0)
            posix.close(null)
        posix.set_inheritable(fd, False)
        posix.set_blocking(fd, True)
    except (ValueError, OSError):
        posix.write(2, b"hearth: HEARTH_FD names no open descriptor; start this program through Hearth\n")
        posix._exit(64)
    posix.register_at_fork(after_in_child=after_fork)
    global stdout, stderr
    sys.stdout = stdout = Output(1)
    sys.stderr = stderr = Output(2)


def after_fork():
    """Cuts a child of the handler off the stream."""
    global forked, fd
    forked = True
    output.cut_off()
    try:
        posix.close(fd)
    except OSError:
        pass
    fd = -1


def stop():
    """Exits after SHUTDOWN."""
    load_more().run_exit_functions()
    posix._exit(0)


def main():
    start()
    loop()


def loop():
    """Serves the stream, for good."""
    while init is None:
        pump()
    if not load():
        while True:  # the host ends the sandbox
            pump()
    if find_current is not None:
        load_more().serve()
    while True:
        while ready:
            run(ready.pop(0))
        if stopping and not calls:
            stop()
        try:
            pump()
        except Exception as e:  # raised by a signal handler of the function
            load_more().log_exception(e)

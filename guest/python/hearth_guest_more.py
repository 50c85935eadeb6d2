"""The part of Hearth's guest for Python that is loaded when first needed.

g is the module of hearth_guest.py, which sets it.
"""

import sys

WINDOW_SIZE = g.WINDOW_SIZE  # noqa: F821
CHUNK = g.CHUNK  # noqa: F821
g = g  # noqa: F821
OURS = tuple(f.__code__.co_filename for f in (g.main, g.read_code, g.load, g.send, g.http_response, lambda: 0))
BURST = 256 << 10  # bytes written at a time

loop = None  # the asyncio loop, in async mode
current = None  # ContextVar of the call


class Canceled(BaseException):
    """Unwinds a sync response whose call was canceled."""


# ---- loading ----

class InvalidArchive(Exception):
    """The archive that follows INIT cannot be unpacked."""


def unpack(code):
    """Unpacks the archive that follows INIT."""
    try:
        g.load_part("hearth_guest_tar").unpack(code)
    except Exception as e:
        raise InvalidArchive("the function's files cannot be unpacked into %s: %s" % (code, text_of(e))) from None


class InvalidFiles(Exception):
    """The files of INIT cannot be written."""


def write_files(directory, files):
    """Writes the files of INIT, which nobody else may read."""
    import posix
    from binascii import a2b_base64
    try:
        posix.mkdir(directory, 0o700)
        for name, data in files.items():
            if name in (".", "..") or "/" in name:
                raise ValueError("%r is no name of a file" % name)
            fd = posix.open(directory + "/" + name, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC, 0o400)
            try:
                data = a2b_base64(data)
                while data:
                    data = data[posix.write(fd, data):]
            finally:
                posix.close(fd)
    except Exception as e:
        raise InvalidFiles("the files of secrets cannot be written into %s: %s" % (directory, text_of(e))) from None


def run_exit_functions():
    if "atexit" in sys.modules:
        try:
            sys.modules["atexit"]._run_exitfuncs()
        except BaseException as e:
            log_exception(e)
    g.stdout.flush()
    g.stderr.flush()


def binary_output(text):
    """Returns the .buffer of sys.stdout or sys.stderr."""
    import io

    class Binary(io.RawIOBase):
        name = text.name
        mode = "wb"
        raw = None

        def write(self, data):
            data = bytes(data)
            text.write(data.decode("utf-8", "replace"))
            return len(data)

        def flush(self):
            text.flush()

        def fileno(self):
            return text.fileno()

        def writable(self):
            return True

        def close(self):
            text.flush()

    return Binary()


# ---- errors ----

def stack_of(e, depth=0):
    """Formats the function's own frames of e and of its causes."""
    from traceback import extract_tb, format_list
    out = []
    cause = e.__cause__
    link = "The above exception was the direct cause of the following exception:"
    if cause is None and not e.__suppress_context__:
        cause = e.__context__
        link = "During handling of the above exception, another exception occurred:"
    if cause is not None and depth < 4 and not isinstance(cause, Canceled):
        out = stack_of(cause, depth + 1)
        out += ["%s: %s" % (type(cause).__name__, text_of(cause)[:1000]), link]
    frames = [
        f for f in extract_tb(e.__traceback__)
        if f.filename not in OURS and not f.filename.startswith("<frozen importlib")
    ]
    if len(frames) > 60:
        skipped = len(frames) - 50
        lines = format_list(frames[:20]) + ["  [%d more frames]" % skipped] + format_list(frames[-30:])
    else:
        lines = format_list(frames)
    if isinstance(e, SyntaxError) and e.filename:
        lines.append('  File "%s", line %s' % (e.filename, e.lineno))
        if e.text:
            lines[-1] += "\n    " + e.text.strip()
    return out + [line.rstrip("\n")[:2000] for line in lines]


def text_of(e):
    try:
        return str(e)[:CHUNK]
    except BaseException as other:
        return "(its message cannot be made: %s)" % type(other).__name__


def encode_error(kind, type, message, stack):
    head = {"type": type, "message": message, "stack": stack}
    if kind is not None:
        head["kind"] = kind
    return g.dumps(head).encode()


def try_stack(e):
    try:
        return stack_of(e)
    except BaseException:
        return []  # for example no memory or stack is left


def fail(call, e):
    """Ends a call whose handler raised e."""
    kind, name = "handler", type(e).__name__
    if call.websocket is not None and type(call.websocket) is not int and call.websocket._failed(e):
        return
    if isinstance(e, g.InvalidResponse):
        kind, name = "response", "Runtime.InvalidResponse"
        e.__traceback__ = None
    elif isinstance(e, Canceled):
        return fail_canceled(call)
    elif call.canceled is not None and name == "CancelledError":
        kind = "canceled"
    message = text_of(e)
    if isinstance(e, SystemExit):
        message = "the handler called sys.exit(%s)" % message
    g.finish(call, g.frame(g.ERROR, call.sid, encode_error(kind, name, message, try_stack(e))))


def fail_with(call, kind, type, message):
    g.finish(call, g.frame(g.ERROR, call.sid, encode_error(kind, type, message, [])))


def fail_canceled(call):
    fail_with(call, "canceled", "Runtime.Canceled", "the call was canceled (%s)" % call.canceled)


def fail_event(call, e):
    fail_with(call, "handler", "Runtime.InvalidEvent", "the event is no valid JSON: %s" % text_of(e))


def fail_marshal(call, e):
    what = "it is nested too deeply or contains itself" if isinstance(e, RecursionError) else text_of(e)
    fail_with(call, "response", "Runtime.MarshalError", "the handler's value cannot be written as JSON: " + what)


def fail_init(e, name, code):
    """Answers INIT when loading the handler raised e."""
    import os
    kind, message = type(e).__name__, text_of(e)
    module = name.rpartition(".")[0].replace("/", ".")
    if isinstance(e, ImportError):
        kind = "Runtime.ImportModuleError"
        missing = getattr(e, "name", None)
        if isinstance(e, ModuleNotFoundError) and missing and (module + ".").startswith(missing + "."):
            try:
                names = sorted(n for n in os.listdir(code) if not n.startswith("."))
            except OSError:
                names = []
            shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            message = "handler %s needs %s.py, which is not in the function's code (it has: %s)" % (
                name, module.replace(".", "/"), shown or "nothing")
        else:
            message = "cannot import %s: %s" % (module, message)
    elif isinstance(e, SyntaxError):
        kind = "Runtime.UserCodeSyntaxError"
        message = "syntax error in %s: %s" % (module, message)
    elif isinstance(e, InvalidArchive):
        kind = "Runtime.InvalidArchive"
    elif isinstance(e, InvalidFiles):
        kind = "Runtime.InvalidFiles"
    elif isinstance(e, SystemExit):
        message = "%s called sys.exit(%s) while it was imported" % (module, message)
    fail_load(kind, message, try_stack(e))


def fail_handler(name, module, attribute):
    """Answers INIT when the module has no such function."""
    found = getattr(sys.modules[module], attribute, None)
    if found is not None:
        why = "is %s, not a function" % type(found).__name__
    else:
        names = sorted(
            n for n, v in vars(sys.modules[module]).items()
            if callable(v) and getattr(v, "__module__", None) == module)
        why = "does not exist (functions there: %s)" % (", ".join(names[:12]) or "none")
    fail_load("Runtime.HandlerNotFound", "handler %s: %s in %s %s" % (name, attribute, module, why), [])


def fail_load(kind, message, stack):
    g.stdout.flush()
    g.stderr.flush()
    g.send(g.frame(g.INIT_ERROR, 0, encode_error(None, kind, message, stack)))


def log_exception(e):
    """Logs an exception that belongs to no call."""
    lines = try_stack(e) + ["%s: %s" % (type(e).__name__, text_of(e))]
    g.stderr.write("Exception outside of a call:\n" + "\n".join(lines) + "\n")


# ---- responses ----

def stream_head(call, result, item):
    """Returns the head of a streamed response whose first item is given."""
    if not call.http:
        return b"{}"
    text = isinstance(item, str)
    if result is None:
        return g.HEAD_TEXT if text else g.HEAD_BYTES
    status = result["statusCode"]
    return g.http_head(result, status, "text/plain; charset=utf-8" if text else "application/octet-stream")


def encode_item(call, item):
    if isinstance(item, str):
        return item.encode("utf-8", "replace")
    if isinstance(item, (bytes, bytearray)):
        return item
    if isinstance(item, memoryview):
        return item.tobytes()
    raise g.InvalidResponse("a streamed response must yield str or bytes, not %s" % type(item).__name__)


def take(call, data, pos):
    """Returns DATA frames of data from pos as far as the window allows, and the next pos."""
    out = []
    end = min(len(data), pos + call.window, pos + BURST)
    call.window -= end - pos
    view = memoryview(data)
    while pos < end:
        n = min(CHUNK, end - pos)
        out += (g.header(g.DATA, call.sid, n), view[pos:pos + n])
        pos += n
    return out, pos


def send_large(call, head, body):
    """Sends a response of more than one frame of body."""
    if isinstance(body, memoryview):
        body = body.tobytes()
    start = g.frame(g.RESPONSE, call.sid, head)
    if loop is not None and len(body) > call.window:
        return send_large_async(call, start, body)
    send_sync(call, start, body)
    g.finish(call, g.header(g.END, call.sid, 0))


async def send_large_async(call, start, body):
    await send_async(call, start, body)
    g.finish(call, g.header(g.END, call.sid, 0))


def send_sync(call, start, data):
    pos = 0
    while start or pos < len(data):
        while call.window <= 0 and not start:
            if call.canceled is not None:
                raise Canceled
            g.pump()
        out, pos = take(call, data, pos)
        g.send(start + b"".join(out))
        start = b""


async def send_async(call, start, data):
    pos = 0
    while start or pos < len(data):
        while call.window <= 0 and not start:
            await wait(call)
        out, pos = take(call, data, pos)
        g.send(start + b"".join(out))
        start = b""


def stream(call, result, items):
    """Sends what items yields; in async mode returns a coroutine that does so."""
    if loop is not None:
        return stream_async(call, result, items)
    if hasattr(type(items), "__aiter__"):
        return go_async(call, stream_async(call, result, items))
    check = make_check(call)
    started = False
    try:
        for item in items:
            check()
            data = encode_item(call, item)
            start = b""
            if not started:
                start = g.frame(g.RESPONSE, call.sid, stream_head(call, result, item))
                started = True
            send_sync(call, start, data)
        start = b"" if started else g.frame(g.RESPONSE, call.sid, stream_head(call, result, b""))
        g.finish(call, start + g.header(g.END, call.sid, 0))
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def make_check(call):
    """Returns a function that reads what the host has sent and unwinds a canceled call."""
    from select import POLLIN, poll
    poll = poll()
    poll.register(g.fd, POLLIN)

    def check():
        if poll.poll(0):
            g.pump()
        if call.canceled is not None:
            raise Canceled
    return check


async def stream_async(call, result, items):
    started = False
    is_async = hasattr(type(items), "__aiter__")
    items = type(items).__aiter__(items) if is_async else items
    end = object()
    try:
        while True:
            if is_async:
                try:
                    item = await items.__anext__()
                except StopAsyncIteration:
                    break
            else:
                item = next(items, end)
                if item is end:
                    break
                await pause()
            data = encode_item(call, item)
            start = b""
            if not started:
                start = g.frame(g.RESPONSE, call.sid, stream_head(call, result, item))
                started = True
            await send_async(call, start, data)
        start = b"" if started else g.frame(g.RESPONSE, call.sid, stream_head(call, result, b""))
        g.finish(call, start + g.header(g.END, call.sid, 0))
    finally:
        close = getattr(items, "aclose" if is_async else "close", None)
        if close is not None:
            closing = close()
            if is_async:
                await closing


# ---- request bodies as streams ----

class SyncBody:
    """context.body of a sync handler."""

    def __init__(self, call):
        self.call = call

    def __iter__(self):
        return self

    def __next__(self):
        call = self.call
        while not call.parts:
            if call.complete or call.done:
                raise StopIteration
            if call.canceled is not None:
                raise Canceled
            g.pump()
        return taken(call)


class AsyncBody:
    """context.body of an async handler."""

    def __init__(self, call):
        self.call = call

    def __aiter__(self):
        return self

    async def __anext__(self):
        call = self.call
        while not call.parts:
            if call.complete or call.done:
                raise StopAsyncIteration
            await wait(call)
        return taken(call)


def taken(call):
    chunk = call.parts.pop(0)
    g.consume(call, len(chunk))
    return chunk


def request_body(call):
    return AsyncBody(call) if loop is not None else SyncBody(call)


# ---- warm-up ----

def steps(call):
    """Does what a warm-up asks for, step by step; yields what each has returned."""
    try:
        event = g.make_event(call)
    except (ValueError, RecursionError) as e:
        return fail_event(call, e)
    if callable(g.warmup):
        yield g.warmup()
    if call.parts is not None:
        call.parts = []
        yield g.handler(event, g.make_context(call))


def warm(call):
    """Runs a warm-up in sync mode."""
    g.current = call
    try:
        check = make_check(call)
        todo = steps(call)
        for result in todo:
            t = type(result)
            if hasattr(t, "__await__") or hasattr(t, "__aiter__"):
                from itertools import chain
                return go_async(call, warm_async(call, chain((result,), todo)))
            if hasattr(t, "__next__"):
                for _ in result:
                    check()
            check()
        end_warmup(call)
    except BaseException as e:
        fail(call, e)
    finally:
        g.current = g.idle


async def warm_async(call, todo):
    """Runs a warm-up in async mode."""
    for result in todo:
        if hasattr(type(result), "__await__"):
            result = await result
        t = type(result)
        if hasattr(t, "__aiter__"):
            async for _ in result:
                await pause()
        elif hasattr(t, "__next__"):
            for _ in result:
                await pause()
        await pause()
    end_warmup(call)


def end_warmup(call):
    """Ends a warm-up that has not failed."""
    g.finish(call, g.frame(g.RESPONSE, call.sid, b"{}") + g.header(g.END, call.sid, 0))


# ---- async mode ----

def make_loop():
    global loop, current
    import asyncio
    from contextvars import ContextVar
    current = ContextVar("hearth_call", default=g.idle)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    g.find_current = current.get


def serve():
    """Serves calls in an asyncio loop; never returns."""
    if loop is None:
        make_loop()
    g.on_ready = start_call
    loop.add_reader(g.fd, g.pump)
    waiting, g.ready[:] = list(g.ready), []
    for call in waiting:
        start_call(call)
    check_stop()
    while True:
        try:
            loop.run_forever()  # returns if the function stops the loop
        except BaseException as e:  # raised by a signal handler or callback
            log_exception(e)


def go_async(call, result):
    """Moves the guest into async mode with result, of call, as first task."""
    g.current = g.idle
    g.ready.insert(0, call)
    call.begun = result
    serve()


def start_call(call):
    if call.task is None and not call.done:
        first, call.begun = call.begun, False
        call.task = loop.create_task(drive(call, first or None))


async def drive(call, result):
    """Runs one call in its task; result is the handler's awaitable if it was called already."""
    current.set(call)
    call.begun = True
    try:
        if call.canceled is not None:
            return fail_canceled(call)
        if result is None and call.warmup:
            result = warm_async(call, steps(call))
        if result is None:
            try:
                event = g.make_event(call)
            except (ValueError, RecursionError) as e:
                return fail_event(call, e)
            result = g.handler(event, g.make_context(call))
        if hasattr(type(result), "__await__"):
            result = await result
        if hasattr(type(result), "__aiter__"):
            if call.websocket is not None:
                call.websocket._refuse()
            await stream_async(call, None, result)
        elif not call.done:
            rest = g.respond(call, result)
            if rest is not None:
                await rest
    except BaseException as e:
        fail(call, e)
    finally:
        call.task = None
        check_stop()


def cancel(call):
    if call.begun:
        call.task.cancel()


def check_stop():
    if g.stopping and not g.calls:
        g.stop()


async def wait(call):
    """Waits until the host has sent something for the call."""
    import asyncio
    if call.waiter is None:
        call.waiter = asyncio.Event()
    call.waiter.clear()
    await call.waiter.wait()


async def pause():
    """Lets other tasks run between the items of a sync generator."""
    import asyncio
    await asyncio.sleep(0)

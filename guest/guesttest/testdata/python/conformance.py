"""Handlers of the guest conformance suite; nodejs/conformance.mjs has the same."""

import asyncio
import os
import random
import sys
import tempfile
import time

print("loading")


def echo(event, context):
    return event


def hello(event, context):
    return {
        "statusCode": 201,
        "headers": {"X-Test": "yes", "X-Number": 7},
        "multiValueHeaders": {"X-Many": ["a", "b"]},
        "cookies": ["a=1", "b=2"],
        "body": "héllo",
    }


def mirror(event, context):
    return {"statusCode": 200, "body": event.get("body"), "isBase64Encoded": event.get("isBase64Encoded", False)}


def empty(event, context):
    return {"statusCode": 204}


def text(event, context):
    return "héllo"


def octets(event, context):
    return b"\x00\xff\x80"


def none(event, context):
    return None


def stream(event, context):
    yield "one "
    yield b"two "
    yield "three"


async def stream_async(event, context):
    yield b"one "
    await asyncio.sleep(0)
    yield "two"


def stream_head(event, context):
    return {"statusCode": 202, "headers": {"content-type": "text/event-stream"}, "body": stream(event, context)}


def stream_empty(event, context):
    return iter(())


def endless(event, context):
    try:
        while True:
            yield b"x" * 1000
    finally:
        print("closed")


async def endless_async(event, context):
    try:
        while True:
            yield b"x" * 1000
    finally:
        print("closed")


def large(event, context):
    return bytes(range(256)) * (3 << 12)


async def large_async(event, context):
    return large(event, context)


def large_value(event, context):
    return "x" * (3 << 20)


def throw(event, context):
    print("before")
    inner()


def inner():
    raise ValueError("bad thing")


async def throw_async(event, context):
    await asyncio.sleep(0)
    inner()


def throw_late(event, context):
    yield "begun"
    inner()


def unserialisable(event, context):
    return {"x": object()}


def circular(event, context):
    a = []
    a.append(a)
    return a


def bad_status(event, context):
    return {"statusCode": "200", "body": ""}


def bad_headers(event, context):
    return {"statusCode": 200, "headers": [1], "body": ""}


def bad_header(event, context):
    return {"statusCode": 200, "headers": {"x": "a\r\nb: c"}, "body": ""}


def bad_body(event, context):
    return {"statusCode": 200, "body": {"a": 1}}


def bad_item(event, context):
    yield "fine"
    yield 5


def output(event, context):
    print("line one\nline two")
    print("error line", file=sys.stderr)
    sys.stdout.buffer.write("bytes é\n".encode())
    sys.stdout.write("unfinished")


def big_output(event, context):
    print("x" * 200_000)


async def overlap(event, context):
    print("begin", event["n"])
    await asyncio.sleep(event["ms"] / 1000)
    print("end", event["n"])
    return event["n"]


async def patient(event, context):
    print("waiting")
    await asyncio.sleep(3600)


def environment(event, context):
    return {
        "greeting": os.environ.get("GREETING"),
        "hearth": sorted(k for k in os.environ if k.startswith("HEARTH_")),
        "cwd": os.getcwd(),
    }


def files(event, context):
    directory = os.environ["FILES"]
    found = {}
    for name in os.listdir(directory):
        with open(directory + "/" + name, "rb") as f:
            found[name] = [oct(os.stat(f.fileno()).st_mode & 0o777)[2:], f.read().hex()]
    return {"mode": oct(os.stat(directory).st_mode & 0o777)[2:], "found": found}


def context(event, context):
    return {
        "id": context.aws_request_id,
        "function": context.function_name,
        "version": context.function_version,
        "memory": context.memory_limit_in_mb,
        "remaining": context.get_remaining_time_in_millis(),
        "trace": [context.traceparent, context.tracestate],
    }


def upload(event, context):
    n = 0
    for chunk in context.body:
        n += len(chunk)
    return n


upload.request_stream = True


async def upload_async(event, context):
    async for chunk in context.body:
        yield chunk


upload_async.request_stream = True


def upload_ignored(event, context):
    return "no"


upload_ignored.request_stream = True


def vandal(event, context):
    print("kept")
    sys.stdout.close()
    os.chdir("/")
    for fd in (0, 1, 2):
        try:
            os.close(fd)
        except OSError:
            pass
    sys.stdout = sys.stderr = None
    sys.path[:] = []
    return "done"


def descriptors(event, context):
    import subprocess
    return subprocess.run(
        ["ls", "-l", "/proc/self/fd"], stdout=subprocess.PIPE, close_fds=False, check=True).stdout.decode()


def leave(event, context):
    print("bye")
    sys.stdout.write("unfinished")
    sys.stdout.flush()
    os._exit(3)


def exit_soft(event, context):
    sys.exit(4)


def forked(event, context):
    pid = os.fork()
    if pid == 0:
        print("in the child")
        return "child"
    os.waitpid(pid, 0)
    return "parent"


def logged(event, context):
    import logging
    logging.getLogger("app").warning("take care")


def threads(event, context):
    import threading

    def work(n):
        for i in range(100):
            print("thread", n, i)

    all = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in all:
        t.start()
    for t in all:
        t.join()


def awaitable(event, context):
    return patience()


async def patience():
    await asyncio.sleep(0)
    return "awaited"


def slow(event, context):
    time.sleep(event["ms"] / 1000)
    return "slept"


class Callable:
    def __call__(self, event, context):
        return "called"


instance = Callable()
number = 5


async def upload_patient(event, context):
    await asyncio.sleep(3600)


upload_patient.request_stream = True


def chance(event, context):
    """Tells what chance still brings as it was clear when this was loaded."""
    return {
        "random": random.random() in expected,
        "tempfile": tempfile._get_candidate_names() is names,
    }


async def chance_async(event, context):
    return chance(event, context)


random.seed(7)
expected = [random.random() for _ in range(10)]
random.seed(7)
names = tempfile._get_candidate_names()


def ws_echo(event, context):
    ws = context.websocket
    for message in ws:
        ws.send(message)
    print("closed", ws.close_code, ws.close_reason)


ws_echo.websocket = True


async def ws_echo_async(event, context):
    ws = context.websocket
    async for message in ws:
        await ws.send(message)
    print("closed", ws.close_code, ws.close_reason)


ws_echo_async.websocket = True


def ws_refuse(event, context):
    return {"statusCode": 403, "headers": {"x-why": "no"}, "body": "not you"}


def ws_silent(event, context):
    return None


def ws_accept(event, context):
    context.websocket.accept(subprotocol="two", headers={"X-Extra": "yes"})


def ws_throw(event, context):
    context.websocket.send("so far")
    inner()


async def ws_throw_async(event, context):
    await context.websocket.send("so far")
    inner()


def ws_close(event, context):
    ws = context.websocket
    ws.close(4001, "dône")
    ws.close()
    try:
        ws.send("more")
    except ws.Closed:
        print("closed", ws.receive())


async def ws_close_async(event, context):
    ws = context.websocket
    await ws.close(4001, "dône")
    await ws.close()
    try:
        await ws.send("more")
    except ws.Closed:
        print("closed", await ws.receive())


def ws_endless(event, context):
    while True:
        context.websocket.send(b"x" * 1000)


async def ws_endless_async(event, context):
    while True:
        await context.websocket.send(b"x" * 1000)
        await asyncio.sleep(0)


def ws_ignore(event, context):
    context.websocket.accept()
    time.sleep(0.3)


async def ws_ignore_async(event, context):
    context.websocket.accept()
    await asyncio.sleep(0.3)


def ws_yield(event, context):
    context.websocket.accept()
    yield "no"


async def ws_tasks(event, context):
    ws = context.websocket

    async def small():
        for _ in range(1000):
            await ws.send("s")
            await asyncio.sleep(0)

    await asyncio.gather(*(ws.send(str(n) * 200_000) for n in range(9)), small())


async def ws_misuse(event, context):
    ws = context.websocket
    wrong = []
    for call in (
        lambda: ws.accept(subprotocol="three"),
        lambda: ws.send(5),
        lambda: ws.send("x" * (max_message + 1)),
        lambda: ws.close(1005),
        lambda: ws.close(1000, "x" * 124),
        lambda: (ws.accept(), ws.accept()),
    ):
        try:
            call()
            wrong.append("nothing")
        except Exception as e:
            wrong.append(type(e).__name__)
    await ws.send(" ".join(wrong))


max_message = 1 << 20


async def ws_collect(event, context):
    ws = context.websocket
    words = [m if isinstance(m, str) else m.decode() async for m in ws]
    print(*words, "closed", ws.close_code)

import asyncio
import time


def events(event, context):
    """Sends when each event was written, in nanoseconds since 1970."""
    def stamps():
        for _ in range(int(event["queryStringParameters"]["n"])):
            yield b"%19d\n" % time.time_ns()
            time.sleep(0.002)
    return stamps()


def gigabyte(event, context):
    """Returns a gigabyte, and the number of bytes it gets if it gets any."""
    if event["requestContext"]["http"]["method"] == "POST":
        return sum(len(chunk) for chunk in context.body)
    chunk = bytes(1_000_000)
    return (chunk for _ in range(int(event["queryStringParameters"]["mb"])))


gigabyte.request_stream = True


async def sockets(event, context):
    async for message in context.websocket:
        await context.websocket.send(message)


sockets.websocket = True

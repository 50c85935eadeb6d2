import asyncio


async def warmup():
    print("warming")
    await asyncio.sleep(0)
    print("warm")


def handler(event, context):
    print("handling", event["n"])


async def handler_async(event, context):
    await asyncio.sleep(0)
    print("handling", event["n"])


def awaitable(event, context):
    return handler_async(event, context)


async def stream(event, context):
    print("begun")
    yield "nobody reads this"
    print("ended")


async def patient(event, context):
    print("waiting")
    await asyncio.sleep(3600)

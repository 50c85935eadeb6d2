"""Streams: each item is sent as soon as it is yielded (curl -N shows it)."""

import time


def handler(event, context):
    for i in range(1, 6):
        yield f"line {i} of 5\n"
        time.sleep(0.2)

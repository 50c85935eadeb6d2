import time


def echo(event, context):
    return event["body"]


def work(event, context):
    """Uses 5 ms of processor time, however many share the processor."""
    end = time.process_time() + 0.005
    while time.process_time() < end:
        for _ in range(500):
            pass
    return event["body"]


def sleep(event, context):
    time.sleep(0.02)
    return event["body"]

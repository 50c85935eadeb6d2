import time


def handler(event, context):
    return "ok"


def wait(event, context):
    """Answers at the time, in seconds of the epoch, that the body names."""
    time.sleep(max(0.0, float(event["body"]) - time.time()))
    return "ok"

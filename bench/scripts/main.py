import time


def handler(event, context):
    return event["body"]


def wait(event, context):
    time.sleep(1)
    return event["body"]

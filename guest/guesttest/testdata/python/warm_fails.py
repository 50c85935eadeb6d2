def warmup():
    inner()


def inner():
    raise ValueError("too cold")


def handler(event, context):
    print("never")

"""A function with a warmup; warms.py and warm_fails.py have others."""

done = []


def warmup():
    print("warming")
    done.append("warmup")
    return object()


def handler(event, context):
    print("handling", event["n"], context.aws_request_id, context.get_remaining_time_in_millis() > 0)
    done.append("handler")
    return {"done": done} if event["n"] == 0 else object()


def stream(event, context):
    print("begun")
    yield "nobody reads this"
    print("ended")


def read(event, context):
    print("read", event["n"], b"".join(context.body).decode() or "nothing")


read.request_stream = True

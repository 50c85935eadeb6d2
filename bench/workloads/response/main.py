BODY = "0123456789" * 100_000


def handler(event, context):
    """A response of one megabyte."""
    return {"statusCode": 200, "headers": {"content-type": "text/plain"}, "body": BODY}

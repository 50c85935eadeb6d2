"""Greets whoever the path names: GET /fn/hello-python/hello/you"""

import json
import os

GREETING = os.environ.get("GREETING", "Hi")


def handler(event, context):
    # An HTTP request is a dict with rawPath, headers, queryStringParameters,
    # body and more; `hearth invoke` passes its own JSON instead.
    event = event or {}
    path = event.get("rawPath", "").strip("/").split("/")
    name = event.get("name") or (path[-1] if path[-1] != "hello" else "") or "world"

    print("greeting", name)  # shown by: hearth logs hello-python

    return {
        "statusCode": 200,
        "headers": {"content-type": "application/json"},
        "body": json.dumps(
            {
                "message": f"{GREETING}, {name}!",
                "from": "Python",
                "query": event.get("queryStringParameters") or {},
                "request_id": context.aws_request_id,
                "remaining_ms": context.get_remaining_time_in_millis(),
            }
        ),
    }

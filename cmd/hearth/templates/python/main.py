def handler(event, context):
    """Answer a call: `event` is a dict, and so may be what you return."""
    # `hearth invoke` passes its data as the event itself; an HTTP request
    # carries its query string.
    event = event or {}
    query = event.get("queryStringParameters") or {}
    name = event.get("name") or query.get("name") or "world"
    print("greeting", name)  # hearth logs shows this
    return {"message": f"Hello, {name}!"}

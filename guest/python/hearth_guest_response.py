"""The responses of Hearth's guest: what a dict with statusCode means.

hearth_guest_core.py loads it at each start; g is the module of that, which sets it.
"""

g = g  # noqa: F821
BYTES, dumps = g.BYTES, g.dumps
NO_HEADERS = {}
TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")

heads = {}  # encoded heads of recent responses


class InvalidResponse(Exception):
    """The handler's value is no valid response."""


def http_response(result):
    """Returns the head and body of a dict with statusCode.

    The head is None if the body is a generator: its first item may decide on
    the content type, so the head is made when that is there.
    """
    status = result["statusCode"]
    if type(status) is not int:
        raise InvalidResponse("statusCode must be an int, not %s" % type(status).__name__)
    get = result.get
    body = get("body")
    t = type(body)
    if t is str:
        kind = "application/json"
        if get("isBase64Encoded"):
            from binascii import a2b_base64
            try:
                body = a2b_base64(body)
            except ValueError as e:
                raise InvalidResponse("isBase64Encoded is true but body is no base64: %s" % e) from None
        else:
            body = body.encode("utf-8", "replace")
    elif body is None:
        kind = None
        body = b""
    elif isinstance(body, str):
        kind = "application/json"
        body = str(body).encode("utf-8", "replace")
    elif isinstance(body, BYTES):
        kind = "application/octet-stream"
    elif hasattr(t, "__next__") or hasattr(t, "__aiter__"):
        return None, body
    else:
        raise InvalidResponse(
            "body must be a str, bytes or a generator, not %s (use json.dumps)" % t.__name__)
    return http_head(result, status, kind), body


def http_head(result, status, kind):
    """Encodes the head of a response; kind is the default content type."""
    get = result.get
    headers = get("headers") or NO_HEADERS
    key = None
    if type(headers) is dict and "cookies" not in result and "multiValueHeaders" not in result:
        try:
            key = (status, kind, *headers, *headers.values())
            head = heads.get(key)
        except TypeError:
            key = head = None
        if head is not None:
            return head
        for v in headers.values():
            if type(v) is not str:
                key = None  # 1, 1.0 and True are the same key
    head = encode_head(result, status, kind)
    if key is not None:
        if len(heads) >= 64:
            heads.clear()
        heads[key] = head
    return head


def encode_head(result, status, kind):
    """Encodes the head of a response with its headers checked."""
    if status < 200 or status > 599:
        raise InvalidResponse("statusCode must be from 200 to 599, not %d" % status)
    pairs = []

    def add(name, value):
        if type(name) is not str or not name or not TOKEN.issuperset(name.lower()):
            raise InvalidResponse("%.80r is no valid name of a header" % (name,))
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, (int, float)):
            value = str(value)
        elif not isinstance(value, str):
            raise InvalidResponse("header %s must be a str, not %s" % (name, type(value).__name__))
        if "\n" in value or "\r" in value or "\0" in value:
            raise InvalidResponse("header %s contains a line break or a NUL" % name)
        pairs.append((name.lower(), value))

    for key, many in (("headers", False), ("multiValueHeaders", True)):
        headers = result.get(key)
        if headers is None:
            continue
        if not isinstance(headers, dict):
            raise InvalidResponse("%s must be a dict, not %s" % (key, type(headers).__name__))
        for name, value in headers.items():
            if many:
                if not isinstance(value, (list, tuple)):
                    raise InvalidResponse("multiValueHeaders: %s must be a list" % name)
                if isinstance(name, str):  # it wins over the one in headers
                    pairs[:] = [p for p in pairs if p[0] != name.lower()]
                for v in value:
                    add(name, v)
            else:
                add(name, value)
    cookies = result.get("cookies")
    if cookies is not None:
        if not isinstance(cookies, (list, tuple)):
            raise InvalidResponse("cookies must be a list, not %s" % type(cookies).__name__)
        for c in cookies:
            add("set-cookie", c)
    if kind is not None and all(name != "content-type" for name, _ in pairs):
        pairs.append(("content-type", kind))
    return dumps({"status": status, "headers": pairs}).encode()

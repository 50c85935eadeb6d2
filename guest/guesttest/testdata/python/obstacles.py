"""Functions that hold what would not survive a snapshot."""

held = {}


def chance_with_thread(event, context):
    import threading
    if not held:
        held["end"] = threading.Event()
        held["thread"] = threading.Thread(target=held["end"].wait, daemon=True)
        held["thread"].start()
    return {}


def chance_with_process(event, context):
    import subprocess
    if not held:
        held["process"] = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    return {}


def chance_with_socket(event, context):
    import socket
    if not held:
        held["socket"] = socket.create_server(("127.0.0.1", 0))
    return {}

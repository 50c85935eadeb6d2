import os


def handler(event, context):
    """Many cheap system calls."""
    n = 0
    r, w = os.pipe()
    try:
        for _ in range(1000):
            os.stat("/tmp")
            os.getppid()
            os.write(w, b"x")
            n += len(os.read(r, 1))
    finally:
        os.close(r)
        os.close(w)
    return str(n)

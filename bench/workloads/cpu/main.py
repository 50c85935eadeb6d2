def handler(event, context):
    """A fixed number of steps of the interpreter, and nothing else."""
    x = 1
    for i in range(60000):
        x = (x * 31 + i) & 0xFFFFFFFF
    return str(x)

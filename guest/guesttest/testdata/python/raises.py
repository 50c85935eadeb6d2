def load():
    raise KeyError("no such setting")


load()

PARAMS_FILE = "params.json"


def open_meta(path):
    raise NotImplementedError


def write_meta(path, source, dtype, on_weights):
    raise NotImplementedError

def available():
    return False, "not written"

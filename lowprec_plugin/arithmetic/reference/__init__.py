"""The law in plain torch operations: what the other backends have to equal, bit for bit."""

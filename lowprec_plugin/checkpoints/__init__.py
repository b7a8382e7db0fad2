"""Checkpoints as files: whether they are whole, what is in them, and what they hold how."""

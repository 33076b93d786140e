"""Asking a model questions it has not seen, and the controls that show whether it looks at the pictures."""

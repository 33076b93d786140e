"""One trainer for every experiment."""

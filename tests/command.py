"""The command line, called in this process: ``from command import nanovlm``."""

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple
from unittest.mock import patch

from nanovlm.cli import main


class Done(NamedTuple):
    status: int
    out: str
    err: str


def nanovlm(*arguments: object, columns: int = 240) -> Done:
    """``nanovlm ARGUMENTS`` in a terminal of so many columns; a bug is raised, for a traceback and status 1."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    words = ["nanovlm", *map(str, arguments)]
    terminal = patch.dict(os.environ, COLUMNS=str(columns))
    with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", words), terminal:
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    return Done(status, out.getvalue(), err.getvalue())

"""Execute a notebook as Jupyter would. Usage: python run_notebook.py NOTEBOOK

It runs in a fresh kernel, in the notebook's folder; the file itself is only read. The first cell that fails ends it,
and is shown with its error.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

MOST_SECONDS = 600  # for one cell


def execute(file: Path) -> str:
    """What went wrong, if anything: the cell's source and the error."""
    notebook = nbformat.read(file, as_version=4)
    where = {"metadata": {"path": str(file.parent)}}
    begun: list[str] = []  # the sources of the cells so far
    client = NotebookClient(notebook, timeout=MOST_SECONDS, kernel_name="python3", resources=where)
    client.on_cell_execute = lambda cell, cell_index: begun.append(cell.source)
    try:
        client.execute()
    except CellExecutionError as error:
        return str(error)  # has the source in it
    except (CellTimeoutError, DeadKernelError) as error:
        return f"{begun[-1]}\n\n{error}"
    return ""


if __name__ == "__main__":
    file, start = Path(sys.argv[1]), time.monotonic()
    failure = execute(file)
    print(f"{failure}\n{file} failed" if failure else f"{file}: every cell ran", f"({time.monotonic() - start:.0f} s)")
    sys.exit(bool(failure))

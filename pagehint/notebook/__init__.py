"""What a notebook has: the magic `%pagehint`, and a chart of memory while a cell runs.

Begin with `magic.py`. Uses `arena`, `numpy` and the rooms below them. Needs IPython; the chart needs Matplotlib, too.
"""

from pagehint.notebook.magic import load

__all__ = ["load"]

"""NumPy's own arrays in an arena (NEP 49): in one context, or in the whole process.

::

    ph.numpy.install()

Begin with `installation.py`; what NumPy calls is in `handler.pyx`. Uses `arena` and the rooms below it.
"""

from pagehint.numpy.installation import MIN_AGE, RESERVE, RESERVE_AGE, Counts, install, installed, uninstall

__all__ = ["MIN_AGE", "RESERVE", "RESERVE_AGE", "Counts", "install", "installed", "uninstall"]

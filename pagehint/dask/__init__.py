"""Dask's workers with an arena: they give back what they keep, and say of their unmanaged memory whose it is.

::

    from pagehint.dask import PageHintWorker

    client.register_plugin(PageHintWorker())

Begin with `worker.py`, the plugin of each worker, and `attendant.py`, what it does meanwhile; `nanny.py` has workers
start as under `pagehint run`. Uses `memory`, `running` and the rooms below them. Dask is imported as `distributed`.
"""

try:
    import distributed  # noqa: F401
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError("pagehint.dask needs Dask: pip install 'pagehint[dask]'") from _missing

from pagehint.dask.nanny import PageHintNanny
from pagehint.dask.worker import PageHintWorker

__all__ = ["PageHintNanny", "PageHintWorker"]

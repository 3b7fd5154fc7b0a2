"""Which granules are free and unreported, and how they reach the host: hint bits, the queue, a batch, the worker.

Begin with `bitmap.pxd`, then read on as a hint travels: `notify`, `queue`, `batch`, `worker`. Uses `zone` and `sync`.
"""

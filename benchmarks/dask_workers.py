"""What Dask's workers keep after a job: `python -m benchmarks.dask_workers [none | worker | nanny | nanny+worker]`.

The service of `docs/services.md` as tasks: each parses a table of 10 MB, groups it, and returns a little of it. Two
workers of four threads each. The resident memory of each, when it was ready, at its peak, and 20 seconds after the job.
"""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

from distributed import Client, LocalCluster

from pagehint.dask import PageHintNanny, PageHintWorker

TASKS = 64
AFTER = 20.0  # seconds


def make() -> bytes:
    import numpy as np
    import pandas as pd

    random = np.random.default_rng(1)
    customers = np.char.add("customer-", random.integers(0, 40_000, 300_000).astype(str))
    return pd.DataFrame({"customer": customers, "amount": random.random(300_000)}).to_csv(index=False).encode()


def answer(request: bytes, number: int) -> dict[str, float]:
    import pandas as pd

    frame = pd.read_csv(io.BytesIO(request), engine="pyarrow")
    frame["share"] = frame.amount / frame.groupby("customer").amount.transform("sum")
    largest = frame.nlargest(1000, "share")
    return dict(zip(largest.customer, largest.share, strict=True))


def resident() -> tuple[int, int]:
    """MiB now, and at most."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) >> 10, int(lines["VmHWM"].split()[0]) >> 10


def main(plugins: str) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=4, memory_limit="4GiB", dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        if "nanny" in plugins:
            client.register_plugin(PageHintNanny(malloc=True))
        if "worker" in plugins:
            client.register_plugin(PageHintWorker())
        request = client.submit(make)
        client.replicate([request])
        print("ready", sorted(client.run(resident).values()))
        client.gather(client.map(answer, [request] * TASKS, range(TASKS)))
        print("done", sorted(client.run(resident).values()))
        time.sleep(AFTER)
        print(f"{AFTER:.0f} seconds later", sorted(client.run(resident).values()))
        for worker in client.sync(client.scheduler.identity)["workers"].values():
            print(worker["metrics"].get("pagehint"))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "nanny+worker")

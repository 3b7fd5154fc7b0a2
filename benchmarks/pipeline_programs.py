"""Programs as people have them, for `pipelines.py`: none knows of an allocator.

Each is a function that gets ready (imports, files, a cluster) and returns another, which does the work once.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

ROWS = 1_500_000
PICTURES = 24
TIMES = 3  # that each does its work, as a service does for one request after another

FOLDER = Path(tempfile.gettempdir()) / "pagehint-pipelines"


def sales(path: Path, rows: int, seed: int) -> Path:
    """A CSV file of sales, made once."""
    if not path.exists():
        import numpy as np
        import pandas as pd

        rng = np.random.default_rng(seed)
        customers = np.array([f"customer {number:06} of the west" for number in range(50_000)])
        pd.DataFrame(
            {
                "customer": customers[rng.integers(0, len(customers), rows)],
                "city": np.array(["Oslo", "Lagos", "Lima", "Kyoto", "Perth"])[rng.integers(0, 5, rows)],
                "note": customers[rng.integers(0, len(customers), rows)],
                "amount": rng.random(rows).round(4),
                "units": rng.integers(1, 100, rows),
            }
        ).to_csv(path, index=False)
    return path


def pictures() -> list[Path]:
    """JPEG files of 12 megapixels, made once."""
    import numpy as np
    from PIL import Image

    paths = [FOLDER / f"{number}.jpg" for number in range(PICTURES)]
    for number, path in enumerate(paths):
        if not path.exists():
            coarse = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((4000, 3000)).save(path, quality=90)
    return paths


def pandas_pipeline() -> Callable[[], object]:
    """CSV to Arrow strings, a group-by, a join, and to NumPy."""
    import pandas as pd

    path = sales(FOLDER / "sales.csv", ROWS, 1)

    def once(path: Path = path) -> float:
        table = pd.read_csv(path, engine="pyarrow")
        by_customer = table.groupby("customer", as_index=False).agg({"amount": "sum", "units": "mean"})
        joined = table.merge(by_customer, on="customer", suffixes=("", "_of_customer"))
        joined["label"] = joined.city + ": " + joined.note.str.upper()
        figures = joined[["amount", "units", "amount_of_customer", "units_of_customer"]].to_numpy()
        return float((figures / figures.max(axis=0)).sum() + joined.label.nunique())

    once(sales(FOLDER / "few.csv", 1000, 2))  # what else is imported
    return once


def scikit_learn_fit() -> Callable[[], object]:
    """Scaling, principal components, and a forest."""
    from sklearn.datasets import make_classification
    from sklearn.decomposition import PCA
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def once(rows: int = 150_000) -> float:
        x, y = make_classification(rows, 60, n_informative=20, random_state=1)
        forest = RandomForestClassifier(n_estimators=8, max_depth=10, n_jobs=2, random_state=1)
        model = make_pipeline(StandardScaler(), PCA(20, random_state=1), forest)
        return float(model.fit(x, y).score(x, y))

    once(1000)  # what else is imported
    return once


def image_loop() -> Callable[[], object]:
    """Pictures read, blurred, converted, made smaller and written."""
    import numpy as np
    from PIL import Image, ImageFilter

    paths = pictures()

    def once() -> int:
        written = 0
        for path in paths[:8]:
            with Image.open(path) as picture:
                soft = picture.convert("RGB").filter(ImageFilter.BoxBlur(3))
            light = np.asarray(soft, np.float32) / 255
            light **= 1 / 2.2
            small = Image.fromarray((light * 255).astype(np.uint8)).resize((1000, 750))
            target = io.BytesIO()
            small.save(target, "JPEG")
            written += target.tell()
        return written

    return once


def part_of_a_job(path: str):
    import pandas as pd

    table = pd.read_csv(path, engine="pyarrow")
    return table.groupby(["city", "customer"], as_index=False).agg({"amount": "sum", "units": "sum"})


def together(parts):
    import pandas as pd

    return pd.concat(parts).groupby("customer", as_index=False).agg({"amount": "sum"})


def dask_job() -> Callable[[], object]:
    """Parts of a table summed up by the two worker processes of a LocalCluster, and put together."""
    from distributed import Client, LocalCluster

    paths = [sales(FOLDER / f"part-{number}.csv", ROWS // 4, number) for number in range(8)]
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
    client = Client(cluster)
    client.submit(part_of_a_job, str(paths[0])).result()  # its imports

    def once() -> float:
        parts = client.map(part_of_a_job, list(map(str, paths)), pure=False)
        return float(client.submit(together, parts, pure=False).result().amount.sum())

    return once


PROGRAMS = {
    "pandas": pandas_pipeline,
    "scikit-learn": scikit_learn_fit,
    "images": image_loop,
    "Dask": dask_job,
}

"""Libraries whose memory is malloc's, in the arena without knowing of it."""

from __future__ import annotations

from preloaded import run_code


def succeeds(done, said=""):
    assert (done.stdout, done.stderr, done.returncode) == (said, "", 0)


def test_arrows_buffers_and_what_pandas_has_in_them(tmp_path):
    code = """
        import pandas as pd, pyarrow as pa
        before = live()
        strings = pa.array(["a string of some length"] * 100_000)
        assert in_arena(strings.buffers()[2].address), pa.default_memory_pool().backend_name
        table = pd.DataFrame({"city": pd.array(["Oslo", "Lima"] * 100_000, dtype="string[pyarrow]"), "x": 1.0})
        sums = table.groupby("city").x.sum()
        joined = table.merge(sums.rename("sum"), on="city")
        assert joined["sum"].sum() == 2 * 100_000 ** 2, joined
        del strings, table, sums, joined
        import gc; gc.collect()
        assert live() <= before + 3, (live(), before)
    """
    succeeds(run_code(tmp_path, code))


def test_what_the_user_has_said_to_arrow_stays_so(tmp_path, monkeypatch):
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", "mimalloc")
    succeeds(run_code(tmp_path, "import pyarrow as pa; print(pa.default_memory_pool().backend_name)"), "mimalloc\n")


def test_pythons_own_large_objects(tmp_path):
    code = """
        def is_in(kind):
            before = live()
            made = kind()
            return live() > before
        assert is_in(lambda: bytearray(b"x") * M)
        assert is_in(lambda: [None] * M)
        assert is_in(lambda: {*range(M)})
        assert is_in(lambda: "x" * M)
        assert is_in(lambda: 1 << 10 * M)
    """
    succeeds(run_code(tmp_path, code))


def test_the_sum_of_owners_and_what_release_says_hold_with_malloc_in_the_arena(tmp_path):
    code = """
        import pyarrow as pa
        kept = [pa.array(["a string of some length"] * 100_000) for _ in range(20)]
        owners = ph.memory.owners().to_dict()
        arenas = owners["owners"]["arenas"]["in_use"]
        total = sum(owner["in_use"] + owner["kept"] for owner in owners["owners"].values())
        assert arenas >= 20 * 100_000 * 20, owners
        assert abs(total - owners["anonymous_rss"]) <= 0.02 * owners["anonymous_rss"], owners
        del kept
        before = ph.memory.owners().to_dict()["anonymous_rss"]
        said = sum(ph.memory.release().to_dict()["returned"].values())
        came = before - ph.memory.owners().to_dict()["anonymous_rss"]
        assert came > 30 * M and abs(said - came) <= 0.05 * came, (said, came)
    """
    succeeds(run_code(tmp_path, code, "--min-age", "600"))

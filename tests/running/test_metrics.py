"""Metrics of a program's processes, behind one address, and a collector for one's own exporter."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import urllib.request
from subprocess import PIPE, Popen

import numpy as np
import pytest
from asked import MIB
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from started import environment, run
from waiting import wait_for

import pagehint as ph
from pagehint.observing import Collector
from pagehint.observing.holdings import Holdings

NAMES = {"resident", "used", "warm", "fragmented", "given_back", "again", "free"}
SERVER = """
import os, sys, time
import numpy as np
def work(mebibytes):
    array = np.ones(mebibytes << 17)
    del array
    keeps = np.ones(10 << 17)
    time.sleep(60)
if __name__ == "__main__":
    import multiprocessing
    method = sys.argv[1]
    process = multiprocessing.get_context(method).Process(target=work, args=[100], daemon=True)
    process.start()
    print(os.getpid(), process.pid, flush=True)
    sys.stdin.read()
    process.kill()
"""


def scrape(address, *, openmetrics=True):
    """The samples at an address, by name and process; free memory by state as well."""
    headers = {"Accept": "application/openmetrics-text; version=1.0.0"} if openmetrics else {}
    request = urllib.request.Request(f"http://{address}/metrics", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as said:
        assert ("openmetrics" in said.headers["Content-Type"]) == openmetrics
        text = said.read().decode()
    return samples((parse_openmetrics if openmetrics else parse)(text))


def samples(families):
    found = {}
    for family in families:
        assert family.documentation
        for sample in family.samples:
            labels = dict(sample.labels)
            found[sample.name, int(labels.pop("pid")), *labels.values()] = sample.value
    return found


def started(tmp_path, *args, metrics="127.0.0.1:0", text=SERVER):
    path = tmp_path / "program.py"
    path.write_text(text)
    command = [sys.executable, "-m", "pagehint", "run", "--metrics", metrics, str(path), *args]
    return Popen(command, env=environment(), cwd="/", stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_all_processes_are_behind_one_address(runtime, tmp_path, method):
    with started(tmp_path, method) as process:
        try:
            address = re.fullmatch(r"pagehint: metrics at (127\.0\.0\.1:\d+)\n", process.stderr.readline())[1]
            program, child = map(int, process.stdout.readline().split())
            # What is in use in a forked child, and that it has given back, is known once it has a worker.
            wait_for(lambda: scrape(address).get(("pagehint_given_back_bytes_total", child), 0) > 20 * MIB, "the child")
            found = scrape(address)
            assert {pid for _, pid, *_ in found} == {program, child}
            assert found["pagehint_used_bytes", child] >= 10 * MIB
            assert found["pagehint_resident_bytes", child] >= 20 * MIB
            assert found["pagehint_given_back_bytes_total", program] < 20 * MIB
            assert {name for name, *_ in scrape(address, openmetrics=False)} == {name for name, *_ in found}
            os.kill(child, signal.SIGSTOP)
            stopped = scrape(address)
            assert ("pagehint_resident_bytes", child) in stopped  # which the kernel says
            assert ("pagehint_used_bytes", child) not in stopped
            assert ("pagehint_used_bytes", program) in stopped
            os.kill(child, signal.SIGKILL)
            wait_for(lambda: {pid for _, pid, *_ in scrape(address)} == {program}, "the end of the child")
            out, err = process.communicate(timeout=60)
            assert (process.returncode, out, err) == (0, "", "")
            with pytest.raises(OSError, match="refused"):
                scrape(address)
        finally:
            process.kill()


def test_an_address_that_is_taken_is_refused_before_the_program_begins(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "program.py").write_text("print('begun')\n")
        done = run("--metrics", f"127.0.0.1:{port}", tmp_path / "program.py")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == f"pagehint: error: no metrics at 127.0.0.1:{port}: Address already in use\n"


def test_a_program_with_metrics_of_its_own_keeps_them(runtime, tmp_path):
    """Nothing is registered in it, nor imported."""
    text = "import sys, numpy; print('prometheus_client' in sys.modules, flush=True); sys.exit(3)\n"
    with started(tmp_path, text=text) as process:
        out, err = process.communicate(timeout=60)
    assert (out, process.returncode) == ("False\n", 3)
    assert err.count("\n") == 1


def test_a_collector_of_this_process():
    with ph.Arena("46MiB") as arena:
        array = arena.empty(3 * MIB, np.uint8)
        array[:] = 1
        registry = CollectorRegistry()
        registry.register(Collector())
        old = samples(parse(generate_latest(registry).decode()))
        new = samples(parse_openmetrics(generate_openmetrics(registry).decode()))
        for found in (old, new):
            assert {name.removeprefix("pagehint_").partition("_bytes")[0] for name, *_ in found} <= NAMES
            assert found["pagehint_used_bytes", os.getpid()] >= 3 * MIB
            assert found["pagehint_free_bytes", os.getpid(), "not tracked"] >= 43 * MIB
        del array


def test_the_names_are_known_without_a_look():
    """So a registry does not collect to find two of one name."""

    def look():
        raise AssertionError("it has looked")

    collector = Collector(look)
    assert {family.name.removeprefix("pagehint_").removesuffix("_bytes") for family in collector.describe()} == NAMES
    registry = CollectorRegistry()
    registry.register(collector)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(Collector())


def test_what_is_not_known_has_no_sample():
    registry = CollectorRegistry()
    registry.register(Collector(lambda: [Holdings(7, 4096, ())]))
    assert samples(parse(generate_latest(registry).decode())) == {("pagehint_resident_bytes", 7): 4096.0}


@pytest.mark.parametrize("module", ["prometheus_client"])
def test_without_the_extra_it_is_named(tmp_path, module):
    (tmp_path / f"{module}.py").write_text("raise ImportError\n")
    (tmp_path / "program.py").write_text("print('begun')\n")
    path = f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}"
    done = run("--metrics", "127.0.0.1:0", tmp_path / "program.py", env=environment() | {"PYTHONPATH": path})
    assert (done.stdout, done.returncode) == ("", 1)
    assert "--metrics needs prometheus_client: pip install 'pagehint[metrics]'" in done.stderr

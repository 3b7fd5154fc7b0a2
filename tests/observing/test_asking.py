"""Processes that are asked what they hold: forked, spawned, ended, killed, stopped, busy, patched, and besieged."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import pytest
from asked import MIB, program, sockets
from started import environment, run
from waiting import wait_for

from pagehint.observing import places
from pagehint.observing.asking import ask, command_of, look
from pagehint.observing.asking import sockets as found_sockets

HOLDS = """
    import os, sys
    import numpy as np
    array, other = np.ones(40 << 17), np.ones(60 << 17)
    del other
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


def test_nobody(runtime):
    assert look() == []
    assert look([os.getpid()]) == []
    assert not list(runtime.iterdir())  # to look makes no folder


def test_a_process_says_what_it_holds_and_leaves_no_socket(runtime):
    with program(HOLDS) as (process, [pid]):
        [found] = look()
        assert found.pid == found.holdings.pid == int(pid) == process.pid
        assert found.command.endswith(".py")
        [arena] = found.holdings.arenas
        assert 40 * MIB <= arena.used <= 50 * MIB
        assert found.holdings.resident >= arena.resident >= 40 * MIB
        assert arena.hinting
        assert arena.warm + arena.given_back >= 60 * MIB
        assert look([1]) == []
        assert look([process.pid]) != []
        assert stat_of(runtime / "pagehint") == 0o700
    assert sockets(runtime) == []


def stat_of(folder):
    return folder.stat().st_mode & 0o777


def test_a_process_without_numpy_has_no_socket(runtime):
    with program("import sys\nprint()\nsys.stdin.read()\n"):
        assert look() == []


FAMILY = HOLDS.replace(
    "print(os.getpid(), flush=True)",
    """
    def child(given):
        array = np.ones(20 << 17)
        del array
        given.recv()
    import multiprocessing
    if __name__ == "__main__":
        context = multiprocessing.get_context("{method}")
        mine, childs = context.Pipe()
        process = context.Process(target=child, args=[childs])
        process.start()
        print(os.getpid(), flush=True)
        print(process.pid, flush=True)
        sys.stdin.readline()
        mine.send(0)
        process.join()
        print("joined", flush=True)
    else:
        sys.stdin = open(os.devnull)
""",
)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_children_answer_for_themselves(runtime, method):
    with program(FAMILY.format(method=method), lines=2) as (process, pids):
        answered = {}

        def both():
            answered.update({each.pid: each for each in look(map(int, pids))})
            return len(answered) == 2

        wait_for(both, "the child")
        parent, child = (answered[int(pid)].holdings.arenas[0] for pid in pids)
        assert parent.used >= 40 * MIB
        if method == "fork":
            assert child.used >= 40 * MIB  # a copy of its parent's
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "joined\n"
        wait_for(lambda: pids[1] not in sockets(runtime), "the end of the child")
        assert pids[0] in sockets(runtime)
    assert not {*pids} & {*sockets(runtime)}


def test_a_child_does_not_claim_what_its_parent_had_given_back(runtime):
    code = """
        import os, sys
        import numpy as np, pagehint as ph
        array = np.ones(100 << 17); del array
        ph.numpy.installed().trim()
        read, write = os.pipe()
        if os.fork() == 0:
            os.close(write)
            array = np.ones(10 << 17); del array
            os.read(read, 1)
            os._exit(0)
        os.close(read)
        print(os.getpid(), flush=True)
        sys.stdin.read()
    """
    with program(code) as (process, _):
        wait_for(lambda: len(look()) == 2, "the child")
        given_back = {each.pid: each.holdings.total("given_back") for each in look()}
        assert given_back.pop(process.pid) >= 100 * MIB
        assert given_back.popitem()[1] <= 80 * MIB
    wait_for(lambda: look() == [], "the end of the child")


def test_a_child_that_executes_has_no_thread(runtime):
    """Not before it has a worker."""
    code = """
        import os, sys
        import numpy as np
        if os.fork() == 0:
            print(*(open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")),
                  flush=True)
            os._exit(0)
        os.wait()
        sys.stdin.read()
    """
    with program(code) as (_, [said]):
        assert "pagehint" not in said
        assert len(look()) == 1


def test_what_a_killed_process_has_left_is_removed(runtime):
    with program(HOLDS) as (process, _):
        process.kill()
        process.wait()
        assert sockets(runtime) == [str(process.pid)]
        assert look() == []
        assert sockets(runtime) == []


def test_what_is_no_socket_of_ours_is_left_alone(runtime):
    folder = runtime / "pagehint"
    folder.mkdir(mode=0o700)
    (folder / "notes.txt").write_text("mine")
    (folder / "12-34").write_text("a file")
    (folder / "13-34").mkdir()
    (folder / "14-34").symlink_to(folder / "notes.txt")
    before = sorted(folder.iterdir())
    assert [each for each in look() if not each.trouble] == []
    assert sorted(folder.iterdir()) == before


def spoil(folder, how):
    """Make a folder that is not this user's alone, or no folder."""
    if how == "link":
        (folder.parent / "other").mkdir(mode=0o700)
        folder.symlink_to(folder.parent / "other")
        return
    folder.mkdir(mode=0o700)
    if how == "others may enter":
        folder.chmod(0o755)
    elif os.geteuid() != 0:
        pytest.skip("only root can make a folder somebody else's")
    else:
        os.chown(folder, 12345, 12345)


@pytest.mark.parametrize("how", ["others may enter", "link", "somebody else's"])
def test_a_folder_that_others_may_enter_is_refused(runtime, monkeypatch, how):
    monkeypatch.setattr(places, "TEMPORARY", runtime / "tmp")
    (runtime / "tmp").mkdir()
    second = runtime / f"tmp/pagehint-{os.geteuid()}"
    spoil(runtime / "pagehint", how)
    with pytest.raises(PermissionError, match="is not a folder of this user alone"):
        look()
    assert places.make_folder() == second  # the next one, where there is another
    assert places.folders() == [second]
    assert look() == []
    second.rmdir()
    spoil(second, "others may enter")
    with pytest.raises(PermissionError, match="is not a folder of this user alone"):
        places.make_folder()


def test_whoever_makes_a_folder_in_tmp_keeps_nobody_from_status(runtime, monkeypatch):
    monkeypatch.setattr(places, "TEMPORARY", runtime / "tmp")
    (runtime / "tmp").mkdir()
    spoil(runtime / f"tmp/pagehint-{os.geteuid()}", "others may enter")
    assert places.make_folder() == runtime / "pagehint"
    assert places.folders() == [runtime / "pagehint"]
    assert look() == []


def test_a_program_runs_where_no_socket_can_be(tmp_path):
    """A folder with a path that no address of a socket has room for; one in a file; one that may not be written to."""
    path = tmp_path / "program.py"
    path.write_text("import numpy; print(numpy.ones(1 << 20).sum())\n")
    for folder in ("/tmp/" + "x" * 90, "/dev/null", "/proc", "relative", ""):
        if len(folder) > 50:
            Path(folder).mkdir(exist_ok=True)
        done = run(path, env=environment(XDG_RUNTIME_DIR=folder))
        assert (done.stdout, done.returncode) == ("1048576.0\n", 0), done.stderr
        assert done.stderr.count("\n") <= 1
        assert ("too long for a socket" in done.stderr) == (len(folder) > 50)
    Path("/tmp/" + "x" * 90, "pagehint").rmdir()
    Path("/tmp/" + "x" * 90).rmdir()


def test_a_stopped_process_is_named_and_keeps_nobody_waiting_for_long(runtime):
    with program(HOLDS) as (process, _), program(HOLDS) as (other, _):
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)  # all its threads have stopped
        found = {each.pid: each for each in look(patience=3)}
        process.send_signal(signal.SIGCONT)
        assert found[process.pid].holdings is None
        assert "it may be stopped" in found[process.pid].trouble
        assert found[other.pid].holdings is not None


def test_a_process_that_keeps_the_gil_answers(runtime):
    code = """
        import ctypes, os
        import numpy as np
        print(os.getpid(), flush=True)
        ctypes.PyDLL(None).sleep(30)
    """
    with program(code) as (process, _):
        [found] = look(patience=10)
        assert found.holdings is not None
        process.kill()


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_patched_programs_answer(runtime, library):
    if find_spec(library) is None:  # imported here, eventlet would warn of each fork from now on
        pytest.skip(f"there is no {library}")
    patch = {
        "gevent": "from gevent import monkey; monkey.patch_all()",
        "eventlet": "import eventlet; eventlet.monkey_patch()",
    }
    waits = "import time\n    while True: time.sleep(0.01)"
    code = f"    import warnings; warnings.simplefilter('ignore')\n    {patch[library]}\n" + HOLDS.replace(
        "sys.stdin.read()", waits
    )
    with program(code) as (process, _):
        [found] = look()
        assert found.holdings.arenas[0].used >= 40 * MIB
        process.kill()


def threads_of(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [task for task in tasks if (task / "comm").read_text() == "pagehint-status\n"]


def files_of(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_hostile_clients(runtime):
    """Who says nothing, nonsense or too much, or reads nothing, keeps the process from nothing, and costs nothing."""
    working = """
        import os, sys, threading, time
        import numpy as np
        print(os.getpid(), flush=True)
        threading.Thread(target=sys.stdin.read, daemon=True).start()
        n = 0
        while True:
            n += 1
            array = np.ones(1 << 20)
            time.sleep(0.001)
            if n % 500 == 0: print(n, flush=True)
    """
    with program(working) as (process, _), ExitStack() as stack:
        [(_, path)] = found_sockets()
        files, before = files_of(process.pid), resident(process.pid)

        def client(sent=b""):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(os.fspath(path))
            one.settimeout(20)
            one.send(sent)
            return one

        for _ in range(200):
            client(b"?" * 1000).close()
            client().close()
        silent = [client() for _ in range(5)]
        greedy = [client(b"f" * 100000) for _ in range(3)]
        process.stdout.readline()  # it works meanwhile
        assert ask(path, patience=30).startswith(b'{"version":1')
        assert all(one.recv(10) == b"" for one in silent)
        assert greedy
        assert len(threads_of(process.pid)) == 1
        assert files_of(process.pid) == files
        assert resident(process.pid) < before + 20 * MIB
        process.kill()


def test_a_server_that_is_none_of_ours(runtime):
    """What it says is not believed, and it does not keep us for ever."""
    folder = places.make_folder()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(folder / "77-1"))
        server.listen()
        code = """
            import socket, sys, time
            server = socket.socket(fileno=int(sys.argv[1]))
            mute, _ = server.accept()
            for _ in range(2):
                talker, _ = server.accept()
                try:
                    while True: talker.send(b"x" * 1000)
                except OSError: pass
            for _ in range(2):
                nonsense, _ = server.accept()
                nonsense.recv(1)
                nonsense.send(b'{"version": 1, "arenas": 5}')
                nonsense.close()
        """
        with subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(code), str(server.fileno())], pass_fds=[server.fileno()]
        ):
            assert "it may be stopped" in look(patience=0.3)[0].trouble
            assert "it does not stop answering" in look()[0].trouble
            assert "cannot be read" in look()[0].trouble


def test_a_process_that_ends_while_it_answers_is_not_there(runtime):
    folder = places.make_folder()
    code = """
        import os, socket, sys
        server = socket.socket(fileno=int(sys.argv[1]))
        asked, _ = server.accept()
        asked.recv(1)
        asked.send(b'{"version": 1, "are')
    """
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(folder / "77-1"))
        server.listen()
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", textwrap.dedent(code), str(server.fileno())], pass_fds=[server.fileno()]
        )
    with process:
        assert look() == []
    assert sockets(runtime) == []


def test_descriptors_are_the_threads_own(runtime):
    """A daemon that closes all of them can still be asked; nor do its children have the socket."""
    code = """
        import os, sys
        import numpy as np
        files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        print(*[os.readlink(file) for file in files if os.path.exists(file)], flush=True)
        os.closerange(3, 1000)
        sys.stdin.read()
    """
    with program(code) as (_, [said]):
        assert "socket" not in said
        [found] = look()
        assert found.holdings is not None


def test_every_signal_is_blocked_in_the_thread(runtime):
    """So none that the program waits for goes there."""
    with program(HOLDS) as (process, _):
        [task] = threads_of(process.pid)
        [blocked] = [line for line in (task / "status").read_text().splitlines() if line.startswith("SigBlk:")]
        mask = int(blocked.split()[1], 16)
        others = set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
        assert all(mask >> (number - 1) & 1 for number in others)


def test_a_program_that_installs_an_arena_itself_may_answer(runtime):
    code = """
        import os, sys
        import numpy as np, pagehint as ph
        from pagehint.observing import answer
        ph.numpy.install(size="200MiB")
        answer(); answer()
        print(os.getpid(), flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline()
        [found] = look()
        assert found.pid == process.pid
        assert [arena.size for arena in found.holdings.arenas] == [200 * MIB]
        process.communicate()
    assert sockets(runtime) == []


def test_an_idle_process_does_not_run(runtime):
    """The thread sleeps until somebody asks."""
    with program(HOLDS) as (process, _):
        [task] = threads_of(process.pid)

        def switches():
            lines = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            return int(lines["voluntary_ctxt_switches"])

        assert len(look()) == 1
        wait_for(lambda: (task / "wchan").read_text() != "0" or (task / "stat").read_text().split()[2] == "S", "it")
        before = switches()
        time.sleep(1)
        assert switches() == before
        assert len(look()) == 1
        assert switches() > before


def test_control_characters_of_a_command_do_not_reach_a_terminal():
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)", "\x1b[2J\nx"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert command_of(process.pid).endswith("?[2J?x")
        process.kill()
    assert command_of(process.pid) == ""

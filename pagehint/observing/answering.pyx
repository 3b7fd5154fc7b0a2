# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=False
"""The thread that says what this process holds, to whoever of its user asks.

It is one native thread in a process, with every signal blocked, and sleeps in accept(2) on a UNIX socket. The socket is a
file, named after the process and its start, in a folder that only this user may enter (`places.py`). A question is one
byte, an answer one object of JSON (`figures.pxd`), and then the connection is over. Who asks has PATIENCE for each, so
that somebody who says nothing, or reads nothing, keeps others waiting, and this process from nothing.

The thread never needs the GIL. It holds no lock while it waits. Its descriptors are its own, as those of the thread that
populates memory: the rest of the process neither sees nor closes them, and forked children do not inherit them. A forked
child has a thread and a socket of its own from the time on when it has a worker, as it then is no child that calls exec
at once.
"""
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENAMETOOLONG, ENFILE, ENOBUFS, ENOMEM, errno
from libc.stdint cimport UINT64_MAX, int64_t
from libc.stdio cimport rename, snprintf, sscanf
from libc.string cimport memcpy, memset, strrchr
from pagehint.allocator.fork cimport each_memory
from pagehint.hinting cimport engine
from pagehint.hinting.queue cimport WorkQueue
from pagehint.arena.opening cimport Opening
from pagehint.observing.figures cimport (ARENAS, Report, begin_arena, end_arena, note_inherited, room, see_round,
                                         wrote)
from pagehint.sync.clock cimport SECOND, monotonic_ns
from pagehint.sync.condition cimport (cond_init, pthread_cond_broadcast, pthread_cond_t, pthread_mutex_init,
                                      pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, sleep_until)
from pagehint.sync.lock cimport lock_acquire, lock_release, pthread_t, usleep
from pagehint.sync.thread cimport name_this_thread, own_descriptors, pthread_detach, thread_start
from pagehint.zone.page_alloc cimport Machine

import os

from pagehint.observing.ending import AtEnd
from pagehint.observing.places import make_folder
from pagehint.refusals import say_once

cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)

cdef extern from "<sys/time.h>" nogil:
    struct timeval:
        long tv_sec
        long tv_usec

cdef extern from "<sys/socket.h>" nogil:
    int AF_UNIX, SOCK_STREAM, SOCK_CLOEXEC, SOL_SOCKET, SO_RCVTIMEO, SO_SNDTIMEO, MSG_NOSIGNAL
    struct sockaddr:
        pass
    int socket(int domain, int type, int protocol)
    int bind(int fd, const sockaddr *address, unsigned int length)
    int listen(int fd, int backlog)
    int accept4(int fd, sockaddr *address, unsigned int *length, int flags)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int length)
    ssize_t recv(int fd, void *buffer, size_t n, int flags)
    ssize_t send(int fd, const void *buffer, size_t n, int flags)

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]

cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY, O_CLOEXEC
    int open(const char *path, int flags)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    int getpid()
    ssize_t read(int fd, void *buffer, size_t n)
    int unlink(const char *path)

cdef enum:
    VERSION = 1                 # of an answer
    PATH = 100                  # bytes of a path, at most, with what is put before the name while the socket is new
    PATIENCE = 1                # seconds for a question, and for an answer to be taken
    WAITING = 16                # connections
    BETWEEN_TRIES = 100000      # microseconds
    BETWEEN_ROUNDS = 20         # microseconds: whoever waits for a lock gets it

cdef struct Answerer:           # protected by `mutex`, but for what its thread alone uses
    pthread_mutex_t mutex
    pthread_cond_t settled      # where it is waited for that `listening` or `refused` is set
    bint wanted                 # a thread is to be here; so, too, in forked children
    bint started                # there is one, or there was
    bint listening              # there is a socket at `path`
    bint leaving                # the process ends: no socket is to be made any more
    int refused                 # an errno: nobody answers,
    const char *call            # because of this call
    char folder[PATH]
    char path[PATH]
    # Held by whoever writes a report, which takes milliseconds where much is in use.
    pthread_mutex_t writing
    Report report

cdef Answerer answerer          # the process's


# ---- what it says

cdef void list_arena(Machine *m, WorkQueue *q) noexcept nogil:
    """As `memory_fn`: list an arena of this process's memory, as far as there is room."""
    cdef Report *r = &answerer.report
    if m.grow != NULL and r.nr_arenas < ARENAS:
        r.arenas[r.nr_arenas] = m
        r.nr_arenas += 1


cdef void begin_current(Machine *m, WorkQueue *q) noexcept nogil:
    """As `memory_fn`: begin with the current arena, if it is still there."""
    cdef Report *r = &answerer.report
    if m == r.current:
        lock_acquire(&m.growing, True)
        if m.grow != NULL:      # so the mapping is there, until `growing` is let go
            begin_arena(r, m, q)
        lock_release(&m.growing)


cdef void go_on_with_current(Machine *m, WorkQueue *q) noexcept nogil:
    """As `memory_fn`: go on with the current arena. It may have ended since; then what was seen of it is all."""
    cdef Report *r = &answerer.report
    if m == r.current:
        lock_acquire(&m.growing, True)
        if m.grow != NULL:
            see_round(r, <const Opening *> m.grower, m.zones[0])
            r.ended = False
        lock_release(&m.growing)


cdef void write_arenas(Report *r) noexcept nogil:
    """Write what the arenas hold. Between lock rounds others may fork, or have an arena grow."""
    cdef size_t before
    cdef int i
    r.nr_arenas = 0
    each_memory(list_arena)
    for i in range(r.nr_arenas):
        r.current = r.arenas[i]
        before = r.n
        each_memory(begin_current)
        if r.n == before:       # it has ended
            continue
        while r.seen.next != UINT64_MAX:
            r.ended = True
            each_memory(go_on_with_current)
            if r.ended:
                break
            usleep(BETWEEN_ROUNDS)
        end_arena(r)


cdef size_t read_file(const char *path, char *text, size_t size) noexcept nogil:
    """The beginning of a small file, as a string; empty if it cannot be read."""
    cdef int fd = open(path, O_RDONLY | O_CLOEXEC)
    cdef ssize_t n = 0
    if fd >= 0:
        n = read(fd, text, size - 1)
        close(fd)
    text[max(n, <ssize_t>0)] = 0
    return max(n, <ssize_t>0)


cdef void write_text(Answerer *a, bint brief) noexcept nogil:
    """Write what the process holds. `writing` held."""
    cdef Report *r = &a.report
    cdef char statm[256]
    cdef unsigned long long pages = 0
    read_file("/proc/self/statm", statm, sizeof(statm))
    sscanf(statm, "%*u %llu", &pages)
    r.brief = brief
    r.n = 0
    wrote(r, snprintf(r.text, room(r), '{"version":%d,"pid":%d,"resident_pages":%llu,"arenas":[', <int>VERSION, getpid(),
                      pages))
    write_arenas(r)
    wrote(r, snprintf(r.text + r.n, room(r), "]}\n"))


cdef void answer_one(Answerer *a, int fd) noexcept nogil:
    """Answer a question: "f", all figures, or "b", those that cost little. Whoever asks anything else gets nothing."""
    cdef timeval patience
    cdef char question = 0
    cdef ssize_t n
    cdef size_t sent = 0
    patience.tv_sec, patience.tv_usec = PATIENCE, 0
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience))
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience))
    if recv(fd, &question, 1, 0) != 1 or question != c"f" and question != c"b":
        return
    pthread_mutex_lock(&a.writing)
    write_text(a, question == c"b")
    while sent < a.report.n:
        n = send(fd, a.report.text + sent, a.report.n - sent, MSG_NOSIGNAL)
        if n <= 0:
            break
        sent += n
    pthread_mutex_unlock(&a.writing)


# ---- where

cdef unsigned long long started_at() noexcept nogil:
    """When this process was started, in ticks since the machine was; 0 if /proc does not say it."""
    cdef char stat[1024]
    cdef char *after_name
    cdef unsigned long long ticks = 0
    read_file("/proc/self/stat", stat, sizeof(stat))
    after_name = strrchr(stat, c")")    # which may have blanks in it
    if after_name != NULL:
        sscanf(after_name + 1, "%*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu", &ticks)
    return ticks


cdef void nobody_answers(Answerer *a, const char *call, int failed) noexcept nogil:
    """There will be no answer, since a call is refused. Mutex held."""
    a.refused = failed
    a.call = call
    pthread_cond_broadcast(&a.settled)


cdef int make_socket(Answerer *a) noexcept nogil:
    """The socket, which has its name only when it listens: one that refuses has been left by a process. Mutex held."""
    cdef sockaddr_un new
    cdef int fd, n
    memset(&new, 0, sizeof(new))
    new.sun_family = AF_UNIX
    n = snprintf(a.path, PATH, "%s/%d-%llu", a.folder, getpid(), started_at())
    if n >= PATH or snprintf(new.sun_path, sizeof(new.sun_path), "%s.new", a.path) >= <int>sizeof(new.sun_path):
        nobody_answers(a, "bind", ENAMETOOLONG)
        return -1
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if fd < 0:
        nobody_answers(a, "socket", errno)
        return -1
    unlink(new.sun_path)        # of a program that this process was before
    if bind(fd, <const sockaddr *> &new, sizeof(new)) or listen(fd, WAITING) or rename(new.sun_path, a.path):
        nobody_answers(a, "bind", errno)
        unlink(new.sun_path)
        close(fd)
        return -1
    a.listening = True
    pthread_cond_broadcast(&a.settled)
    return fd


cdef void *answer_for_ever(void *arg) noexcept nogil:
    cdef Answerer *a = <Answerer *> arg
    cdef int listening = -1, refused, fd
    name_this_thread("pagehint-status")
    refused = own_descriptors()
    pthread_mutex_lock(&a.mutex)
    if refused:
        nobody_answers(a, "close_range", refused)
    elif not a.leaving:
        listening = make_socket(a)
    pthread_mutex_unlock(&a.mutex)
    while listening >= 0:
        fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC)
        if fd >= 0:
            answer_one(a, fd)
            close(fd)
        elif errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM, EAGAIN):
            usleep(BETWEEN_TRIES)
        elif errno != EINTR and errno != ECONNABORTED:
            break
    return NULL


# ---- its beginning and end, and forks

cdef void answerer_init(Answerer *a) noexcept nogil:
    """Begin with no thread; also in a forked child, which has none."""
    pthread_mutex_init(&a.mutex, NULL)
    pthread_mutex_init(&a.writing, NULL)
    cond_init(&a.settled)
    a.started = a.listening = a.leaving = False
    a.refused = 0


cdef void answerer_start(Answerer *a) noexcept nogil:
    """Start the thread, if it is wanted and there was none yet."""
    cdef pthread_t thread
    cdef int failed
    pthread_mutex_lock(&a.mutex)
    if a.wanted and not a.started:
        failed = thread_start(&thread, NULL, answer_for_ever, a)
        a.started = failed == 0
        if failed:
            nobody_answers(a, "clone", failed)
        else:
            pthread_detach(thread)
    pthread_mutex_unlock(&a.mutex)


cdef void start_with_worker() noexcept nogil:
    """A forked child answers from the time on when it has a worker."""
    answerer_start(&answerer)


cdef void fork_child() noexcept nogil:
    """Begin anew in a forked child. The list of all memories is usable: its handler has run."""
    answerer_init(&answerer)
    each_memory(note_inherited)


answerer_init(&answerer)
if pthread_atfork(NULL, NULL, fork_child):
    raise MemoryError("no memory for what a fork needs")


# ---- what Python code sees

cdef object at_end = None       # keeps what removes the socket


def answer():
    """Have a thread of this process, and of each child that it forks, say what it holds to `pagehint status` of its user.

    `pagehint run` does so; a program that installs an arena itself may. Returns when the process can be asked. Where it
    cannot be, that is logged once, and nothing else changes. A forked child can be asked from the time on when its hinting
    worker runs, that is, when it has something to give back.
    """
    global at_end
    cdef Answerer *a = &answerer
    cdef int64_t patience = monotonic_ns() + SECOND
    cdef bytes folder
    cdef const char *name
    cdef size_t length
    cdef int refused
    try:
        folder = os.fsencode(make_folder())
    except OSError as error:
        say_once("status", str(error), "this process is not among those of `pagehint status`")
        return
    name, length = folder, len(folder)
    if length >= PATH:
        say_once("status", f"{os.fsdecode(folder)} is too long for a socket", "`pagehint status` does not see this process")
        return
    engine.beside_workers = start_with_worker
    with nogil:
        pthread_mutex_lock(&a.mutex)
        if not a.wanted:
            memcpy(a.folder, name, length + 1)
        a.wanted = True
        pthread_mutex_unlock(&a.mutex)
        answerer_start(a)
        pthread_mutex_lock(&a.mutex)
        while not (a.listening or a.refused) and monotonic_ns() < patience:
            sleep_until(&a.settled, &a.mutex, patience)
        refused = a.refused
        pthread_mutex_unlock(&a.mutex)
    if refused:
        say_once(os.fsdecode(a.call), refused, "`pagehint status` does not see this process")
    elif at_end is None:
        at_end = AtEnd(leave)


def leave():
    """Remove the socket of this process, at its end."""
    cdef Answerer *a = &answerer
    with nogil:
        pthread_mutex_lock(&a.mutex)
        a.leaving = True
        if a.listening:
            unlink(a.path)
        a.listening = False
        pthread_mutex_unlock(&a.mutex)


def figures(bint brief=False):
    """What this process would say, as bytes of JSON."""
    cdef Answerer *a = &answerer
    with nogil:
        pthread_mutex_lock(&a.writing)
        write_text(a, brief)
    try:
        return a.report.text[:a.report.n]
    finally:
        pthread_mutex_unlock(&a.writing)

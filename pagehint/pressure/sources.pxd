"""What says that memory may be short: descriptors that poll(2) waits for, each of one file of the kernel.

    machine's stalls    /proc/pressure/memory: a trigger (PSI, Linux 5.2)
    cgroup's stalls     memory.pressure of this process's own cgroup of version 2: the same
    cgroup's events     memory.events.local of version 2: it has gone over its limit or high mark
    cgroup's use        memory.usage_in_bytes of version 1: it is in the last eighth of its limit, at each eighth of that,
                        and memory.pressure_level, at the level "low": something is reclaimed
    cgroup's reclaim    memory.pressure_level of version 1: reclaiming is hard, at the level "medium"

The last three are of this process's cgroup and of each above it.

A trigger fires when tasks have waited for memory for 0.2 s of 2 s, at most once in these 2 s. These are the numbers of
systemd (sd_event_add_memory_pressure), and windows of 2 s are what Linux gives to any process since 6.1. The cgroup may
be in hierarchies of both versions: memory is limited in one, and stalls are counted in version 2.

Some of these fire too often. The machine's stalls may be those of a neighbour under a limit of its own, and a cgroup that
reads files is always at its limit. So they only have the watcher look (`shortage.pxd`). The kernel brings what it counts of
a cgroup up to date every 2 seconds, so the watcher looks again for LATE after the last of them. This cgroup's own stalls,
and hard reclaim under its limits, need no look.

Each file that cannot be had is kept with its errno.
"""
from libc.errno cimport ENODEV, ENOENT, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport strchr, strcmp, strcpy, strlen, strncmp
from pagehint.available_memory cimport (Cgroup, Lines, O_RDONLY, PATH_BYTES, UNLIMITED, cgroup_find,
                                        cgroup_init, close, find_folder, in_first_namespace, level_up, lines_open,
                                        next_line, open_in, read, read_limit)
from pagehint.pressure.shortage cimport NEAR, cgroup_is_short, machine_is_short, read_field
from pagehint.sync.clock cimport SECOND, monotonic_ns

cdef extern from "<fcntl.h>" nogil:
    int O_NONBLOCK
    int O_RDWR
    int O_WRONLY

cdef extern from "<poll.h>" nogil:
    short POLLERR
    short POLLIN
    short POLLPRI
    ctypedef unsigned long nfds_t
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *, nfds_t, int)

cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC
    int EFD_NONBLOCK
    int eventfd(unsigned int, int)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int, void *, size_t, long)
    ssize_t write(int, const void *, size_t)

cdef extern from *:
    """
    /* Microseconds that some task has waited, in so many microseconds. */
    #define PH_STALL_TRIGGER "some 200000 2000000"
    """
    const char *TRIGGER "PH_STALL_TRIGGER"

cdef enum:
    MOST_SOURCES = 40
    NAME_BYTES = 512            # of a file's path; a longer one is cut
    EVENTS_BYTES = 512
    STEPS = 8                   # thresholds in the last eighth of a limit
    LATE = 3                    # seconds: more than the kernel's 2

cdef enum SourceKind:
    MACHINE_STALLS
    CGROUP_STALLS
    CGROUP_EVENTS
    CGROUP_USE
    CGROUP_RECLAIM

cdef struct Source:
    SourceKind kind
    int fd                      # -1: it cannot be had,
    int failed                  # for this errno
    uint64_t seen               # CGROUP_EVENTS: how many there had been at the last look
    char name[NAME_BYTES]

cdef struct Sources:
    const char *root            # the folder that stands for "/": empty; tests have others
    Source all[MOST_SOURCES]
    pollfd polled[MOST_SOURCES]
    int n
    Cgroup cgroup               # which limits memory
    int64_t late_until          # monotonic ns: until then the cgroup's counts may be older than the last event


# ---- each kind

cdef inline Source *add_source(Sources *s, SourceKind kind, const char *folder, const char *file) noexcept nogil:
    """One more, which cannot be had yet; NULL if there is no room for it."""
    cdef Source *one
    if s.n == MOST_SOURCES:
        return NULL
    one = &s.all[s.n]
    s.n += 1
    one.kind = kind
    one.fd = -1
    one.failed = 0
    one.seen = 0
    if snprintf(one.name, NAME_BYTES, "%s%s", folder, file) >= NAME_BYTES:
        strcpy(one.name + NAME_BYTES - 4, "...")
    return one


cdef inline void source_ends(Source *one, int failed) noexcept nogil:
    if one.fd >= 0:
        close(one.fd)
    one.fd = -1
    one.failed = failed


cdef inline void add_stalls(Sources *s, SourceKind kind, const char *folder, const char *file) noexcept nogil:
    """A trigger of PSI: it is written to the file, and lasts as long as that is open."""
    cdef Source *one = add_source(s, kind, folder, file)
    if one == NULL:
        return
    one.fd = open_in(folder, file, O_RDWR | O_NONBLOCK)
    if one.fd < 0:
        one.failed = errno
    elif write(one.fd, TRIGGER, strlen(TRIGGER) + 1) < 0:
        source_ends(one, errno)


cdef inline bint count_events(int fd, uint64_t *count) noexcept nogil:
    """Read how often a cgroup has gone over its limit or high mark; False if it is not there any more."""
    cdef char text[EVENTS_BYTES]
    cdef char *line = text
    cdef uint64_t value = 0
    cdef ssize_t n = pread(fd, text, EVENTS_BYTES - 1, 0)
    if n <= 0:
        return False
    text[n] = 0
    count[0] = 0
    while line != NULL and line[0]:
        if read_field(line, "high ", &value) or read_field(line, "max ", &value) or read_field(line, "oom ", &value):
            count[0] += value
        line = strchr(line, c'\n')
        if line != NULL:
            line += 1
    return True


cdef inline void add_events(Sources *s, const char *folder) noexcept nogil:
    """The events of one level. One that has no such file has no limit."""
    cdef Source *one
    cdef int fd = open_in(folder, "/memory.events.local", O_RDONLY)
    if fd < 0 and errno == ENOENT:
        return
    one = add_source(s, CGROUP_EVENTS, folder, "/memory.events.local")
    if one == NULL:
        close(fd)
    elif fd < 0:
        one.failed = errno
    else:
        one.fd = fd
        if not count_events(fd, &one.seen):
            source_ends(one, ENODEV)


cdef inline int register_eventfd(const char *folder, const char *file, const char *when, int fd) noexcept nogil:
    """Have the kernel write to an eventfd, as version 1 does it: by its cgroup.event_control; 0 or an errno."""
    cdef char text[PATH_BYTES]
    cdef int of = open_in(folder, file, O_RDONLY), control, failed = 0
    if of < 0:
        return errno
    control = open_in(folder, "/cgroup.event_control", O_WRONLY)
    if control < 0:
        failed = errno
    else:
        snprintf(text, PATH_BYTES, "%d %d %s", fd, of, when)
        if write(control, text, strlen(text)) < 0:
            failed = errno
        close(control)
    close(of)
    return failed


cdef inline Source *add_eventfd(Sources *s, SourceKind kind, const char *folder, const char *file,
                                const char *when) noexcept nogil:
    """NULL if it is not to be had."""
    cdef Source *one = add_source(s, kind, folder, file)
    cdef int failed
    if one == NULL:
        return NULL
    one.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
    failed = register_eventfd(folder, file, when, one.fd) if one.fd >= 0 else errno
    if failed:
        source_ends(one, failed)
    return one if failed == 0 else NULL


cdef inline void add_limit(Sources *s, const char *folder) noexcept nogil:
    """What version 1 says of one level, if it has a limit.

    Its use counts files' cached pages, and each threshold fires once: as it is crossed nothing may be short yet. So there
    are more above it. At the limit no more are crossed; there the kernel begins to drop cached pages.
    """
    cdef char when[32]
    cdef uint64_t limit = UNLIMITED, near
    cdef Source *use
    cdef int step
    if read_limit(folder, "/memory.limit_in_bytes", &limit) or limit == UNLIMITED:
        return
    near = limit // NEAR
    snprintf(when, sizeof(when), "%llu", <unsigned long long>(limit - near))
    use = add_eventfd(s, CGROUP_USE, folder, "/memory.usage_in_bytes", when)
    if use != NULL:
        for step in range(1, STEPS):
            snprintf(when, sizeof(when), "%llu", <unsigned long long>(limit - near + near // STEPS * step))
            register_eventfd(folder, "/memory.usage_in_bytes", when, use.fd)
        register_eventfd(folder, "/memory.pressure_level", "low", use.fd)
    add_eventfd(s, CGROUP_RECLAIM, folder, "/memory.pressure_level", "medium")


# ---- all of them

cdef inline bint find_unified(const char *root, Cgroup *c) noexcept nogil:
    """Find the folder of this process's cgroup of version 2; False if it has none, or is at the hierarchy's own top."""
    cdef Lines f
    cdef char *line
    cgroup_init(c, root)
    c.version = 2
    c.path[0] = 0
    if not lines_open(&f, root, "/proc/self/cgroup"):
        return False
    while c.path[0] == 0:
        line = next_line(&f)
        if line == NULL:
            break
        if strncmp(line, "0::", 3) == 0 and strlen(line) < PATH_BYTES:
            strcpy(c.path, line + 3)
    close(f.fd)
    if c.path[0] == 0 or (strcmp(c.path, "/") == 0 and in_first_namespace(root)):
        return False
    return find_folder(c)


cdef inline void sources_open(Sources *s, const char *root) noexcept nogil:
    """Open all that there are for this process, in the cgroup where it is now."""
    cdef char folder[PATH_BYTES]
    cdef Cgroup unified
    s.root = root
    s.n = 0
    s.late_until = 0
    snprintf(folder, PATH_BYTES, "%s/proc", root)
    add_stalls(s, MACHINE_STALLS, folder, "/pressure/memory")
    if find_unified(root, &unified):
        add_stalls(s, CGROUP_STALLS, unified.folder, "/memory.pressure")
    cgroup_init(&s.cgroup, root)
    cgroup_find(&s.cgroup)
    if not s.cgroup.folder[0]:
        return
    strcpy(folder, s.cgroup.folder)
    while True:
        if s.cgroup.version == 2:
            add_events(s, folder)
        else:
            add_limit(s, folder)
        if not level_up(&s.cgroup, folder):
            return


cdef inline void sources_close(Sources *s) noexcept nogil:
    cdef int i
    for i in range(s.n):
        source_ends(&s.all[i], s.all[i].failed)


cdef inline int sources_left(const Sources *s) noexcept nogil:
    """How many can be waited for."""
    cdef int i, left = 0
    for i in range(s.n):
        left += s.all[i].fd >= 0
    return left


cdef inline int sources_wait(Sources *s, int milliseconds) noexcept nogil:
    """Wait for any of them; as poll(2)."""
    cdef int i
    for i in range(s.n):
        s.polled[i].fd = s.all[i].fd
        s.polled[i].events = POLLIN if s.all[i].kind >= CGROUP_USE else POLLPRI
        s.polled[i].revents = 0
    return poll(s.polled, s.n, milliseconds)


cdef inline bint source_alarms(Sources *s, int i) noexcept nogil:
    """Whether a source that has fired means that memory is short. One that is gone, as its cgroup is, ends."""
    cdef Source *one = &s.all[i]
    cdef uint64_t count = 0
    if one.kind == CGROUP_EVENTS:               # has POLLERR with each change
        if not count_events(one.fd, &count):
            source_ends(one, ENODEV)
            return False
        count, one.seen = one.seen, count
        return count != one.seen and cgroup_is_short(&s.cgroup)
    if s.polled[i].revents & ~(POLLIN | POLLPRI):
        source_ends(one, ENODEV)
        return False
    if one.kind == MACHINE_STALLS:
        return machine_is_short(s.root)
    if one.kind == CGROUP_STALLS:
        return True
    if read(one.fd, &count, sizeof(count)) < 0:
        return False
    return one.kind == CGROUP_RECLAIM or cgroup_is_short(&s.cgroup)


cdef inline bint sources_alarm(Sources *s) noexcept nogil:
    """Whether any source that has fired means that memory is short."""
    cdef int i
    cdef bint alarm = False
    s.late_until = monotonic_ns() + LATE * <int64_t>SECOND
    for i in range(s.n):
        if s.all[i].fd >= 0 and s.polled[i].revents:
            alarm |= source_alarms(s, i)
    return alarm


cdef inline bint sources_late(const Sources *s) noexcept nogil:
    """Whether the last look may have been at counts of before the last event."""
    return monotonic_ns() < s.late_until


cdef inline bint sources_late_alarm(Sources *s) noexcept nogil:
    """Whether memory is short, when no source has fired since the last look."""
    return sources_late(s) and cgroup_is_short(&s.cgroup)

"""Whether memory is short at this moment: on the machine, or under a limit of this process's cgroup.

It is short where less than an eighth is left. What a cgroup is charged for files' cached pages counts as left, since the
kernel can drop them: a cgroup that reads files is always at its limit, and nothing is short in it. What cannot be read
is taken for short, as the question is asked only after something has given the alarm.
"""
from libc.errno cimport ENOENT
from libc.stdint cimport uint64_t
from libc.stdlib cimport strtoull
from libc.string cimport strcpy, strlen, strncmp
from pagehint.available_memory cimport (Cgroup, Lines, PATH_BYTES, UNLIMITED, cgroup_find, close, level_up, lines_open,
                                        next_line, read_limit)

cdef enum:
    NEAR = 8                    # short: less than this part is left


cdef inline bint read_field(const char *line, const char *name, uint64_t *value) noexcept nogil:
    """Read the number of a line that begins with this name; False if it is another line."""
    cdef size_t n = strlen(name)
    if strncmp(line, name, n):
        return False
    value[0] = strtoull(line + n, NULL, 10)
    return True


cdef inline bint machine_is_short(const char *root) noexcept nogil:
    """Whether the machine is short of memory that it could give without swapping."""
    cdef Lines f
    cdef char *line
    cdef uint64_t total = 0, left = 0
    cdef bint known = False
    if not lines_open(&f, root, "/proc/meminfo"):
        return True
    while not known:
        line = next_line(&f)
        if line == NULL:
            break
        if not read_field(line, "MemTotal:", &total):
            known = read_field(line, "MemAvailable:", &left)
    close(f.fd)
    return not known or left < total // NEAR


cdef inline uint64_t cached_files(const char *folder, int version) noexcept nogil:
    """Bytes of files' cached pages that a cgroup is charged for, with those below it."""
    cdef Lines f
    cdef char *line
    cdef uint64_t active = 0, inactive = 0
    if not lines_open(&f, folder, "/memory.stat"):
        return 0
    while True:
        line = next_line(&f)
        if line == NULL:
            break
        if version == 1:
            read_field(line, "total_active_file ", &active)
            read_field(line, "total_inactive_file ", &inactive)
        else:
            read_field(line, "active_file ", &active)
            read_field(line, "inactive_file ", &inactive)
    close(f.fd)
    return active + inactive


cdef inline bint is_near(const char *folder, int version, const char *limit_name, const char *used_name) noexcept nogil:
    """Whether a cgroup is near one of its limits."""
    cdef uint64_t limit = UNLIMITED, used = 0
    cdef int failed = read_limit(folder, limit_name, &limit)
    if failed:
        return failed != ENOENT
    if limit == UNLIMITED:
        return False
    if read_limit(folder, used_name, &used):
        return True
    used -= min(used, cached_files(folder, version))
    return used > limit - limit // NEAR


cdef inline bint cgroup_is_short(Cgroup *c) noexcept nogil:
    """Whether this process's cgroup, or one above it, is near a limit."""
    cdef char folder[PATH_BYTES]
    cgroup_find(c)
    if not c.folder[0]:
        return not c.known
    strcpy(folder, c.folder)
    while True:
        if c.version == 1:
            if is_near(folder, 1, "/memory.limit_in_bytes", "/memory.usage_in_bytes"):
                return True
        elif (is_near(folder, 2, "/memory.max", "/memory.current")
                or is_near(folder, 2, "/memory.high", "/memory.current")):
            return True
        if not level_up(c, folder):
            return False

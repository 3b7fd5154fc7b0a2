"""How much memory this process may have: what its cgroup and those above it allow, and what the machine has left.

Cgroups limit memory by one of two interfaces, which both may be mounted:

    version 2   memory.max, memory.high                     of memory.current
    version 1   memory.limit_in_bytes                       of memory.usage_in_bytes
                memory.memsw.limit_in_bytes, with swap      of memory.memsw.usage_in_bytes

A limit holds for everything below it, so every level counts, from this process's cgroup up to the top of the mount. Levels
above that, those outside a container, cannot be seen from inside. What counts as used has files' cached pages in it, which
the kernel could drop: so there may be more left than is said here, but not less.

/proc/self/cgroup has the cgroup's path in the hierarchy, /proc/self/mountinfo where which part of the hierarchy is mounted.
If the path is not in that part, the cgroup's own files cannot be found, and it is not *known* what is left.

Files are opened, read and closed each time: the process may be moved to another cgroup, and get another limit, at any
moment. Nothing here needs the GIL or allocates memory.
"""
from libc.errno cimport ENOENT, errno
from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtoull
from libc.string cimport memchr, memmove, strchr, strcmp, strcpy, strlen, strncmp, strrchr, strstr

cdef extern from "<fcntl.h>" nogil:
    int O_RDONLY
    int O_CLOEXEC
    int open_file "open" (const char *, int)

cdef extern from "<unistd.h>" nogil:
    int F_OK
    int access(const char *, int)
    int close(int)
    ssize_t read(int, void *, size_t)
    ssize_t readlink(const char *, char *, size_t)

cdef extern from "<stdint.h>" nogil:
    const uint64_t UNLIMITED "UINT64_MAX"

cdef enum:
    PATH_BYTES = 4096
    LINES_BYTES = 8192
    NUMBER_BYTES = 32

cdef struct Lines:              # a file that is read line by line
    int fd
    size_t begin                # what has been read, and not yet handed out
    size_t end
    char buffer[LINES_BYTES]

cdef struct Cgroup:
    const char *root            # the folder that stands for "/": empty; tests have others
    bint known                  # what is below holds
    int version                 # of the interface that limits this process's memory; 0 if there is none
    char path[PATH_BYTES]       # of this process's cgroup in the hierarchy
    char folder[PATH_BYTES]     # its files; empty if there is no limit
    size_t top                  # the length of the mount's own path, with which `folder` begins

cdef struct Allowance:
    uint64_t limit              # bytes: the least limit; UNLIMITED if there is none
    uint64_t left               # bytes: the least difference of a limit and what is used of it
    bint known                  # nothing was unreadable


# ---- files

cdef inline int open_in(const char *folder, const char *file, int flags) noexcept nogil:
    """Open a file of a folder; -1, and errno says why not. `file` begins with a slash."""
    cdef char path[PATH_BYTES + NUMBER_BYTES]       # what is cut is still too long for `open`
    snprintf(path, sizeof(path), "%s%s", folder, file)
    return open_file(path, flags | O_CLOEXEC)


cdef inline bint lines_open(Lines *f, const char *root, const char *name) noexcept nogil:
    """Open a file to read its lines; errno says why not."""
    f.fd = open_in(root, name, O_RDONLY)
    f.begin = f.end = 0
    return f.fd >= 0


cdef inline char *next_line(Lines *f) noexcept nogil:
    """The next line, without its end; NULL after the last. Lines that are longer than the buffer are left out."""
    cdef char *line
    cdef char *newline
    cdef bint too_long = False
    cdef ssize_t n
    while True:
        line = f.buffer + f.begin
        newline = <char *> memchr(line, c'\n', f.end - f.begin)
        if newline != NULL:
            newline[0] = 0
            f.begin = newline + 1 - f.buffer
            if not too_long:
                return line
            too_long = False
            continue
        if f.end - f.begin == LINES_BYTES:
            too_long = True
            f.begin = f.end
        memmove(f.buffer, f.buffer + f.begin, f.end - f.begin)
        f.end -= f.begin
        f.begin = 0
        n = read(f.fd, f.buffer + f.end, LINES_BYTES - f.end)
        if n <= 0:
            return NULL
        f.end += n


cdef inline int read_limit(const char *folder, const char *name, uint64_t *value) noexcept nogil:
    """Read a file of one number, or "max"; returns 0 or an errno."""
    cdef char text[NUMBER_BYTES]
    cdef char *end
    cdef ssize_t n
    cdef int fd = open_in(folder, name, O_RDONLY)
    if fd < 0:
        return errno
    n = read(fd, text, NUMBER_BYTES - 1)
    close(fd)
    text[max(n, <ssize_t>0)] = 0
    value[0] = strtoull(text, &end, 10)
    # Version 1 says "no limit" by the largest multiple of a page.
    if strncmp(text, "max", 3) == 0 or value[0] >= <uint64_t>1 << 62:
        value[0] = UNLIMITED
    elif end == text:
        return -1
    return 0


cdef inline bint has_word(const char *words, const char *word) noexcept nogil:
    """Whether a word is among those of a list with commas."""
    cdef size_t n = strlen(word)
    while words != NULL:
        if strncmp(words, word, n) == 0 and (words[n] == c',' or words[n] == 0):
            return True
        words = strchr(words, c',')
        if words != NULL:
            words += 1
    return False


cdef inline void unescape(char *text) noexcept nogil:
    """Undo in place what mountinfo does to blanks and backslashes: three octal digits."""
    cdef char *to = text
    while text[0]:
        if text[0] == c'\\' and text[1] and text[2] and text[3]:
            to[0] = <char>((text[1] - c'0') << 6 | (text[2] - c'0') << 3 | (text[3] - c'0'))
            text += 4
        else:
            to[0] = text[0]
            text += 1
        to += 1
    to[0] = 0


# ---- where the cgroup is

cdef inline bint read_own_cgroup(const char *root, int *version, char *path) noexcept nogil:
    """Read which cgroup limits this process's memory; version 0 if none can. Returns whether that is known."""
    cdef Lines f
    cdef char *line
    cdef char *words
    cdef char *where
    version[0] = 0
    path[0] = 0
    if not lines_open(&f, root, "/proc/self/cgroup"):
        return errno == ENOENT      # a kernel without cgroups
    while version[0] != 1:
        line = next_line(&f)
        if line == NULL:
            break
        words = strchr(line, c':')
        where = strchr(words + 1, c':') if words != NULL else NULL
        if where == NULL or strlen(where) > PATH_BYTES:
            continue
        where[0] = 0
        # Each hierarchy of version 1 has a line with its controllers, the one of version 2 a line without any.
        if has_word(words + 1, "memory"):
            version[0] = 1
        elif strcmp(line, "0:") == 0:
            version[0] = 2
        else:
            continue
        strcpy(path, where + 1)
    close(f.fd)
    return True


cdef inline const char *below(const char *path, const char *part) noexcept nogil:
    """The rest of a path that is `part` or below it; NULL if it is not."""
    cdef size_t n = strlen(part)
    if strcmp(part, "/") == 0:
        n = 0
    if strncmp(path, part, n) or (path[n] != c'/' and path[n] != 0) or strncmp(path, "/..", 3) == 0:
        return NULL
    return path + n if strcmp(path + n, "/") else path + n + 1


cdef inline bint parse_mount(char *line, int version, char **part, char **point) noexcept nogil:
    """Whether a line of mountinfo is of the hierarchy that limits memory; if so, which part of it is mounted, and where.

    ``35 31 0:32 /part /where rw,relatime shared:9 - cgroup source rw,memory``
    """
    cdef char *kind = strstr(line, " - ")
    cdef int _i
    if kind == NULL:
        return False
    for _i in range(3):
        line = strchr(line, c' ')
        if line == NULL:
            return False
        line += 1
    part[0] = line
    point[0] = strchr(line, c' ')
    if point[0] == NULL or point[0] >= kind:
        return False
    point[0][0] = 0
    point[0] += 1
    line = strchr(point[0], c' ')
    line[0] = 0
    unescape(part[0])
    unescape(point[0])
    kind += 3
    if version == 2:
        return strncmp(kind, "cgroup2 ", 8) == 0
    return strncmp(kind, "cgroup ", 7) == 0 and has_word(strrchr(kind, c' ') + 1, "memory")


cdef inline bint find_folder(Cgroup *c) noexcept nogil:
    """Find where the cgroup's files are mounted; returns whether they are.

    Of several mounts the one with the largest part of the hierarchy is taken. If the cgroup is in none, `folder` is the top
    of one: its limit may be ours, as in a container whose cgroup is seen by another path from outside.
    """
    cdef Lines f
    cdef char *line
    cdef char *part = NULL
    cdef char *point = NULL
    cdef const char *rest
    cdef char folder[PATH_BYTES]
    cdef size_t least = PATH_BYTES
    cdef bint inside
    c.folder[0] = 0
    c.top = 0
    if not lines_open(&f, c.root, "/proc/self/mountinfo"):
        return False
    while True:
        line = next_line(&f)
        if line == NULL:
            break
        if not parse_mount(line, c.version, &part, &point):
            continue
        rest = below(c.path, part)
        inside = rest != NULL
        if not inside:
            rest = ""
        if snprintf(folder, PATH_BYTES, "%s%s%s", c.root, point, rest) >= PATH_BYTES:
            continue
        if inside and strlen(part) < least and access(folder, F_OK) == 0:
            least = strlen(part)
        elif c.folder[0]:
            continue
        strcpy(c.folder, folder)
        c.top = strlen(c.root) + strlen(point)
    close(f.fd)
    return least < PATH_BYTES


cdef inline bint in_first_namespace(const char *root) noexcept nogil:
    """Whether paths of cgroups begin at the hierarchy's own top for this process, and not at a container's."""
    cdef char link[PATH_BYTES]
    cdef char text[NUMBER_BYTES]
    cdef ssize_t n
    snprintf(link, PATH_BYTES, "%s/proc/self/ns/cgroup", root)
    n = readlink(link, text, NUMBER_BYTES - 1)
    text[max(n, <ssize_t>0)] = 0
    return strcmp(text, "cgroup:[4026531835]") == 0      # the kernel's PROC_CGROUP_INIT_INO


cdef inline void cgroup_find(Cgroup *c) noexcept nogil:
    """Find the cgroup that this process is in now, and its files, unless they are where they were."""
    cdef char path[PATH_BYTES]
    cdef int version = 0
    cdef bint readable = read_own_cgroup(c.root, &version, path)
    if (c.known and readable and version == c.version and strcmp(path, c.path) == 0
            and (not c.folder[0] or access(c.folder, F_OK) == 0)):
        return
    c.version = version
    strcpy(c.path, path)
    c.folder[0] = 0
    c.known = readable
    if version:
        # The hierarchy's own top has no limit, so it does not matter that it is not mounted.
        c.known = find_folder(c) or (not c.folder[0] and strcmp(path, "/") == 0 and in_first_namespace(c.root))


# ---- what it allows

cdef inline bint look_at_limit(const char *folder, const char *limit_name, const char *used_name,
                               Allowance *a) noexcept nogil:
    """One limit of one level, no such file, no such limit; returns whether there is one."""
    cdef uint64_t limit = UNLIMITED, used = 0
    cdef int failed = read_limit(folder, limit_name, &limit)
    if failed and failed != ENOENT:
        a.known = False
    if failed or limit == UNLIMITED:
        return False
    a.limit = min(a.limit, limit)
    if read_limit(folder, used_name, &used):
        a.known = False
    a.left = min(a.left, limit - min(limit, used))
    return True


cdef inline bint level_up(const Cgroup *c, char *folder) noexcept nogil:
    """Go from a cgroup's folder to that of the one above it; False at the top of the mount."""
    cdef char *end = strrchr(folder, c'/')
    if end == NULL or <size_t>(end - folder) < c.top:
        return False
    end[0] = 0
    return True


cdef inline void cgroup_look(Cgroup *c, Allowance *a) noexcept nogil:
    """What the cgroup and those above it allow at this moment."""
    cdef char folder[PATH_BYTES]
    cgroup_find(c)
    a.limit = a.left = UNLIMITED
    a.known = c.known
    if not c.folder[0]:
        return
    strcpy(folder, c.folder)
    while True:
        if c.version == 2:
            look_at_limit(folder, "/memory.max", "/memory.current", a)
            look_at_limit(folder, "/memory.high", "/memory.current", a)
        elif look_at_limit(folder, "/memory.limit_in_bytes", "/memory.usage_in_bytes", a):
            # The limit with swap is never less than the one without.
            look_at_limit(folder, "/memory.memsw.limit_in_bytes", "/memory.memsw.usage_in_bytes", a)
        if not level_up(c, folder):
            return


cdef inline uint64_t machine_left(const char *root) noexcept nogil:
    """Bytes that the machine could give to a process without swapping; 0 if it does not say."""
    cdef Lines f
    cdef char *line
    cdef uint64_t nr_bytes = 0
    if lines_open(&f, root, "/proc/meminfo"):
        while nr_bytes == 0:
            line = next_line(&f)
            if line == NULL:
                break
            if strncmp(line, "MemAvailable:", 13) == 0:
                nr_bytes = strtoull(line + 13, NULL, 10) << 10
        close(f.fd)
    return nr_bytes


cdef inline uint64_t memory_left(Cgroup *c) noexcept nogil:
    """Bytes that this process could take before its cgroup is at a limit, or the machine has no more; 0 if not known."""
    cdef Allowance a
    cgroup_look(c, &a)
    return min(a.left, machine_left(c.root)) if a.known else 0


cdef inline void cgroup_init(Cgroup *c, const char *root) noexcept nogil:
    """Begin with nothing known."""
    c.root = root
    c.known = False

# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic, freethreading_compatible=True
"""The lines of tracers, parsed: a buffer of text in, rows out.

ftrace, ``trace-cmd report``, ``perf script`` and our own bpftrace script write lines of one kind, which differ in how
process and event are written::

    COMM-PID   (TGID) [CPU] FLAGS SECONDS.FRACTION: EVENT: FIELDS       ftrace, with or without TGID and FLAGS
    COMM PID/TID [CPU] SECONDS.FRACTION: SYSTEM:EVENT: FIELDS           perf, with or without PID/

A COMM may hold whatever a program has called itself, also blanks and "[001] ". So the line is read from its first
``[CPU]`` before which a PID stands and after which a time does.

Nothing is read beyond a line's end, and every loop ends there. What is rare is left to the caller in Python: `parse`
stops at a new name, a marker, an event of another kind, and a line that it does not understand.
"""
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy
from pagehint.sync.atomic cimport likely, unlikely
from pagehint.traces.events cimport (EVENT_ISOLATE_RET, EVENT_MARK, NO_CPU, NO_PID, EventRow)
from pagehint.traces.formats.fields cimport (FIELD_PAGE, caller_flag, event_named, field_named, fields_of, is_text,
                                             row_clear, row_end, row_set)

cdef enum:
    NAME_BYTES = 23             # a COMM has up to 15
    NAME_SLOTS = 1 << 16        # by the lower bits of the pid
    NSEC = 1000000000

cdef enum:                      # what a line is
    LINE_ROW
    LINE_MARK
    LINE_OTHER_EVENT
    LINE_NOT_UNDERSTOOD

cdef struct KnownName:          # the last name seen of a pid
    int pid
    uint8_t length
    char name[NAME_BYTES]

cdef struct Span:               # a piece of the text
    const char *begin
    const char *end

cdef struct Line:               # what is on a line besides its row
    Span name                   # of the process
    Span event                  # its name
    Span text                   # what follows it


cdef inline bint is_digit(char c) noexcept nogil:
    return c'0' <= c <= c'9'


cdef inline bint is_blank(char c) noexcept nogil:
    return c == c' ' or c == c'\t'


cdef inline const char *skip_blanks(const char *p, const char *end) noexcept nogil:
    while p < end and is_blank(p[0]):
        p += 1
    return p


cdef inline const char *skip_word(const char *p, const char *end) noexcept nogil:
    while p < end and not is_blank(p[0]):
        p += 1
    return p


cdef inline const char *decimal(const char *p, const char *end, uint64_t most, uint64_t *number) noexcept nogil:
    """Read digits; return where they end, or NULL if there are none, or the number is larger than `most`."""
    cdef const char *begin = p
    cdef uint64_t value = 0
    cdef int digit
    while p < end and is_digit(p[0]):
        digit = p[0] - c'0'
        if unlikely(value > (most - digit) // 10):
            return NULL
        value = value * 10 + digit
        p += 1
    number[0] = value
    return p if p > begin else NULL


cdef inline const char *hexadecimal(const char *p, const char *end, uint64_t *number) noexcept nogil:
    """As `decimal`, of digits to the base 16, and up to 64 bits."""
    cdef const char *begin = p
    cdef uint64_t value = 0
    cdef int digit
    while p < end:
        if is_digit(p[0]):
            digit = p[0] - c'0'
        elif c'a' <= (p[0] | 0x20) <= c'f':
            digit = (p[0] | 0x20) - c'a' + 10
        else:
            break
        if unlikely(value >> 60):
            return NULL
        value = value << 4 | digit
        p += 1
    number[0] = value
    return p if p > begin else NULL


cdef inline const char *timestamp(const char *p, const char *end, int64_t *time) noexcept nogil:
    """Read "SECONDS.FRACTION:"; return what follows it, or NULL."""
    cdef const char *begin
    cdef uint64_t seconds, fraction
    cdef int _digit
    p = decimal(p, end, INT64_MAX // NSEC - 1, &seconds)
    if p == NULL or p == end or p[0] != c'.':
        return NULL
    begin = p + 1
    p = decimal(begin, end, NSEC - 1, &fraction)
    if p == NULL or p == end or p[0] != c':' or p - begin > 9:
        return NULL
    for _digit in range(p - begin, 9):
        fraction *= 10
    time[0] = seconds * NSEC + fraction
    return p + 1


cdef inline const char *number_back(const char *begin, const char *end) noexcept nogil:
    """Return where the digits begin that end at `end`."""
    while end > begin and is_digit((end - 1)[0]):
        end -= 1
    return end


cdef bint process(const char *begin, const char *end, bint perf, EventRow *row, Span *name) noexcept nogil:
    """Read the COMM and the PID that end at `end`, where "[CPU]" begins."""
    cdef const char *digits
    cdef const char *p = end
    cdef uint64_t pid
    while p > begin and is_blank((p - 1)[0]):
        p -= 1
    if not perf and p > begin and (p - 1)[0] == c')':            # the TGID
        while p > begin and p[0] != c'(':
            p -= 1
        while p > begin and is_blank((p - 1)[0]):
            p -= 1
    end = p
    p = digits = number_back(begin, end)
    if decimal(digits, end, 0x7FFFFFFF, &pid) == NULL or p == begin:
        return False
    row.pid = pid
    if not perf:
        if (p - 1)[0] != c'-':
            return False
        p -= 1
    else:
        if (p - 1)[0] == c'-':                                   # -1: perf knows no thread
            row.pid = NO_PID
            p -= 1
        elif (p - 1)[0] == c'/':                                 # PID/TID
            p = number_back(begin, p - 1)
        if p == begin or not is_blank((p - 1)[0]):
            return False
        while p > begin and is_blank((p - 1)[0]):
            p -= 1
    name.begin = skip_blanks(begin, p)
    name.end = p
    return True


cdef bint header(const char *begin, const char *bracket, const char *end, bint perf, EventRow *row,
                 Line *line) noexcept nogil:
    """Read all before the event, if `bracket` begins the line's "[CPU]"."""
    cdef const char *p
    cdef const char *after
    cdef uint64_t cpu
    p = decimal(bracket + 1, end, NO_CPU - 1, &cpu)
    if p == NULL or end - p < 2 or p[0] != c']' or not is_blank(p[1]):
        return False
    row.cpu = cpu
    if not process(begin, bracket, perf, row, &line.name):
        return False
    p = skip_blanks(p + 1, end)
    after = timestamp(p, end, &row.time)
    if after == NULL:                                       # flags first
        p = skip_blanks(skip_word(p, end), end)
        after = timestamp(p, end, &row.time)
        if after == NULL:
            return False
    line.text.begin = after
    line.text.end = end
    return True


cdef inline bint event_name(Line *line) noexcept nogil:
    """Read "EVENT:" or "SYSTEM:EVENT:" at the begin of the line's text, which then is what follows."""
    cdef const char *p = skip_blanks(line.text.begin, line.text.end)
    cdef const char *colon = NULL
    line.event.begin = p
    while p < line.text.end and not is_blank(p[0]):
        if p[0] == c':':
            if colon != NULL:
                line.event.begin = colon + 1
            colon = p
        p += 1
    if colon == NULL or colon + 1 != p:
        return False
    line.event.end = colon
    line.text.begin = p
    return True


cdef inline bint is_null(const char *p, const char *end) noexcept nogil:
    """Whether a pointer as it is printed is NULL: zeros, "(null)", "(nil)" or "NULL"."""
    cdef const char *begin = p
    if (is_text(p, end - p, b"(null)", 6) or is_text(p, end - p, b"(nil)", 5) or is_text(p, end - p, b"NULL", 4)):
        return True
    while p < end and (p[0] == c'0' or p[0] == c'x'):
        p += 1
    return p == end and p > begin


cdef inline bint field_value(EventRow *row, int field, const char *p, const char *end) noexcept nogil:
    """Put a field's number into the row; False if it is none, or does not fit."""
    cdef bint negative = p < end and p[0] == c'-'
    cdef uint64_t number = 0
    p += negative
    if end - p > 2 and p[0] == c'0' and (p[1] | 0x20) == c'x':
        p = hexadecimal(p + 2, end, &number)
    else:
        p = decimal(p, end, <uint64_t>-1, &number)
    return p == end and row_set(row, field, number, negative)


cdef bint fields(EventRow *row, const char *p, const char *end) noexcept nogil:
    """Read "NAME=NUMBER" up to the last that the event may have, and finish the row."""
    cdef const char *name
    cdef const char *equals
    cdef bint null_page = False
    cdef int field, seen = 0, wanted = fields_of(row.event)
    while seen & wanted != wanted:
        name = skip_blanks(p, end)
        if name == end:
            break
        p = equals = name
        while p < end and not is_blank(p[0]):
            if p[0] == c'=' and equals == name:
                equals = p
            p += 1
        field = field_named(name, equals - name)
        if field == FIELD_PAGE:
            name = skip_blanks(p, end)
            if equals + 1 == p and name < end and name[0] == c'(':      # older kernels pad "(null)" like digits
                equals, p = name - 1, skip_word(name, end)
            null_page = is_null(equals + 1, p)
        elif field & wanted:
            if unlikely(seen & field or not field_value(row, field, equals + 1, p)):
                return False
            seen |= field
    return row_end(row, seen, null_page)


cdef inline int caller(const char *p, const char *end) noexcept nogil:
    """The flag for "(CALLER+0x2a1/0x570 <- FUNCTION)", as the kernel prints a return."""
    cdef const char *name
    p = skip_blanks(p, end)
    if p == end or p[0] != c'(':
        return 0
    name = p = p + 1
    while p < end and not is_blank(p[0]) and p[0] != c'+' and p[0] != c')':
        p += 1
    return caller_flag(name, p - name)


cdef int read_line(const char *p, const char *end, bint perf, EventRow *row, Line *line) noexcept nogil:
    """Read one line, and say what it is."""
    cdef const char *bracket = p - 1
    cdef int event
    while True:
        bracket = <const char *> memchr(bracket + 1, c'[', end - bracket - 1)
        if bracket == NULL:
            return LINE_NOT_UNDERSTOOD
        if likely(header(p, bracket, end, perf, row, line)):
            break
    if not event_name(line):
        return LINE_NOT_UNDERSTOOD
    event = event_named(line.event.begin, line.event.end - line.event.begin)
    if event == 0:
        return LINE_OTHER_EVENT
    row_clear(row, event)
    if event == EVENT_MARK:
        return LINE_MARK
    if event == EVENT_ISOLATE_RET:
        row.flags = caller(line.text.begin, line.text.end)
    return LINE_ROW if fields(row, line.text.begin, line.text.end) else LINE_NOT_UNDERSTOOD


cdef inline bint is_known(KnownName *names, int pid, Span *name) noexcept nogil:
    """Whether this was the last name seen of this pid; it is from now on, if it is short enough to be kept."""
    cdef KnownName *known = names + (pid & (NAME_SLOTS - 1))
    cdef size_t length = name.end - name.begin
    if likely(known.pid == pid and known.length == length and memcmp(known.name, name.begin, length) == 0):
        return True
    if length <= NAME_BYTES:
        known.pid = pid
        known.length = length
        memcpy(known.name, name.begin, length)
    return False


cdef bytes span_bytes(Span span):
    return span.begin[:span.end - span.begin]


cdef class LineParser:
    """Parses text in pieces, and remembers which process has which name. Not safe for use by several threads at once.

    Parameters
    ----------
    perf : bool
        Whether the lines are those of ``perf script``, else of ftrace and its like.
    """

    cdef bint perf
    cdef KnownName *names
    cdef int64_t last
    cdef readonly unsigned long long lines
    cdef readonly unsigned long long backwards

    def __cinit__(self, bint perf):
        cdef size_t i
        self.perf = perf
        self.last = 0
        self.names = <KnownName *> calloc(NAME_SLOTS, sizeof(KnownName))
        if self.names == NULL:
            raise MemoryError("no memory for the names of processes")
        for i in range(<size_t>NAME_SLOTS):
            self.names[i].pid = NO_PID - 1                  # which no line has

    def __dealloc__(self):
        free(self.names)

    def parse(self, bytes text, size_t begin, uint8_t[::1] out not None, size_t row):
        """Parse whole lines of `text` from `begin` on, into the rows of `out` from `row` on.

        Parameters
        ----------
        text : bytes
            Whatever follows its last newline is left for the next call.
        begin : int
            Where to begin, in bytes.
        out : writable buffer of bytes
            Rows of `EVENT_DTYPE`, viewed as bytes.
        row : int
            The first row to write.

        Returns
        -------
        begin, row : int
            Where to go on.
        what : str
            Why it stopped: "end" (no whole line is left), "full" (no row is left), or for the last line read: "name"
            (its row is of a process that has this name for the first time), "mark" (its row is a marker; its ``value``
            is to be set), "event" (it is of an event that is no row), "line" (it was not understood).
        subject, detail : bytes
            For "name" the name, for "mark" its text and the process's name, for "event" the event, and for "line" the
            line.
        """
        cdef const char *start = PyBytes_AS_STRING(text)
        cdef const char *end = start + len(text)
        cdef const char *p = start + begin
        cdef const char *newline = NULL
        cdef size_t room = out.shape[0] // sizeof(EventRow)
        cdef EventRow *rows = NULL
        cdef Line line
        cdef int kind = LINE_ROW
        cdef bint known = True
        cdef const char *stop
        if begin > <size_t> len(text) or row >= room:
            raise ValueError("there is no text to parse, or no row to write")
        rows = <EventRow *> &out[0]
        with nogil:
            while p < end and row < room:
                newline = <const char *> memchr(p, c'\n', end - p)
                if newline == NULL:
                    break
                stop = newline - 1 if newline > p and (newline - 1)[0] == c'\r' else newline
                if unlikely(stop == p):                     # an empty line
                    p = newline + 1
                    continue
                kind = read_line(p, stop, self.perf, rows + row, &line)
                self.lines += 1
                if likely(kind <= LINE_MARK):
                    self.backwards += rows[row].time < self.last
                    self.last = rows[row].time
                    known = is_known(self.names, rows[row].pid, &line.name)
                    row += 1
                if unlikely(kind != LINE_ROW or not known):
                    break
                p = newline + 1
        if p == end or newline == NULL:
            return p - start, row, "end", b"", b""
        if kind == LINE_ROW and known:
            return p - start, row, "full", b"", b""
        begin = newline + 1 - start
        if kind == LINE_ROW:
            return begin, row, "name", span_bytes(line.name), b""
        if kind == LINE_MARK:
            return begin, row, "mark", span_bytes(line.text), span_bytes(line.name)
        if kind == LINE_OTHER_EVENT:
            return begin, row, "event", span_bytes(line.event), b""
        return begin, row, "line", p[:newline - p], b""

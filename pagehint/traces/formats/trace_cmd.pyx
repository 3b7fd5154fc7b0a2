# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: binding=False, embedsignature=True, embedsignature.format=clinic, freethreading_compatible=True
"""trace-cmd's own files (``trace.dat``), by libtracecmd and libtraceevent, which are loaded when they are needed.

The two decode the file's pages and say where each field of an event is; the fields are read here, each within its
record. The two are not made for files that somebody has damaged on purpose: read such a one elsewhere, with trace-cmd.
What is declared of their structs is the public part that their so-versions fix, as in libtraceevent's
``event-parse.h``.
"""
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, strcmp, strlen
from pagehint.errors import PageHintError, TraceError
from pagehint.sync.atomic cimport unlikely
from pagehint.traces.events cimport EVENT_ISOLATE_RET, EVENT_MARK, NO_CPU, EventRow
from pagehint.traces.formats.fields cimport caller_flag, event_named, field_named, fields_of, row_clear, row_end, row_set

cdef enum:
    MAX_FIELDS = 16             # that a row keeps of one event
    MAX_TYPES = 1 << 16         # of events: the kernel's numbers have 16 bits
    MAX_CPUS = 1 << 16

cdef extern from "<dlfcn.h>" nogil:
    enum:
        RTLD_NOW
        RTLD_LOCAL
    void *dlopen(const char *file, int mode)
    void *dlsym(void *library, const char *name)
    int dlclose(void *library)

cdef struct Record:             # struct tep_record, as far as it is used
    unsigned long long time
    unsigned long long offset
    long long missed_events
    int record_size
    int size
    const uint8_t *data
    int cpu

cdef struct Format:             # struct tep_format_field
    Format *next
    void *event
    char *type
    char *name
    char *alias
    int offset
    int size
    unsigned int arraylen
    unsigned int elementsize
    unsigned long flags

cdef struct EventFormat:        # struct tep_event, its begin
    void *tep
    char *name

cdef enum:
    FORMAT_SIGNED = 4           # TEP_FIELD_IS_SIGNED
    CALLER = -1                 # a `Field.field`: the address to which the function returns
    TEXT = -2                   # the text of a marker

cdef struct Field:              # where a field of ours is in a record
    int field                   # a FIELD_*, CALLER or TEXT
    int offset
    int size
    bint is_signed

cdef struct Layout:             # of the events of one number
    bint known                  # looked up
    int event                   # 0: it is no row
    int nr_fields
    Field fields[MAX_FIELDS]

cdef struct Library:
    void *handle
    void *(*open_head)(const char *, int) noexcept nogil
    int (*init_data)(void *) noexcept nogil
    void (*close)(void *) noexcept nogil
    void *(*get_tep)(void *) noexcept nogil
    Record *(*read_data)(void *, int) noexcept nogil
    void (*free_record)(Record *) noexcept nogil
    void (*set_loglevel)(int) noexcept nogil
    int (*get_cpus)(void *) noexcept nogil
    EventFormat *(*find_event)(void *, Record *) noexcept nogil
    Format **(*event_fields)(EventFormat *) noexcept nogil
    int (*data_type)(void *, Record *) noexcept nogil
    int (*data_pid)(void *, Record *) noexcept nogil
    const char *(*comm)(void *, int) noexcept nogil
    const char *(*find_function)(void *, unsigned long long) noexcept nogil
    unsigned long long (*read_number)(void *, const void *, int) noexcept nogil

cdef Library library            # of the process; it stays loaded


cdef void *symbol(const char *name) except NULL:
    cdef void *found = dlsym(library.handle, name)
    if found == NULL:
        raise PageHintError(f"libtracecmd.so.1 has no {name.decode()}: trace.dat needs version 1.2 or later of it")
    return found


cdef int load(str path) except -1:
    """Load the library once."""
    if library.read_number != NULL:
        return 0
    library.handle = dlopen(b"libtracecmd.so.1", RTLD_NOW | RTLD_LOCAL)
    if library.handle == NULL:
        raise PageHintError(f"{path} is of trace-cmd, which takes libtracecmd to read: apt install libtracecmd1 (Debian,"
                            f" Ubuntu). Or convert it where trace-cmd is: trace-cmd report {path} > trace.txt")
    library.open_head = <void *(*)(const char *, int) noexcept nogil> symbol(b"tracecmd_open_head")
    library.init_data = <int (*)(void *) noexcept nogil> symbol(b"tracecmd_init_data")
    library.close = <void (*)(void *) noexcept nogil> symbol(b"tracecmd_close")
    library.get_tep = <void *(*)(void *) noexcept nogil> symbol(b"tracecmd_get_tep")
    library.read_data = <Record *(*)(void *, int) noexcept nogil> symbol(b"tracecmd_read_data")
    library.free_record = <void (*)(Record *) noexcept nogil> symbol(b"tracecmd_free_record")
    library.set_loglevel = <void (*)(int) noexcept nogil> symbol(b"tracecmd_set_loglevel")
    library.get_cpus = <int (*)(void *) noexcept nogil> symbol(b"tep_get_cpus")
    library.find_event = <EventFormat *(*)(void *, Record *) noexcept nogil> symbol(b"tep_find_event_by_record")
    library.event_fields = <Format **(*)(EventFormat *) noexcept nogil> symbol(b"tep_event_fields")
    library.data_type = <int (*)(void *, Record *) noexcept nogil> symbol(b"tep_data_type")
    library.data_pid = <int (*)(void *, Record *) noexcept nogil> symbol(b"tep_data_pid")
    library.comm = <const char *(*)(void *, int) noexcept nogil> symbol(b"tep_data_comm_from_pid")
    library.find_function = <const char *(*)(void *, unsigned long long) noexcept nogil> symbol(b"tep_find_function")
    library.read_number = <unsigned long long (*)(void *, const void *, int) noexcept nogil> symbol(b"tep_read_number")
    library.set_loglevel(0)                                 # errors are raised, not printed
    return 0


cdef void add_field(Layout *layout, Format *format) noexcept nogil:
    """Note where a field is, if rows of the event keep it."""
    cdef Field *field = layout.fields + layout.nr_fields
    if layout.event == EVENT_MARK:
        field.field = TEXT if strcmp(format.name, b"buf") == 0 else 0
    elif layout.event == EVENT_ISOLATE_RET and strcmp(format.name, b"__probe_ret_ip") == 0:
        field.field = CALLER
    else:
        field.field = field_named(format.name, strlen(format.name)) & fields_of(layout.event)
    if field.field == 0 or layout.nr_fields == MAX_FIELDS - 1:
        return
    field.offset = format.offset
    field.size = format.size
    field.is_signed = format.flags & FORMAT_SIGNED != 0
    layout.nr_fields += 1


cdef void look_up(Layout *layout, EventFormat *event) noexcept nogil:
    """Learn what the events of one number are, and where their fields are."""
    cdef Format **formats
    cdef int i = 0
    layout.known = True
    layout.event = event_named(event.name, strlen(event.name))
    if layout.event == 0:
        return
    formats = library.event_fields(event)
    while formats != NULL and formats[i] != NULL:
        add_field(layout, formats[i])
        i += 1
    free(formats)


cdef bint read_field(void *tep, Record *record, Field *field, EventRow *row) noexcept nogil:
    """Put a field of a record into its row; False if it lies outside of the record, or does not fit."""
    cdef uint64_t number
    cdef bint negative
    cdef const char *name
    if field.offset < 0 or field.size <= 0 or field.size > 8 or record.size - field.size < field.offset:
        return False
    number = library.read_number(tep, record.data + field.offset, field.size)
    if field.field == CALLER:
        name = library.find_function(tep, number)
        if name != NULL:
            row.flags = caller_flag(name, strlen(name))
        return True
    negative = field.is_signed and number >> (8 * field.size - 1) != 0
    if negative:
        number = -number & (<uint64_t>-1 >> (64 - 8 * field.size))
    return row_set(row, field.field, number, negative)


cdef bint read_row(void *tep, Record *record, Layout *layout, EventRow *row) noexcept nogil:
    """Make a row of a record; False if it is not what its event should be."""
    cdef int i, seen = 0
    row_clear(row, layout.event)
    row.time = record.time
    row.pid = library.data_pid(tep, record)
    row.cpu = record.cpu
    for i in range(layout.nr_fields):
        if layout.fields[i].field == TEXT:
            continue
        if not read_field(tep, record, layout.fields + i, row):
            return False
        if layout.fields[i].field > 0:
            seen |= layout.fields[i].field
    return row_end(row, seen, False) and record.time >> 63 == 0 and 0 <= record.cpu < NO_CPU


cdef class TraceCmdFile:
    """A file of trace-cmd's, whose events are read in the order of their times. Not safe for several threads at once.

    Parameters
    ----------
    path : str

    Raises
    ------
    PageHintError
        Without libtracecmd; it names the package.
    TraceError
        If libtracecmd cannot read the file.
    """

    cdef void *handle
    cdef void *tep
    cdef Record **heads         # the next record of each CPU
    cdef Layout *layouts        # by the number of the event
    cdef readonly int cpus
    cdef readonly unsigned long long lines

    def __cinit__(self, str path):
        cdef int cpu
        cdef bytes name = path.encode()
        cdef const char *c_name = name
        load(path)
        with nogil:
            self.handle = library.open_head(c_name, 1)      # 1: no plugins, which are code from elsewhere
            # Not closed after a failure: version 1.3 then frees what it has not allocated. So does `tracecmd_open`.
            if self.handle != NULL and library.init_data(self.handle) < 0:
                self.handle = NULL
        if self.handle == NULL:
            raise TraceError(f"{path} is cut or damaged, or of a version of trace-cmd that this libtracecmd does not know")
        self.tep = library.get_tep(self.handle)
        self.cpus = library.get_cpus(self.tep)
        if not 0 < self.cpus <= MAX_CPUS:
            raise TraceError(f"{path} is of {self.cpus} processors")
        self.heads = <Record **> calloc(self.cpus, sizeof(Record *))
        self.layouts = <Layout *> calloc(MAX_TYPES, sizeof(Layout))
        if self.heads == NULL or self.layouts == NULL:
            raise MemoryError("no memory for the formats of events")
        for cpu in range(self.cpus):
            self.heads[cpu] = library.read_data(self.handle, cpu)

    def __dealloc__(self):
        cdef int cpu
        if self.heads != NULL:
            for cpu in range(self.cpus):
                if self.heads[cpu] != NULL:
                    library.free_record(self.heads[cpu])
        free(self.heads)
        free(self.layouts)
        if self.handle != NULL:
            library.close(self.handle)

    def read(self, uint8_t[::1] out not None, size_t row):
        """Read events into the rows of `out` from `row` on.

        Parameters
        ----------
        out : writable buffer of bytes
            Rows of `EVENT_DTYPE`, viewed as bytes.
        row : int
            The first row to write.

        Returns
        -------
        row : int
            Where to go on.
        what : str
            Why it stopped: "end", "full", "lost" (before the next event), or for the last event read: "mark" (its row
            is a marker; its ``value`` is to be set), "event" (it is no row), "line" (it was not understood).
        subject : bytes
            For "mark" its text, for "event" its name, for "line" what is to be shown.
        time, cpu, count : int
            For "lost": nanoseconds, and how many events are missing, 0 for an unknown number.
        """
        cdef size_t room = out.shape[0] // sizeof(EventRow)
        cdef EventRow *rows
        cdef Record *record = NULL
        cdef Layout *layout = NULL
        cdef int cpu = 0
        cdef bint good = True
        cdef long long missed = 0
        if row >= room:
            raise ValueError("there is no row to write")
        rows = <EventRow *> &out[0]
        with nogil:
            while row < room:
                cpu = self.earliest()
                if cpu < 0:
                    break
                record = self.heads[cpu]
                missed = record.missed_events
                if unlikely(missed != 0):
                    record.missed_events = 0
                    break
                layout = self.layout_of(record)
                good = layout != NULL and layout.event != 0 and read_row(self.tep, record, layout, rows + row)
                self.lines += 1
                if unlikely(not good or layout.event == EVENT_MARK):
                    break
                row += 1
                self.advance(cpu)
        if cpu < 0:
            return row, "end", b"", 0, 0, 0
        if missed != 0:
            return row, "lost", b"", record.time, record.cpu, max(0, missed)
        if good and layout.event != EVENT_MARK:
            return row, "full", b"", 0, 0, 0
        what, subject = self.explain(record, layout, good)
        self.advance(cpu)
        return row + (what == "mark"), what, subject, 0, 0, 0

    cdef explain(self, Record *record, Layout *layout, bint good):
        """Say what an event is that is more, or less, than a row."""
        cdef EventFormat *event = library.find_event(self.tep, record)
        cdef const char *text
        cdef const char *end
        cdef int i, size
        if layout == NULL or event == NULL:
            return "line", b"an event of a number that the file does not explain"
        if layout.event == 0:
            return "event", <bytes> event.name
        if good:
            for i in range(layout.nr_fields):
                if layout.fields[i].field == TEXT and 0 <= layout.fields[i].offset < record.size:
                    text = <const char *> record.data + layout.fields[i].offset
                    size = record.size - layout.fields[i].offset
                    end = <const char *> memchr(text, 0, size)
                    return "mark", text[:end - text] if end != NULL else text[:size]
        return "line", b"an event " + <bytes> event.name + b" without what it should have"

    cdef int earliest(self) noexcept nogil:
        """The CPU whose next record is the earliest; -1 if there is none."""
        cdef int cpu, found = -1
        for cpu in range(self.cpus):
            if self.heads[cpu] != NULL and (found < 0 or self.heads[cpu].time < self.heads[found].time):
                found = cpu
        return found

    cdef void advance(self, int cpu) noexcept nogil:
        library.free_record(self.heads[cpu])
        self.heads[cpu] = library.read_data(self.handle, cpu)

    cdef Layout *layout_of(self, Record *record) noexcept nogil:
        cdef int number = library.data_type(self.tep, record)
        cdef EventFormat *event
        if not 0 <= number < MAX_TYPES:
            return NULL
        if unlikely(not self.layouts[number].known):
            event = library.find_event(self.tep, record)
            if event == NULL:
                return NULL
            look_up(self.layouts + number, event)
        return self.layouts + number

    def name_of(self, int pid):
        """The name of the process with this pid, as bytes; empty if the file has none."""
        cdef const char *name = library.comm(self.tep, pid)
        return <bytes> name if name != NULL else b""

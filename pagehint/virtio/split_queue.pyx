# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=False, freethreading_compatible=False
"""The split virtqueue (section 2.7), the driver's side, in memory that the device sees as well.

It is compiled for its memory barriers, which Python does not have.
"""
from cpython.number cimport PyNumber_Index
from libc.stdint cimport UINT64_MAX, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

import sys

from pagehint.sync.atomic cimport ACQUIRE, RELAXED, RELEASE, SEQ_CST, fence, load16, load32, store16

cdef enum:
    NEXT = 1                    # flags of a descriptor (section 2.7.5)
    WRITE = 2
    NO_INTERRUPT = 1            # of the available ring (section 2.7.6)
    NO_NOTIFY = 1               # of the used ring (section 2.7.8)
    MOST = 32768                # descriptors (section 2.7)

cdef struct Descriptor:
    uint64_t address
    uint32_t length
    uint16_t flags
    uint16_t next

cdef struct Used:
    uint32_t id
    uint32_t length


cdef inline uint64_t device_offset(int size) noexcept nogil:
    """Where the used ring is: behind the descriptor table and the available ring, aligned to 4 bytes."""
    return (16 * size + 6 + 2 * size + 3) & ~3


cdef class SplitQueue:
    """SplitQueue(memory, address, size, event_idx=False)
--

    The driver's side of a split virtqueue: chains of buffers go in, and come back used. One thread at a time may use it.

    Parameters
    ----------
    memory : writable buffer
        The memory of the queue, at least `nr_bytes` of `size` long, aligned to 16 bytes. It is zeroed here.
    address : int
        Its guest-physical address, a multiple of 16.
    size : int
        Descriptors, a power of two, at most 32768 and at most what the device says.
    event_idx : bool, default False
        Whether VIRTIO_F_EVENT_IDX is negotiated: each side says when it wants to be notified next.

    Notes
    -----
    The descriptor table, 16 bytes each, the available ring and the used ring follow one another (sections 2.7.5, 2.7.6,
    2.7.8). Used buffers are polled for: the device is told not to interrupt. What the device writes is not trusted: the
    list of free descriptors is in memory that it does not see. Numbers are little-endian, as on the machines that this is
    built for.
    """

    cdef readonly int size
    cdef readonly bint event_idx
    cdef readonly uint64_t descriptor_area      # guest-physical addresses
    cdef readonly uint64_t driver_area
    cdef readonly uint64_t device_area
    cdef object memory
    cdef Descriptor *descriptors
    cdef uint16_t *available                    # flags, idx, ring, used_event
    cdef uint16_t *used                         # flags, idx, ring of Used, avail_event
    cdef uint16_t *links                        # for each descriptor the next one, in the free list or in its chain
    cdef uint16_t *lengths                      # of each chain, by its first descriptor; 0 if the device does not have it
    cdef uint64_t *writable                     # of each chain, by its first descriptor: bytes that the device may write
    cdef readonly int nr_free
    cdef int nr_chains                          # that the device has
    cdef uint16_t first_free
    cdef uint16_t made_available                # as available.idx is, or will be
    cdef uint16_t notified_at                   # its value when `must_notify` was last asked
    cdef uint16_t seen_used

    def __cinit__(self, memory, uint64_t address, int size, bint event_idx=False):
        cdef int i
        cdef char *base
        if sys.byteorder != "little":
            raise NotImplementedError("virtqueues are little-endian, and this machine is not")
        if not 0 < size <= MOST or size & (size - 1):
            raise ValueError(f"a queue's size is a power of two up to {MOST}, not {size}")
        self.memory = memoryview(memory).cast("B")
        if self.memory.readonly or len(self.memory) < self.nr_bytes(size):
            raise ValueError(f"a queue of {size} needs {self.nr_bytes(size)} writable bytes, not {self.memory!r}")
        cdef unsigned char[::1] there = self.memory
        base = <char *> &there[0]
        if address & 15 or <size_t> base & 15:
            raise ValueError(f"a queue's address must be a multiple of 16, not {address:#x}")
        if address > UINT64_MAX - <uint64_t> self.nr_bytes(size):
            raise ValueError(f"a queue of {size} at {address:#x} goes beyond the address space")
        self.links = <uint16_t *> calloc(size, 2)
        self.lengths = <uint16_t *> calloc(size, 2)
        self.writable = <uint64_t *> calloc(size, 8)
        if self.links == NULL or self.lengths == NULL or self.writable == NULL:
            raise MemoryError("no memory for a queue")
        memset(base, 0, self.nr_bytes(size))
        self.size = self.nr_free = size
        self.event_idx = event_idx
        self.descriptor_area = address
        self.driver_area = address + 16 * size
        self.device_area = address + device_offset(size)
        self.descriptors = <Descriptor *> base
        self.available = <uint16_t *> (base + 16 * size)
        self.used = <uint16_t *> (base + device_offset(size))
        for i in range(size):
            self.links[i] = i + 1
        self.suppress_interrupts()

    def __dealloc__(self):
        free(self.links)
        free(self.lengths)
        free(self.writable)

    @staticmethod
    def nr_bytes(int size):
        """nr_bytes(size)
--

        Return how long the memory of a queue is.
        """
        return device_offset(size) + 6 + 8 * size

    cdef void suppress_interrupts(self) noexcept nogil:
        if self.event_idx:
            # As far away as possible. An interrupt that comes all the same does no harm.
            store16(&self.available[2 + self.size], self.seen_used + 0x8000, RELAXED)
        else:
            store16(&self.available[0], NO_INTERRUPT, RELAXED)

    def add(self, addresses, lengths, int nr_readable=0):
        """add(addresses, lengths, nr_readable=0)
--

        Make a chain of buffers available to the device, which may use it from now on, notified or not.

        Parameters
        ----------
        addresses, lengths : sequence of int
            Guest-physical address and bytes of each buffer; under 4 GiB each.
        nr_readable : int, default 0
            The device reads so many buffers, from the first on, and writes the rest (section 2.7.4.2).

        Returns
        -------
        int
            The chain's name, as `take` will return it.

        Raises
        ------
        ValueError
            If there are no buffers, more than free descriptors, or not as many addresses as lengths.
        OverflowError
            If an address has over 64 bits, or a length over 32.
        TypeError
            If one is no whole number.

        Notes
        -----
        O(buffers).
        """
        cdef int n = len(addresses), i
        cdef uint64_t writable = 0
        cdef uint32_t length
        cdef uint16_t head = self.first_free, at = head
        if len(lengths) != n or not 0 <= nr_readable <= n:
            raise ValueError(f"{n} addresses, {len(lengths)} lengths, {nr_readable} to read")
        if not 0 < n <= self.nr_free:
            raise ValueError(f"a chain of {n} buffers in a queue with {self.nr_free} free descriptors of {self.size}")
        for i in range(n):
            # A number with a fraction is refused, not cut.
            self.descriptors[at].address = PyNumber_Index(addresses[i])
            length = PyNumber_Index(lengths[i])
            self.descriptors[at].length = length
            writable += 0 if i < nr_readable else length
            self.descriptors[at].flags = (NEXT if i < n - 1 else 0) | (0 if i < nr_readable else WRITE)
            self.descriptors[at].next = self.links[at] if i < n - 1 else 0
            at = self.links[at]
        self.first_free = at
        self.nr_free -= n
        self.lengths[head] = n
        self.writable[head] = writable
        self.nr_chains += 1
        self.available[2 + (self.made_available & (self.size - 1))] = head
        self.made_available += 1
        # A device that sees the index sees the ring's entry and the descriptors, too (section 2.7.13.3.1).
        store16(&self.available[1], self.made_available, RELEASE)
        return head

    def must_notify(self):
        """must_notify()
--

        Return whether the device wants a notification of what was made available since the last call (section 2.7.10).
        """
        cdef uint16_t before = self.notified_at, wanted
        # The device can see the buffers before its wish is read; else both could wait for each other (section 2.7.13.4.1).
        fence(SEQ_CST)
        self.notified_at = self.made_available
        if self.event_idx:
            wanted = load16(&self.used[2 + 4 * self.size], RELAXED)
            return <uint16_t>(self.made_available - wanted - 1) < <uint16_t>(self.made_available - before)
        return not load16(&self.used[0], RELAXED) & NO_NOTIFY

    def take(self):
        """take()
--

        Return the name of a chain that the device has used and how many bytes it says to have written, or None.

        Raises
        ------
        ValueError
            If the device gives back what it did not have, or says to have written more than there is room for. Nothing
            has changed then, and the device must be reset, as its state is not known any more.
        """
        cdef Used *entry
        cdef uint32_t head, written
        cdef int n, _i
        cdef uint16_t at, nr_used = load16(&self.used[1], ACQUIRE) - self.seen_used
        if nr_used == 0:
            return None
        if nr_used > self.nr_chains:
            raise ValueError(f"the device gave back {nr_used} chains, and had {self.nr_chains}")
        # Read once: the device may change what has been checked.
        entry = <Used *> &self.used[2] + (self.seen_used & (self.size - 1))
        head = load32(&entry.id, RELAXED)
        written = load32(&entry.length, RELAXED)
        if head >= <uint32_t>self.size or self.lengths[head] == 0:
            raise ValueError(f"the device gave back descriptor {head}, which it did not have")
        if written > self.writable[head]:
            raise ValueError(
                f"the device says {written} bytes written to descriptor {head}, whose buffers have {self.writable[head]}"
            )
        n = self.lengths[head]
        self.lengths[head] = 0
        at = head
        for _i in range(n - 1):
            at = self.links[at]
        self.links[at] = self.first_free
        self.first_free = head
        self.nr_free += n
        self.nr_chains -= 1
        self.seen_used += 1
        self.suppress_interrupts()
        return head, written

    def __repr__(self):
        return f"<SplitQueue of {self.size} at {self.descriptor_area:#x}: {self.nr_free} descriptors free>"

# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=False, freethreading_compatible=False
"""What is asked of the kernel about the file with the guest's RAM, for which Python has no calls.

Of a file in ordinary memory `lseek` finds the holes. Of one in hugetlb pages it does not say which are there, and neither
does mincore, which knows what this process has touched, and not what QEMU has: after a dump by QEMU every page of the
guest is there, and none of them is in our page tables. So a second mapping of such a file, which nobody touches, is
registered for minor faults (userfaultfd, Linux 5.13): to "continue" such a fault maps a page that the file has, and is an
error, EFAULT, for one that it has not. A page that was mapped so is unmapped again by the kernel when it is dropped.
"""
from libc.errno cimport EAGAIN, EBADF, EEXIST, EFAULT, EINTR, ENXIO, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from posix.mman cimport MAP_FAILED, MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE, madvise, mmap, munmap
from posix.unistd cimport close, lseek

import os

import numpy as np

from pagehint import errors

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/ioctl.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* As in the kernel's interface, whose headers a system may not have, or older ones than its kernel. */
    struct pagehint_api { uint64_t version, features, ioctls; };
    struct pagehint_register { uint64_t start, length, mode, ioctls; };
    struct pagehint_continue { uint64_t start, length, mode; int64_t mapped; };
    #define API _IOWR(0xAA, 0x3F, struct pagehint_api)
    #define REGISTER _IOWR(0xAA, 0x00, struct pagehint_register)
    #define CONTINUE _IOWR(0xAA, 0x07, struct pagehint_continue)
    #define VERSION 0xAA
    #define USER_MODE_ONLY 1            /* no privilege is needed then */
    #define MINOR_OF_HUGETLB (1 << 9)
    #define MODE_MINOR (1 << 2)
    #define DONT_WAKE 1                 /* nobody waits */

    /* A userfaultfd for the minor faults of a mapping, or -1. */
    static int pagehint_watch(void *at, size_t nr_bytes) {
        struct pagehint_api api = {VERSION, MINOR_OF_HUGETLB, 0};
        struct pagehint_register all = {(uintptr_t)at, nr_bytes, MODE_MINOR, 0};
        int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | USER_MODE_ONLY);
        if (fd >= 0 && (ioctl(fd, API, &api) || ioctl(fd, REGISTER, &all))) {
            int why = errno;
            close(fd);
            errno = why;
            return -1;
        }
        return fd;
    }

    /* 0, and the page is mapped; or an errno: EEXIST if it was mapped, EFAULT if the file does not have it. */
    static int pagehint_go_on(int fd, void *at, size_t nr_bytes) {
        struct pagehint_continue one = {(uintptr_t)at, nr_bytes, DONT_WAKE, 0};
        return ioctl(fd, CONTINUE, &one) ? errno : 0;
    }
    """
    int pagehint_watch(void *, size_t) nogil
    int pagehint_go_on(int, void *, size_t) nogil
    int MADV_HUGEPAGE
    int SEEK_DATA


def ask_for_huge_pages(size_t address, size_t nr_bytes):
    """ask_for_huge_pages(address, nr_bytes)
--

    Have the kernel use transparent huge pages for a mapping of this process, where it can.

    Raises
    ------
    HostError
        If the kernel, or a sandbox, refuses.
    """
    if madvise(<void *> address, nr_bytes, MADV_HUGEPAGE):
        raise errors.HostError(f"no transparent huge pages for a guest's RAM: {os.strerror(errno)}")


cdef class Holes:
    """Holes(fd, nr_bytes, hugetlb_page=0)
--

    Of which parts of the guest's file the host has no memory.

    Parameters
    ----------
    fd : int
        The file. It is not needed afterwards.
    nr_bytes : int
        How long it is.
    hugetlb_page : int, default 0
        Bytes of its pages, if they are of hugetlb.

    Raises
    ------
    HostError
        If its pages are of hugetlb, and the kernel, or a sandbox, does not say which are there.
    """

    cdef char *probe            # the second mapping, of a file in hugetlb pages
    cdef size_t nr_bytes
    cdef size_t page
    cdef int watch              # the userfaultfd of that mapping

    def __cinit__(self, int fd, size_t nr_bytes, size_t hugetlb_page=0):
        cdef void *at
        self.watch = -1
        self.nr_bytes, self.page = nr_bytes, hugetlb_page
        if not hugetlb_page:
            return
        at = mmap(NULL, nr_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0)
        if at == MAP_FAILED:
            raise errors.no_mapping(errno, f"no second mapping of {nr_bytes} bytes of a guest's RAM")
        self.probe = <char *> at
        self.watch = pagehint_watch(at, nr_bytes)
        if self.watch < 0:
            raise errors.HostError(
                "no huge pages of 2 MiB for a guest: which of them are there is known by userfaultfd alone, with minor"
                f" faults (Linux 5.13), which is refused: {os.strerror(errno)}"
            )

    def __dealloc__(self):
        if self.watch >= 0:
            close(self.watch)
        if self.probe != NULL:
            munmap(self.probe, self.nr_bytes)

    def are(self, int fd, offsets, lengths):
        """are(fd, offsets, lengths)
--

        Return for each range of the file whether the host has no memory for any of it.

        Parameters
        ----------
        fd : int
            The file.
        offsets, lengths : array_like of uint64
            Ranges in it, in bytes; of hugetlb pages whole ones.

        Returns
        -------
        ndarray of bool

        Raises
        ------
        OSError
            If the kernel does not say it.

        Notes
        -----
        One system call for each range, but one for all that are in a hole together, in ascending order; or one for each
        hugetlb page. Without the GIL.
        """
        cdef uint64_t[::1] starts = np.ascontiguousarray(offsets, np.uint64)
        cdef uint64_t[::1] sizes = np.ascontiguousarray(lengths, np.uint64)
        cdef Py_ssize_t i, n = len(starts)
        cdef uint64_t asked = 1, data = 0       # from there on the next memory is here; nothing has been asked yet
        cdef int why = 0
        if fd < 0:
            raise OSError(EBADF, os.strerror(EBADF))
        answer = np.empty(n, np.bool_)
        cdef uint8_t[::1] holes = answer.view(np.uint8)
        for i in range(n):
            if starts[i] > self.nr_bytes or sizes[i] > self.nr_bytes - starts[i]:
                raise ValueError(f"no {sizes[i]} bytes at {starts[i]:#x} of a file of {self.nr_bytes}")
            if self.page and (starts[i] | sizes[i]) % self.page:
                raise ValueError(f"{sizes[i]} bytes at {starts[i]:#x} are not whole pages of {self.page} bytes")
        with nogil:
            for i in range(n):
                if self.page:
                    why = self.has_no_page(starts[i], sizes[i], &holes[i])
                else:
                    if not asked <= starts[i] <= data:
                        asked = starts[i]
                        why = self.next_data(fd, asked, &data)
                    holes[i] = data >= starts[i] + sizes[i]
                if why:
                    break
        if why:
            raise OSError(why, f"whether a guest's RAM is in memory: {os.strerror(why)}")
        return answer

    cdef int next_data(self, int fd, uint64_t start, uint64_t *data) noexcept nogil:
        """Where the file has memory, from there on; its end, if nowhere. Returns 0, or an errno."""
        cdef int64_t found = lseek(fd, start, SEEK_DATA)
        data[0] = self.nr_bytes if found < 0 else <uint64_t> found
        return 0 if found >= 0 or errno == ENXIO else errno     # ENXIO: no data from there to the end

    cdef int has_no_page(self, uint64_t start, uint64_t size, uint8_t *hole) noexcept nogil:
        """Whether a file in hugetlb pages has none of a range. Returns 0, or an errno."""
        cdef uint64_t at = start
        cdef int why
        hole[0] = True
        while at < start + size:
            why = pagehint_go_on(self.watch, self.probe + at, self.page)
            if why == 0 or why == EEXIST:
                hole[0] = False
                return 0
            if why == EFAULT:
                at += self.page
            elif why != EAGAIN and why != EINTR:
                return why
        return 0

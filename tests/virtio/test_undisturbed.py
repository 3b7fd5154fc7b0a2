"""Work that no interrupt may tear, where its thread cannot start."""

from __future__ import annotations

from processes import survives


def test_a_limit_on_address_space_leaves_no_thread_that_no_interrupt_may_tear():
    """There is no address space for its stack: nothing has been done then."""
    survives("""
        import resource
        from pagehint.virtio.undisturbed import undisturbed
        done = []
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), -1))
        try:
            undisturbed(done.append, 1)
        except RuntimeError as error:
            assert "start new thread" in str(error)
        else:
            raise AssertionError("there was a thread")
        assert not done
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        undisturbed(done.append, 1)
        assert done == [1]
    """)

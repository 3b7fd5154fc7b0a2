"""Interrupts of the main thread at random moments."""

from __future__ import annotations

import queue
import random
import signal
import threading
import time


class Storm:
    """Interrupts of the main thread, one to three in a row, at random moments."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.left = 0
        self.felt = 0
        self.first = (1e-6, 0.0005)  # seconds until the first
        self.wanted = queue.SimpleQueue()
        self.done = threading.Semaphore(0)
        self.thread = threading.Thread(target=self.strike, daemon=True)

    def __enter__(self):
        self.before = signal.signal(signal.SIGUSR1, self.struck)
        self.thread.start()
        return self

    def __exit__(self, *exc_info):
        self.wanted.put(None)
        self.thread.join()
        signal.signal(signal.SIGUSR1, self.before)

    def strike(self):
        while (order := self.wanted.get()) is not None:
            delay, times = order
            time.sleep(delay)
            for _ in range(times):
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
                time.sleep(2e-5)
            self.done.release()

    def struck(self, signum, frame):
        if self.left:
            self.left -= 1
            raise KeyboardInterrupt

    def goes_on(self, end, least):
        """Until then; on a busy machine, until so many have been felt."""
        late = time.monotonic() - end
        return late < 0 or (late < 120 and self.felt <= least)

    def over(self, work):
        """Call it in the storm; what it raises of its own goes on."""
        self.left = self.rng.randrange(1, 4)
        self.wanted.put((self.rng.uniform(*self.first), self.left))
        try:
            try:
                work()
            except KeyboardInterrupt:
                self.felt += 1
                raise
            finally:
                self.left = 0
        except KeyboardInterrupt:
            self.left = 0
        self.done.acquire()

"""Hosts to report to."""

from __future__ import annotations

import pagehint as ph


class RecordingHost:
    """Takes reports and remembers them; fails when told to."""

    def __init__(self, max_pages: int = 16) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.answer = None  # what hint_pages returns, or an exception it raises, or a function of the blocks
        self.prepare_answer = None
        self.calls: list[str] = []
        self.callbacks = ph.PageHintingCallbacks(self.hint_pages, max_pages, self.prepare, self.cleanup)

    def hint_pages(self, blocks):
        self.calls.append("hint_pages")
        self.batches.append([(int(block["pfn"]), int(block["order"])) for block in blocks])
        answer = self.answer(blocks) if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def prepare(self):
        self.calls.append("prepare")
        if isinstance(self.prepare_answer, BaseException):
            raise self.prepare_answer
        return self.prepare_answer

    def cleanup(self):
        self.calls.append("cleanup")

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Everything reported so far as (pfn, order), in turn."""
        return [block for batch in self.batches for block in batch]

    def take(self) -> list[tuple[int, int]]:
        """What has been reported since the last look."""
        blocks = self.blocks
        self.batches.clear()
        self.calls.clear()
        return blocks

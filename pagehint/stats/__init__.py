"""What counts look like: `Stats`, `PageAllocator.explain`, and the texts of the /proc files. No mechanism.

Begin with `stats.py`. Uses the words in `pagehint/` only.
"""

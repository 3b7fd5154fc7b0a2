"""The soak: everything at once, at random, for as long as you like. `pagehint soak`, or `python -m pagehint.soak`.

Begin with `soak.py`, then `round.py`; what each thread does is in a file of its own. Uses the public face of pagehint,
as a user's program would.
"""

"""The kinds of owners, a file for each: how its memory is found, what it says of it, and how it gives back.

Begin with `kinds.py`, the list of them, in the order in which they claim. Uses `arena/`, and `address_space.py`,
`contents.py`, `exported.py` and `part.py` of `memory/`.
"""

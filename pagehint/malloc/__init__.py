"""malloc's large requests, of any library of a process, in an arena: what `pagehint run --malloc` does.

Begin with `preload.c`, the library that takes the place of malloc, then `serving.pyx`, which it asks for memory, and
`library.py`, how a program comes to have it. Uses `arena` and the rooms below it.
"""

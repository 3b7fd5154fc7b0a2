"""What a notebook has: the magic `%pagehint`, and its pictures.

Begin with `magic.py`. Uses `numpy` and `arena`.
"""

"""Everything at once, at random, for long: `python -m pagehint.soak`.

Begin with `soak.py`. Uses the public face of pagehint.
"""

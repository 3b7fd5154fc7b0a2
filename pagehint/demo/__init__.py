"""The main job, measured: a bursty workload with hinting off and on, a table, a picture.

Begin with `demo.py`. Uses `arena` and `qemu`.
"""

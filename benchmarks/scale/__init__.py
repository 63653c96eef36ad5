"""What many hospitals would need, on paper: measured figures, multiplied.

    python -m benchmarks.scale
    python -m benchmarks.scale --copies=0 --peak_tflops=989 --chips=8

measures what one pair of an image and a mask, and one query, cost here, and
multiplies by hospitals, images and copies. Nothing of that size was run. What
was not measured is a flag, and said to be an assumption: the speed of an
accelerator and of a hospital's line. `docs/scale.md` says what follows.
"""

"""What loading costs: against bare loops over the same bytes, and side by side with others, in one run.

    python -m benchmarks.load --quick       # a few minutes, few samples: does everything run?
    python -m benchmarks.load               # all of it: about 45 minutes

Pictures and clips are drawn once, into build/load/. A server on this machine hands them out, as far away as its
latency says. Every contestant's pictures are compared with those that Pillow makes of the same files; who leaves out a
part of the work has no figures. img2dataset and MONAI have environments of their own, made under build/peers/.
"""

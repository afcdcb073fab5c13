"""What a dataset in the memory of a Ray cluster costs, against one machine, bare copies and a model.

    python -m benchmarks.scale --quick      # under a minute, very few samples: does everything run?
    python -m benchmarks.scale              # all of it: about ten minutes

All nodes of a cluster are on this machine: they share its cores and memory, and the network between them is its
loopback. So this measures what the library adds, and not what more machines bring; for that there is a model, whose
formulas are held to these measurements.
"""

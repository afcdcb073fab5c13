"""How soon a second process has its first batch: this library beside others, in one run.

    python -m benchmarks.reload --quick     # half a minute: does it run? Three ways, no environments
    python -m benchmarks.reload             # all of it: about an hour and a half, and 32 GB of disk

One process wrote the samples, in the form that each way keeps. Another one, fresh for every repeat, imports what it
needs, and then the clock runs: open, and give the batch of 32 images that chance chose, the same for all, out of a
stock DataLoader.

Warm: every file was read just before. Cold: the page cache has none of it. That is brought about between the imports
and the clock, and looked at with mincore(2). Files lie under build/reload/, environments under build/peers/.
"""

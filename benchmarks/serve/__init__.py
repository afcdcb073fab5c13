"""How fast a loaded dataset feeds PyTorch: this library beside its peers, in one run.

    python -m benchmarks.serve --quick      # a few minutes: does every peer run?
    python -m benchmarks.serve              # all of it

Every peer runs in processes of its own and, where it needs one, in a virtual environment of its own, which the first
run makes under build/peers/. The samples lie under build/serve/ in a neutral form, from which each peer makes its own.

Two kinds of peers need what pip cannot install: FFCV is built from source (g++, pkg-config, libopencv-dev,
libturbojpeg0-dev), and SPDL and torchcodec look for FFmpeg's libraries (on Debian libavdevice59 brings them all). A
peer that cannot be installed or does not run is a row that says so.
"""

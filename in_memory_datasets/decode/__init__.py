"""Encoded bytes, or an already decoded object, to pixels or frames.

`decode_image` and `decode_audio` are the two ways in. Whatever is wrong with the data comes out as a DecodeError with
a reason; the libraries that do the decoding are imported when the first sample is decoded.
"""

from in_memory_datasets.decode.audio import decode_audio
from in_memory_datasets.decode.image import decode_image

__all__ = ["decode_audio", "decode_image"]

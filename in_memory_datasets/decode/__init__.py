"""Encoded bytes, or an already decoded object, to pixels or frames.

`decode_image` and `decode_audio` are the two ways in; `keep_image`, `keep_clip` and `open_clip` are for samples that
are kept encoded, and decoded whenever they are asked for. Whatever is wrong with the data comes out as a DecodeError
with a reason; the libraries that do the decoding are imported when the first sample is decoded.
"""

from in_memory_datasets.decode.audio import decode_audio
from in_memory_datasets.decode.decode_memory import share_decode_memory
from in_memory_datasets.decode.image import decode_image
from in_memory_datasets.decode.kept_clips import check_flac_rate, keep_clip, open_clip
from in_memory_datasets.decode.kept_images import keep_image

__all__ = [
    "check_flac_rate",
    "decode_audio",
    "decode_image",
    "keep_clip",
    "keep_image",
    "open_clip",
    "share_decode_memory",
]

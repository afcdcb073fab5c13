"""Whatever goes into a store comes out of it again."""

from __future__ import annotations

import inspect
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from in_memory_datasets import errors
from in_memory_datasets.rows.messages import describe
from in_memory_datasets.schema import AudioSpec, Failure, ImageSpec, parse_bytes, strip_credentials
from in_memory_datasets.store import open_store, save_store
from in_memory_datasets.training.batches import collate_audio
from tests.making import make_store

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=3).map(tuple)


@st.composite
def image_stores(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    num_samples = draw(st.integers(1, 12))
    fill = np.random.default_rng(draw(st.integers(0, 99)))
    failed = draw(st.sets(st.integers(0, num_samples - 1)))
    samples = [None if i in failed else fill.integers(0, 256, (height, width, 3), np.uint8) for i in range(num_samples)]
    captions = [draw(texts) for _ in samples]
    return ImageSpec((width, height)), samples, captions, draw(st.permutations(range(num_samples)))


@st.composite
def clip_stores(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    spec = AudioSpec(100, 10.0, draw(st.sampled_from(["float32", "int16"])))
    lengths = draw(st.lists(st.one_of(st.none(), st.integers(0, 3000)), min_size=1, max_size=8))
    fill = np.random.default_rng(draw(st.integers(0, 99)))
    samples = [None if n is None else (fill.normal(size=n) * 1000).astype(spec.dtype) for n in lengths]
    captions = [draw(texts) for _ in samples]
    return spec, samples, captions, draw(st.permutations(range(len(lengths))))


@settings(max_examples=60, deadline=None)
@given(st.one_of(image_stores(), clip_stores()))
def test_save_then_open_is_identity(parts) -> None:  # type: ignore[no-untyped-def]
    spec, samples, captions, order = parts
    with tempfile.TemporaryDirectory() as directory:
        with make_store(spec, samples, captions=captions, order=order) as store:
            save_store(store, directory)
        with open_store(directory) as store:
            assert store.spec == spec
            assert store.verify() == []
            for slot, sample in enumerate(samples):
                assert tuple(store.table.captions(slot)) == captions[slot]
                if sample is not None:
                    np.testing.assert_array_equal(store.sample(slot), sample)
            assert [f.index for f in store.table.failures()] == [i for i, s in enumerate(samples) if s is None]
        assert {path.name for path in Path(directory).iterdir()} == {
            "manifest.json",
            "rows.arrow",
            "samples.safetensors",
        }


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 9))
def test_unpadding_a_batch_gives_the_clips_back(lengths: list[int], seed: int) -> None:
    fill = np.random.default_rng(seed)
    clips = [fill.normal(size=length).astype(np.float32) for length in lengths]
    batch = collate_audio([{"audio": clip, "caption": "", "index": i, "valid": True} for i, clip in enumerate(clips)])
    for row, length, clip in zip(batch["audio"], batch["lengths"].tolist(), clips, strict=True):
        np.testing.assert_array_equal(row[:length], clip)
        assert not row[length:].any()


@given(st.text(max_size=50))
def test_every_error_survives_pickling(message: str) -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(kinds) == 9
    for kind in kinds:
        error = kind(message)
        for name in vars(error):
            setattr(error, name, 3)
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (kind, str(error), vars(error))


@given(st.text(max_size=80) | st.text("://@?&;#=ab\t[]", max_size=40))
def test_stripping_credentials_never_fails_and_is_done_once(text: str) -> None:
    assert strip_credentials(strip_credentials(text)) == strip_credentials(text)


@given(
    st.text("abcXYZ09-_", min_size=1, max_size=10),
    st.text("abcXYZ09-_", min_size=8, max_size=12).filter(lambda secret: secret not in "example"),
)
def test_a_password_or_token_is_never_shown(user: str, secret: str) -> None:
    url = f"https://{user}:{secret}@host.example/p?size=1&access_token={secret}&X-Amz-Signature={secret}#top"
    assert secret not in strip_credentials(url)
    assert "size=1" in strip_credentials(url)


@given(
    st.sampled_from(["token", "Signature", "sig", "key"]),
    st.lists(st.sampled_from(["", "", "\t", "\r", "\n", "%"]), min_size=9, max_size=9),
    st.sampled_from(["?", "&", ";", "?https://a.example/y?", "?a=b?", "&c?"]),
)
def test_a_secret_is_not_shown_however_its_field_is_written(name: str, marks: list[str], before: str) -> None:
    letters = [f"%{ord(each):02x}" if mark == "%" else mark + each for mark, each in zip(marks, name, strict=False)]
    field = f"?a=b{before}{''.join(letters)}="
    shown = strip_credentials(f"https://a.example/x{field}geheim#top")
    assert shown == strip_credentials(shown) == f"https://a.example/x{field}***#top"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("//[::1@geheim],@[::1", "//***@[::1"),  # which is split by no reader
        ("\u00a0//[::1?sig=@geheim", "\u00a0//[::1?sig=***"),
        ("https:/\t/me:geheim@a.example/x", "https:/\t/***@a.example/x"),
        ("https://a.example/?token=https://;geheim@b.example", "https://a.example/?token=***@b.example"),
        ("https://a.example/?x://;key=a@geheim", "https://a.example/?x://***"),
        ("https://a.example/b//c@2x.jpg?a=b", "https://a.example/b//c@2x.jpg?a=b"),  # where nothing is to be hidden
    ],
)
def test_what_hides_one_secret_does_not_hide_where_another_begins(text: str, shown: str) -> None:
    assert strip_credentials(text) == shown


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        *((part, 200_000 * part) for part in ("?", "&token", "?a=", "//", "@")),
        (";token=", 200_000 * ";token=***"),
        ("?token=b", "?token=***"),
        ("://@", 200_000 * "://***@"),
    ],
)
def test_an_address_may_be_of_any_length(part: str, shown: str) -> None:
    """It is read in time that grows as it does: with its square, the first would take half an hour."""
    assert strip_credentials(200_000 * part) == shown


def test_an_error_may_say_much() -> None:
    """A word of a million letters is passed over once."""
    said = 1_000_000 * "x" + " at https://{}@a.example/x"
    assert describe("it", ValueError(said.format("me:geheim"))) == f"it: ValueError: {said.format('***')}"


@given(st.integers(1, 10**6), st.sampled_from(["", "k", "M", "G", "T"]))
def test_sizes_in_words(number: int, unit: str) -> None:
    power = " kMGT".index(unit) if unit else 0
    assert parse_bytes(f"{number} {unit}B") == number * 1000**power
    if unit:
        assert parse_bytes(f"{number}{unit}iB") == number * 1024**power


def test_a_failure_shows_its_source_once() -> None:
    failure = Failure(3, "/a.jpg", "fetch", "not_found", "/a.jpg: there is no such file")
    assert str(failure).count("/a.jpg") == 1

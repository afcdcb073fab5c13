"""Whatever lies in a column, rows come out of it, or a reason why not."""

from __future__ import annotations

import json
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from in_memory_datasets.errors import SampleError
from in_memory_datasets.rows import captions, open_rows, source_from_value, sources
from in_memory_datasets.rows.captions import captions_from_value
from in_memory_datasets.rows.reader import DatasetReader
from in_memory_datasets.schema import REASONS

any_text = st.text(st.characters(exclude_categories=()), max_size=20)  # halves of surrogate pairs included
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.none() | st.booleans() | st.integers() | st.floats()
leaves = numbers | any_text | st.binary(max_size=8) | st.just(np.array(["a", "b"])) | st.just(np.float32("nan"))
names = st.sampled_from(["raw", "text", "caption", "tokens", "bytes", "path", "array", "url", "sentences"]) | any_text
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)
json_texts = values.map(lambda value: json.dumps(value, default=str))
prefixes = ["data:", "data:image/png;base64,", "http://", "https://[", "s3://", "//", "~", "", "file:///"]
addresses = st.builds(str.__add__, st.sampled_from(prefixes), any_text)


@given(values | json_texts)
def test_captions_are_texts_that_a_store_can_keep_or_refused(value: Any) -> None:
    try:
        captions = captions_from_value(value)
    except (TypeError, ValueError):
        return
    assert isinstance(captions, tuple)
    for caption in captions:
        assert type(caption) is str
        caption.encode()


@given(texts.filter(lambda text: text.lstrip()[:1] not in ("[", "{")))
def test_plain_text_comes_out_unaltered(text: str) -> None:
    assert captions_from_value(text) == (text,)
    assert captions_from_value([text, text]) == (text, text)
    assert captions_from_value({"raw": text}) == (text,)


@given(st.sampled_from("[{"), st.from_regex(r"[a-z ,']{0,9}[\]}]? [a-z]+", fullmatch=True))
def test_text_that_begins_with_a_bracket_comes_out_unaltered(bracket: str, rest: str) -> None:
    assert captions_from_value(bracket + rest) == (bracket + rest,)


@given(any_text)
def test_no_text_is_refused(text: str) -> None:
    for value in (text, [text], {"text": [text]}):
        for caption in captions_from_value(value):
            caption.encode()


@given(st.lists(texts, max_size=4))
def test_a_list_of_captions_comes_out_of_every_way_to_write_it(captions: list[str]) -> None:
    expected = tuple(captions)
    written = [
        captions,
        tuple(captions),
        json.dumps(captions),
        json.dumps(captions, ensure_ascii=False),
        repr(captions),
        json.dumps({"text": captions}),
        [{"raw": caption} for caption in captions if caption[:1] not in ("[", "{")],
    ]
    for value in written[:-1]:
        assert captions_from_value(value) == expected
    assert captions_from_value(written[-1]) == tuple(caption for caption in captions if caption[:1] not in ("[", "{"))


@given(values | addresses | st.dictionaries(names, values | addresses, max_size=3))
def test_sources_are_found_or_refused_with_a_reason(value: Any) -> None:
    refusal = source = None
    try:
        source = source_from_value(value)
    except SampleError as error:
        refusal = error
    if refusal is not None:
        assert (refusal.stage, refusal.reason in REASONS) == ("row", True)
        str(refusal).encode()
    if source is not None:
        assert source.kind in ("url", "path", "fsspec", "bytes", "object")
        assert isinstance(source.label, str)
        assert (source.kind == "bytes") == isinstance(source.value, bytes)


@settings(max_examples=50)
@given(st.lists(st.fixed_dictionaries({"image": values | addresses, "caption": values}) | values, max_size=5))
def test_every_record_becomes_a_row_of_its_own_number(records: list[Any]) -> None:
    rows = [{"image": "a.png", "caption": "first"}, *records]
    reader = open_rows(rows, media_col="image", txt_col="caption", max_samples=None)
    found = [row for batch in reader.batches() for row in batch]
    assert [row.index for row in found] == list(range(len(rows)))
    assert all((row.source is None) == (row.error is not None) for row in found)
    assert all(row.error is None or row.error.reason in REASONS for row in found)
    assert reader.identity == open_rows(rows, media_col="image", txt_col="caption", max_samples=None).identity


urls = st.builds(
    lambda scheme, host, rest: f"{scheme}://{host}{rest}",
    st.sampled_from(["http", "https", "HTTP", "s3", "ftp"]),
    st.from_regex(r"[A-Za-z0-9.:@\[\] _é-]{0,12}", fullmatch=True),
    st.text(st.sampled_from("/?#abc. \t%\x1f\x7fé\\"), max_size=12),
)


@given(urls | addresses | any_text)
def test_plain_addresses_are_what_a_closer_look_finds(text: str) -> None:
    """The short cut for addresses as nearly all are gives what the long way gives."""
    try:
        expected: Any = sources._from_text(text)
    except SampleError as error:
        expected = str(error)
    try:
        found: Any = source_from_value(text)
    except SampleError as error:
        found = str(error)
    assert found == expected


@given(any_text | json_texts)
def test_plain_captions_are_what_a_closer_look_finds(text: str) -> None:
    """The short cut for text as nearly all is gives what the long way gives."""
    assert captions_from_value(text) == tuple(captions._scalar_values(each) for each in captions._find(text))


table_texts = st.none() | texts | urls.filter(lambda url: url.isascii()) | st.sampled_from(['["a", "b"]', "{}", " "])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(table_texts, table_texts), min_size=1, max_size=8), st.integers(1, 4))
def test_rows_of_plain_columns_are_those_of_the_long_way(pairs: list[tuple[Any, Any]], batch_size: int) -> None:
    """Column by column or record by record: the same rows, failures and all, under the same numbers."""
    table = pa.table(
        {"url": pa.array([url for url, _ in pairs], pa.string()), "text": pa.array([c for _, c in pairs], pa.string())}
    )
    reader = open_rows(datasets.Dataset(table), media_col="url", txt_col="text", max_samples=None)
    assert isinstance(reader, DatasetReader)
    reader._batch_size = batch_size
    rows = [row for batch in reader.batches() for row in batch]
    long_way = [reader._make_row(index, record) for index, record in enumerate(table.to_pylist())]
    assert [(row.index, row.source, row.captions, str(row.error)) for row in rows] == [
        (row.index, row.source, row.captions, str(row.error)) for row in long_way
    ]

"""Finding the column that is meant, and its value in a row."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest

from in_memory_datasets.errors import ConfigError
from in_memory_datasets.rows.columns import check_types, find_column


def value_of(spec: Any, row: Mapping[str, Any], kind: Any = "captions") -> Any:
    return find_column(spec, row, kind=kind).value_in(row)


def test_a_name_is_taken_before_a_path() -> None:
    assert value_of("json.text", {"json.text": "whole", "json": {"text": "inner"}}) == "whole"
    assert value_of("a.b.c", {"a.b": {"c": 1}, "a": {"b": {"c": 2}}}) == 1


def test_a_path_goes_through_structs_lists_and_json_text() -> None:
    assert value_of("json.text", {"json": {"text": ["rain"]}}) == ["rain"]
    assert value_of("json.text", {"json": '{"text": ["rain"]}'}) == ["rain"]
    assert value_of("json.text", {"json": b'{"text": ["rain"]}'}) == ["rain"]
    assert value_of("sentences.raw", {"sentences": [{"raw": "a"}, {"raw": "b"}]}) == ["a", "b"]
    assert value_of("meta.image.bytes", {"meta": {"image": {"bytes": b"x"}}}, "media") == b"x"


def test_a_path_that_leads_nowhere_in_one_row_gives_nothing() -> None:
    column = find_column("json.text", ["json"], kind="captions")
    assert [column.value_in(row) for row in ({"json": None}, {"json": "no JSON"}, {"json": {}}, {})] == [None] * 4


@pytest.mark.parametrize("form", ["caption_{}", "caption{}"])
def test_numbered_captions_are_taken_together_in_the_order_of_their_numbers(form: str) -> None:
    names = [form.format(number) for number in (2, 10, 1)]
    column = find_column("caption", ["file_name", *names, "caption_of_2"], kind="captions")
    assert column.roots == tuple(form.format(number) for number in (1, 2, 10))
    row = {name: f"text of {name}" for name in names}
    assert column.value_in(row) == [f"text of {form.format(number)}" for number in (1, 2, 10)]
    assert column.value_in({**row, form.format(2): None}) == [f"text of {form.format(number)}" for number in (1, 10)]


def test_media_are_never_taken_together() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'image_[12]'"):
        find_column("image", ["image_1", "image_2"], kind="media")


def test_a_callable_is_a_column_whatever_kind_of_callable_it_is() -> None:
    row = {"title": "a", "text": "b"}
    assert value_of(lambda row: row["text"], row) == "b"
    assert value_of(operator.itemgetter("title", "text"), row) == ("a", "b")
    assert value_of(functools.partial(joined, separator=" – "), row) == "a – b"


def joined(row: Mapping[str, Any], separator: str) -> str:
    return separator.join(row.values())


@pytest.mark.parametrize(
    ("spec", "names", "kind", "guess"),
    [
        ("captoin", ["image", "caption"], "captions", "caption"),
        ("caption", ["image_url", "alt_text"], "captions", "alt_text"),
        ("caption", ["flac", "json"], "captions", "json"),
        ("image_url", ["url", "text"], "media", "url"),
        ("image_url", ["image", "text"], "media", "image"),
        ("audio", ["flac", "json", "__key__"], "media", "flac"),
        ("Caption", ["caption", "url"], "captions", "caption"),
    ],
)
def test_a_missing_column_is_refused_with_the_one_probably_meant(
    spec: str, names: list[str], kind: Any, guess: str
) -> None:
    with pytest.raises(ConfigError, match=rf"no column '{spec}' .*did you mean '{guess}'\?$") as caught:
        find_column(spec, names, kind=kind)
    assert all(repr(name) in str(caught.value) for name in names)


def test_nothing_is_guessed_where_nothing_is_like_it() -> None:
    with pytest.raises(ConfigError, match=r"the columns are 'a', 'b'$"):
        find_column("caption", ["a", "b"], kind="captions")
    with pytest.raises(ConfigError, match=r"the columns are none$"):
        find_column("caption", [], kind="captions")


@pytest.mark.parametrize("spec", [None, "", 5, ["caption"]])
def test_what_names_no_column_is_refused(spec: Any) -> None:
    with pytest.raises(ConfigError, match="expected a column name, a dotted path or a callable"):
        find_column(spec, ["caption"], kind="captions")


SCHEMA = pa.schema(
    {
        "json": pa.struct({"text": pa.list_(pa.string()), "n": pa.int64()}),
        "sentences": pa.list_(pa.struct({"raw": pa.string()})),
        "packed": pa.string(),
        "label": pa.int64(),
        "score": pa.float32(),
        "flag": pa.bool_(),
    }
)


@pytest.mark.parametrize("spec", ["json.text", "json", "sentences.raw", "sentences", "packed", "packed.anything.goes"])
def test_types_that_can_hold_captions_pass(spec: str) -> None:
    check_types(find_column(spec, SCHEMA.names, kind="captions"), SCHEMA)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("json.txt", "no field 'txt' in it, only 'text', 'n'; did you mean 'text'"),
        ("sentences.row", "no field 'row' in it, only 'raw'"),
        ("label", "column 'label' holds int64, not captions"),
        ("score", "holds float"),
        ("flag", "holds bool"),
        ("json.n", "column 'json.n' holds int64"),
    ],
)
def test_types_that_cannot_are_refused_before_anything_is_read(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_types(find_column(spec, SCHEMA.names, kind="captions"), SCHEMA)


def test_media_may_be_numbers_in_a_list() -> None:
    schema = pa.schema({"image": pa.list_(pa.list_(pa.uint8()))})
    check_types(find_column("image", schema.names, kind="media"), schema)

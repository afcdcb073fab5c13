"""Every shape a published caption column has, and the real tables that have them."""

from __future__ import annotations

import csv
import json
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from in_memory_datasets.rows import open_rows
from in_memory_datasets.rows.captions import captions_from_value

CAKE = "A woman wearing a net on her head cutting a cake. "

SHAPES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "text": (CAKE, (CAKE,)),
    "list of texts": (["a dog", "two dogs "], ("a dog", "two dogs ")),
    "tuple of texts": (("a dog",), ("a dog",)),
    "numpy array of texts": (np.array(["a dog", "ü"]), ("a dog", "ü")),
    "numpy array of objects": (np.array(["a dog", None], dtype=object), ("a dog",)),
    "numpy text": (np.str_("a dog"), ("a dog",)),
    "numpy array of one text": (np.array("a dog"), ("a dog",)),
    "bytes": ("ein Hündchen".encode(), ("ein Hündchen",)),
    "struct with raw": ({"tokens": ["a", "cake"], "raw": CAKE, "imgid": 1, "sentid": 2}, (CAKE,)),
    "struct with text": ({"text": "rain", "tag": ["water"]}, ("rain",)),
    "struct with tokens alone": ({"tokens": ["a", "cake"]}, ("a cake",)),
    "struct with lists of tokens": ({"tokens": [["a", "cake"], ["a", "dog"]]}, ("a cake", "a dog")),
    "struct with tokens that are text": ({"tokens": "a cake"}, ("a cake",)),
    "struct of lists": ({"raw": ["a", "b"], "tokens": [["a"], ["b"]]}, ("a", "b")),
    "list of structs": ([{"raw": "a ", "sentid": 1}, {"raw": "b", "sentid": 2}], ("a ", "b")),
    "lists of tokens": ([["a", "dog"], ["two", "dogs"]], ("a dog", "two dogs")),
    "JSON struct": ('{"text": ["rain", "drops"], "tag": ["water"], "original_data": {"n": 1}}', ("rain", "drops")),
    "JSON list": (' ["rain", "drops"]\n', ("rain", "drops")),
    "JSON list of structs": ('[{"raw": "rain"}, {"raw": "drops"}]', ("rain", "drops")),
    "Python list": ("['low quality', \"singer's voice\"]", ("low quality", "singer's voice")),
    "Python list with an odd escape": (r"['a \d']", (r"a \d",)),
    "None": (None, ()),
    "NaN": (float("nan"), ()),
    "NaN of numpy": (np.float32("nan"), ()),
    "NA of pandas": (pandas.NA, ()),
    "empty list": ([], ()),
    "empty struct": ({}, ()),
    "struct without text": ({"raw": None}, ()),
    "list with gaps": (["a", None, float("nan"), "b"], ("a", "b")),
    "list of empty lists of tokens": ([[], []], ()),
    "empty JSON list": ("[]", ()),
    "empty text": ("", ("",)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_captions_are_found_in(shape: str) -> None:
    value, captions = SHAPES[shape]
    found = captions_from_value(value)
    assert found == captions
    assert {type(caption) for caption in found} <= {str}


@pytest.mark.parametrize(
    "text",
    [
        "[music] a band plays",
        "{unclear} speech",
        "[1, 2]",
        "[",
        "{",
        "[{[]: 1}]",
        '{"text": 5}',
        '{"a": "b"}',
        "['a', 5]",
        "[" * 10_000,
        "  two blanks  ",
        "'a', 'b'",
        "null",
        "NaN",
        "<b>bold</b>\r\n\x00",
    ],
)
def test_text_is_a_caption_unaltered_unless_all_of_it_is_a_list_of_captions(text: str) -> None:
    assert captions_from_value(text) == (text,)


def test_captions_never_warn_of_what_python_thinks_of_them() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        captions_from_value(r"['a \d \w']")
    assert caught == []


@pytest.mark.parametrize("value", [5, 2.5, True, [1, 2], {"label": 3}, {"raw": 5}, object()])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="holds no captions"):
        captions_from_value(value)


def test_bytes_other_than_utf8_are_refused_rather_than_guessed() -> None:
    with pytest.raises(UnicodeDecodeError):
        captions_from_value("Hündchen".encode("latin-1"))


def test_half_a_surrogate_pair_which_no_store_can_keep_becomes_a_replacement_character() -> None:
    cut, whole = json.loads(r'["a cut emoji \ud83d", "a whole one \ud83d\ude00"]')
    assert captions_from_value([cut, whole]) == ("a cut emoji �", "a whole one 😀")
    assert captions_from_value("\ud83d\ude00") == ("😀",)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_musiccaps_has_a_caption_and_a_python_list_of_aspects_in_every_row(corpora: Path) -> None:
    rows = read_csv(corpora / "caption_tables" / "musiccaps-public.csv")
    for row in rows:
        assert captions_from_value(row["caption"]) == (row["caption"],)
        aspects = captions_from_value(row["aspect_list"])
        assert aspects
        assert str(list(aspects)) == row["aspect_list"]
    first = rows[0]
    assert captions_from_value(first["aspect_list"])[:2] == ("low quality", "sustained strings melody")


def test_audiocaps_has_one_caption_a_row_with_its_commas(corpora: Path) -> None:
    rows = read_csv(corpora / "caption_tables" / "audiocaps_val.csv")
    reader = open_rows(rows, media_col="youtube_id", txt_col="caption", max_samples=None)
    captions = [row.captions for batch in reader.batches() for row in batch]
    assert captions == [(row["caption"],) for row in rows]
    assert any("," in caption for (caption,) in captions)


def test_coco_json_gives_each_picture_its_captions_in_order(corpora: Path) -> None:
    coco = json.loads((corpora / "caption_tables" / "coco_mini_captions_val2017.json").read_text(encoding="utf-8"))
    of_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in coco["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    pictures = [{**image, "captions": of_image[image["id"]]} for image in coco["images"]]
    reader = open_rows(pictures, media_col="coco_url", txt_col="captions", max_samples=None)
    rows = [row for batch in reader.batches() for row in batch]
    assert len(rows) == len(pictures) > 0
    for row, picture in zip(rows, pictures, strict=True):
        assert row.source is not None
        assert (row.source.kind, row.source.value) == ("url", picture["coco_url"])
        assert row.captions == tuple(each["caption"] for each in picture["captions"])
        assert len(row.captions) >= 5

"""Numbers with a decimal comma and dates with the day first: refused as what they are, and taken from a data frame."""

import numpy as np
import pandas as pd
import pytest

import streamtrain
from streamtrain.errors import InputError
from streamtrain.ingestion.sources.tables.foreign_forms import foreign_form


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"37,5", "4"}, "numbers with a decimal comma (37,5)"),
        ({"-1.234,50", "0,1"}, "numbers with a decimal comma (-1.234,50)"),
        ({"28.02.2023", "1.3.2023"}, "dates with the day first (1.3.2023)"),
        ({"28/02/2023 10:15"}, "dates with the day first (28/02/2023 10:15)"),
        ({"37", "4"}, None),
        ({"a,b"}, None),
        ({"1,2,3"}, None),
        ({"37,5", "tall"}, None),
        (set(), None),
        (None, None),
    ],
)
def test_a_form_is_all_or_nothing(texts, expected):
    assert foreign_form(texts) == expected


@pytest.fixture
def table(tmp_path):
    draw = np.random.default_rng(0)
    rows = [f"{n},{draw.integers(10)};{n % 28 + 1:02}.01.2023;{n},5" for n in range(60)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["size;day;price", *rows]))
    return path


def test_a_table_of_them_is_refused_column_by_column_and_read_by_pandas(table, tmp_path):
    with pytest.raises(InputError) as caught:
        streamtrain.ingest(table, tmp_path / "d", label_column="price", auto=True)
    for part in ("'size' holds numbers with a decimal comma", "'day' holds dates with the day first", "size", "day"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match=r"labels in column 'price' are numbers with a decimal comma \(0,5\)"):
        streamtrain.ingest(table, tmp_path / "d", label_column="price", exclude=["size", "day"])
    frame = pd.read_csv(table, sep=";", decimal=",", dayfirst=True, parse_dates=["day"])
    dataset = streamtrain.ingest(frame, tmp_path / "d", label_column="price", dates={"day": "days"})
    assert dataset.task == "regression"
    assert dataset[1]["y"] == 1.5


def test_such_texts_may_be_classes_that_are_named(table, tmp_path):
    names = [f"{n},5" for n in range(60)]
    dataset = streamtrain.ingest(
        table, tmp_path / "d", label_column="price", exclude=["size", "day"], columns=None, classes=names
    )
    assert dataset.classes is not None

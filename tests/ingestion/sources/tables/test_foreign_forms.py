"""Numbers with a decimal comma, dates with the day first, marks beside numbers: refused, with what cleans them."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import streamtrain
from streamtrain.errors import InputError
from streamtrain.ingestion.sources.tables.foreign_forms import TextForms


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"37,5", "4"}, "numbers with a decimal comma (37,5)"),
        ({"-1.234,50", "0,1"}, "numbers with a decimal comma (-1.234,50)"),
        ({"28.02.2023", "1.3.2023"}, "dates with the day first (1.3.2023)"),
        ({"28/02/2023 10:15"}, "dates with the day first (28/02/2023 10:15)"),
        ({"02/28/2023", "1/3/2023"}, "dates with the month first (02/28/2023)"),
        ({"28/02/2023", "02/28/2023"}, None),
        ({"37", "4"}, None),
        ({"37,5", "4.5"}, None),
        ({"37,5", "28.02.2023"}, None),
        ({"a,b"}, None),
        ({"1,2,3"}, None),
        ({"37,5", "tall"}, None),
        ({"yes", "no"}, None),
        (set(), None),
    ],
)
def test_a_form_is_all_or_nothing(texts, expected):
    assert said_of(dict.fromkeys(texts, 1)) == expected


def said_of(counts):
    forms = TextForms()
    for text, n in counts.items():
        forms.add({text: n})
    return None if forms.form() is None else str(forms.form())


@pytest.mark.parametrize(
    ("numbers", "marks", "expected"),
    [
        ([f"{n},5" for n in range(50)], {"-": 3}, "numbers with a decimal comma (0,5): 50 of 53 values, and 3 are '-'"),
        (
            [f"{n},5" for n in range(5)],
            {"k. A.": 1},
            "numbers with a decimal comma (0,5): 5 of 6 values, and 1 is 'k. A.'",
        ),
        ([f"{n},5" for n in range(50)], {"-": 3, "a7": 1}, None),
        ([f"{n},5" for n in range(50)], dict.fromkeys("abcd", 1), None),
        (
            [f"{n}.5" for n in range(50)],
            {".": 2, "n/a": 1},
            "numbers (0.5): 50 of 53 values, and 2 are '.', 1 is 'n/a'",
        ),
        # Chromosomes, and few classes.
        ([f"{n}" for n in range(1, 23)], {"X": 9, "Y": 2}, None),
        ([f"{n}" for n in range(1, 6)], {"-": 9}, None),
    ],
)
def test_marks_beside_numbers_are_told_apart_from_names(numbers, marks, expected):
    assert said_of(dict.fromkeys(numbers, 1) | marks) == expected
    assert said_of(marks | dict.fromkeys(numbers, 1)) == expected


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
    with pytest.raises(InputError, match=r"label column 'price' holds numbers with a decimal comma \(0,5\)"):
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


ROWS = 200


@pytest.fixture
def german():
    """Make a table of texts as German programs write them, of which a few are marks."""
    day = [f"{n % 28 + 1:02}.{n % 12 + 1:02}.2024" for n in range(ROWS)]
    price = [f"{n % 3}.{n:03},25" if n % 3 else f"{n},25" for n in range(ROWS)]
    sales = ["-" if n % 40 == 7 else f"{n % 97},{n % 7}" for n in range(ROWS)]
    return pd.DataFrame(
        {"day": day, "code": [f"{n * 7 % 150:05}" for n in range(ROWS)], "price": price, "sales": sales}
    )


def path_of(frame, folder, suffix):
    path = folder / f"Verkäufe.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == "tsv" else ";")
    return path


def cleaned_by(fix, folder):
    """Run the command of a remedy as it is printed; return the file that it writes."""
    command, _, told = fix.partition(" writes ")
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, cwd=folder)
    return told.removesuffix(", to be given instead")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    "options", [{"auto": True}, {}, {"dates": ["day"], "na": "fill=mean", "drop_unlabelled": True}]
)
def test_the_command_that_is_given_cleans_the_file(german, tmp_path, suffix, options):
    path = path_of(german, tmp_path, suffix)
    with pytest.raises(InputError) as caught:
        streamtrain.ingest(path, tmp_path / "d", label_column="sales", **options)
    for part in ("'day' holds dates with the day first", "'price' holds numbers", "195 of 200 values, and 5 are '-'"):
        assert part in caught.value.what
    assert not (tmp_path / "d").exists()
    made = cleaned_by(caught.value.fix, tmp_path)
    said = []
    dataset = streamtrain.ingest(made, tmp_path / "d", label_column="sales", auto=True, say=said.append)
    assert (len(dataset), dataset.task, dataset[0]["y"]) == (195, "regression", 0)
    assert dataset[1]["x"][dataset.columns.index("price")] == 1001.25
    assert dataset[1]["x"][dataset.columns.index("day")] == np.datetime64("2024-02-02", "s").astype(int)
    if suffix != "parquet":
        assert any("code has leading zeros" in text for text in said)


def test_the_lines_that_are_given_clean_a_frame(german, tmp_path):
    with pytest.raises(InputError) as caught:
        streamtrain.ingest(german, tmp_path / "d", label_column="sales", auto=True)
    names = {"df": german, "pd": pd}
    exec(caught.value.fix.removeprefix("of a data frame of pandas, "), names)
    dataset = streamtrain.ingest(names["df"], tmp_path / "d", label_column="sales", auto=True, say=print)
    assert (len(dataset), dataset.task) == (195, "regression")


@pytest.mark.parametrize("options", [{"auto": True}, {}])
def test_marks_beside_numbers_of_a_label_are_no_class(tmp_path, options):
    path = tmp_path / "a.csv"
    rows = [f"{n},{'-' if n % 50 == 3 else 'missing' if n == 9 else n + 0.5}" for n in range(ROWS)]
    path.write_text("\n".join(["a,y", *rows]))
    with pytest.raises(
        InputError, match=r"label column 'y' holds numbers .0.5.: 195 of 200 values, and 4 are '-'"
    ) as caught:
        streamtrain.ingest(path, tmp_path / "d", label_column="y", **options)
    marks = caught.value.fix.argument("na_values").value
    dataset = streamtrain.ingest(path, tmp_path / "d", label_column="y", auto=True, na_values=marks, say=print)
    assert (len(dataset), dataset.task) == (195, "regression")


def test_marks_that_were_given_stay(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "\n".join(["a,y", *(f"{'?' if n % 50 == 3 else n},{'-' if n % 40 == 3 else n + 0.5}" for n in range(ROWS))])
    )
    with pytest.raises(InputError) as caught:
        streamtrain.ingest(path, tmp_path / "d", label_column="y", auto=True, na_values=["?"])
    assert caught.value.fix.argument("na_values").value == ["?", "-"]


def test_labels_in_a_file_of_their_own_are_told_as_well(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((60, 2)))
    path = tmp_path / "y.csv"
    path.write_text("\n".join(["y", *(f"{n},5" for n in range(60))]))
    with pytest.raises(InputError, match="label column 'y' holds numbers with a decimal comma"):
        streamtrain.ingest(tmp_path / "x.npy", tmp_path / "d", labels=path, delimiter=";")
    path.write_text("\n".join(["y", *("n/a" if n == 7 else str(n) for n in range(60))]))
    with pytest.raises(InputError, match="1 label is empty"):
        streamtrain.ingest(tmp_path / "x.npy", tmp_path / "d", labels=path)


def test_a_label_of_too_many_texts_is_told_as_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("streamtrain.ingestion.sources.tables.column_survey.MAX_CLASSES", 50)
    monkeypatch.setattr("streamtrain.ingestion.sources.tables.roles.findings._MOST_DISTINCT", 50)
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["a;y", *(f"{n},25;{n},5" for n in range(100))]))
    with pytest.raises(
        InputError, match=r"column 'a' holds numbers with a decimal comma .*label column 'y' holds numbers"
    ):
        streamtrain.ingest(path, tmp_path / "d", label_column="y", auto=True)


def test_rows_for_a_model_get_the_same_diagnosis(german, tmp_path):
    clean = pd.read_csv(
        path_of(german, tmp_path, "csv"),
        sep=";",
        decimal=",",
        thousands=".",
        na_values=["-"],
        dtype={"code": str},
        parse_dates=["day"],
        dayfirst=True,
    )
    dataset = streamtrain.ingest(
        clean, tmp_path / "d", label_column="sales", dates=["day"], categorical=["code"], drop_unlabelled=True
    )
    path = path_of(german, tmp_path, "csv")
    with pytest.raises(
        InputError, match=r"'price' holds numbers with a decimal comma.*'day' holds dates with the day"
    ) as caught:
        list(streamtrain.rows(path, like=dataset))
    made = cleaned_by(caught.value.fix, tmp_path)
    found = np.concatenate([run["cat"] for run in streamtrain.rows(made, like=dataset, say=print)])
    assert (found > 1).mean() > 0.9

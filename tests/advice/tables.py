"""Worlds of tables: CSV, TSV and Parquet, their columns and their labels."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import streamtrain as st
from tests.advice.world import World, world

_COLUMNS = "ingestion/sources/tables/table_columns.py:"
_SURVEY = "ingestion/sources/tables/column_survey.py:"
_CSV = "ingestion/sources/tables/delimited.py:"
_TEXT = "ingestion/sources/tables/text/encoded_text.py:"
_FORM = "ingestion/sources/tables/text/text_form.py:"
_OPTIONS = "ingestion/sources/tables/table_options.py:"
_PARQUET = "ingestion/sources/tables/parquet.py:"
_COMBINE = "ingestion/sources/combine.py:"


def rewritten(w: World, wrong: str, right: str, options: str = "") -> None:
    """A table that is refused, and what its remedy makes of it."""
    Path("t.csv").write_text(wrong)
    w.refuses(f"ingest t.csv d.zarr {options}")
    Path("t.csv").write_text(right)
    w.works(f"ingest t.csv d.zarr {options}")


@world(f"{_CSV}_check_delimiter: delimiter={{}}")
def another_delimiter(w: World) -> None:
    Path("wine.csv").write_text("acid;sugar;quality\n7.4;1.9;5\n7.8;2.6;6\n")
    w.refuses("ingest wine.csv d.zarr --label-column quality --delimiter ,")
    w.works("ingest wine.csv d.zarr --label-column quality --delimiter ;")


@world(
    f"{_TEXT}check_mark: encoding={{}}",
    f"{_TEXT}unreadable_text: name the encoding it is written in: {{}}, say; or convert it: {{}}",
    f"{_TEXT}unreadable_text: name the encoding it is written in, or correct the byte",
)
def other_encodings(w: World) -> None:
    for encoding in ("utf-16", "latin1"):
        Path(f"{encoding} t.csv").write_text("a,größe\n1,0\n2,1\n", encoding=encoding)
        w.refuses(["ingest", f"{encoding} t.csv", f"{encoding}.zarr"])
        w.works(["ingest", f"{encoding} t.csv", f"{encoding}.zarr", "--encoding", encoding])
    command = w.refuses(["ingest", "latin1 t.csv", "d.zarr"]).partition("convert it: ")[2]
    subprocess.run(["sh", "-c", command], check=True)
    w.works(["ingest", command.rpartition("> ")[2].strip("'"), "d.zarr"])
    w.refuses(["ingest", "latin1 t.csv", "e.zarr", "--encoding", "ascii"])
    w.works(["ingest", "latin1 t.csv", "e.zarr", "--encoding", "latin1"])


@world(
    f"{_FORM}form_of: add a first line of column names; or name them: header='none' and names={{}}",
    f"{_FORM}_names_for: name them: {{}}",
    f"{_FORM}_names_for: give one name for each",
    "cli/ingest.py:_in_range: {}1..{}9, say",
)
def no_header(w: World) -> None:
    rewritten(w, "1.5,2.5\n3.5,4.5\n", "a,b\n1.5,2.5\n3.5,4.5\n")
    Path("n.csv").write_text("1.5,2.5\n3.5,4.5\n")
    assert "--header none and --names c1,c2" in w.refuses("ingest n.csv n.zarr")
    w.refuses("ingest n.csv n.zarr --header none")
    w.refuses("ingest n.csv n.zarr --header none --names c1")
    w.refuses("ingest n.csv n.zarr --header none --names c2..c1")
    w.works("ingest n.csv n.zarr --header none --names c1..c2")


@world(
    f"{_OPTIONS}_check_names_wanted: where it does not, add header='none'; else leave names= out",
    f"{_OPTIONS}_check_delimiter: {{}}, say; or leave it out",
    f"{_OPTIONS}_check_encoding: {{}}, say",
    f"{_OPTIONS}table_options: {{}}, say",
)
def options_of_text(w: World) -> None:
    Path("o.csv").write_text("a;b\n1;2\n")
    w.refuses("ingest o.csv o.zarr --names c,d")
    w.refuses("ingest o.csv o.zarr --delimiter ;;")
    w.refuses("ingest o.csv o.zarr --encoding base64")
    w.works("ingest o.csv o.zarr --delimiter ; --encoding latin1")
    w.refused(st.ingest, "o.csv", "p.zarr", delimiter=5)
    st.ingest("o.csv", "p.zarr", delimiter=";")


@world(f"{_FORM}_first_record: write the file again", f"{_FORM}form_of: check its quotes")
def headers_that_cannot_be_read(w: World) -> None:
    rewritten(w, "\n\n\n", "a\n1\n")
    csv.field_size_limit(131_072)  # as Python has it; scipy's reader of ARFF raises it for the whole process
    name = "n" * 140_000
    Path("d.csv").write_text(f"{name},b\n1,2\n")
    w.refuses("ingest d.csv e.zarr")
    Path("d.csv").write_text("a,b\n1,2\n")
    w.works("ingest d.csv e.zarr")


@world(
    f"{_CSV}_refusal: complete the line, close its quotes, or quote the values that hold a delimiter",
    f"{_CSV}_too_long: close the quote",
    f"{_CSV}_too_long: close the quote; or, if the record is so long, memory={{}}",
)
def ragged_lines(w: World) -> None:
    rewritten(w, "a,b\n1,2\n3\n", "a,b\n1,2\n3,4\n")
    Path("l.csv").write_text(f'a,y\n1,"{"x" * 4_500_000}"\n2,z\n')
    assert "--memory 269MB" in w.refuses("ingest l.csv f.zarr --label-column y --memory 40MB")
    w.works("ingest l.csv f.zarr --label-column y --memory 269MB")
    rows = "1,2\n" * 4_300_000
    Path("q.csv").write_text(f'a,b\n1,"2\n{rows}')
    w.refuses("ingest q.csv e.zarr")
    w.refuses("ingest q.csv e.zarr --memory 40MB")
    Path("q.csv").write_text(f'a,b\n1,"2"\n{rows}')
    w.works("ingest q.csv e.zarr")


@world(
    f"{_SURVEY}leaving_out: {{}}, or leave the column out by naming those of numbers: {{}}",
)
def columns_of_text(w: World) -> None:
    Path("t.csv").write_text("a,b,c,y\n1,True,x,0\n2,False,z,1\n")
    w.typed("ingest t.csv d.zarr --label-column y")
    wide = [f"f{number}" for number in range(60)]
    Path("w.csv").write_text(",".join([*wide, "b", "y"]) + "\n" + ",".join(["1"] * 60 + ["x", "0"]) + "\n")
    w.refuses("ingest w.csv e.zarr --label-column y")
    w.works(f"ingest w.csv e.zarr --label-column y --columns {','.join(wide)}")
    pq.write_table(pa.table({"a": [1, 2], "when": [pa.scalar("x")] * 2, "y": [0, 1]}), "t.parquet")
    w.typed("ingest t.parquet f.zarr --label-column y")


@world(f"{_SURVEY}_rounded: leave the column out, or split the number over two columns")
def numbers_that_float64_rounds(w: World) -> None:
    wrong = "a,b\n9007199254740993,1\n0.5,2\n"
    Path("t.csv").write_text(wrong)
    w.refuses("ingest t.csv d.zarr")
    w.works("ingest t.csv d.zarr --columns b")
    rewritten(w, wrong, "a,a2,b\n90071992,54740993,1\n0,0.5,2\n", "--overwrite")


@world(
    f"{_SURVEY}check_no_missing: fill them in or drop their rows in the source",
    f"{_SURVEY}check_no_missing: fill them in or drop their rows in the source; where NA, null or the like is a class, "
    """quote it, "NA", or name the classes; or na_values=('',)""",
)
def missing_values(w: World) -> None:
    rewritten(w, "a,b\n1,\n2,3\n", "a,b\n1,0\n2,3\n")
    rewritten(w, "a,y\n1,dog\n2,NA\n", 'a,y\n1,dog\n2,"NA"\n', "--overwrite --label-column y")
    Path("t.csv").write_text("a,y\n1,dog\n2,NA\n")
    assert w.refuses("ingest t.csv e.zarr --label-column y").count("; or --na-values ''") == 1
    w.works("ingest t.csv e.zarr --label-column y --classes NA,dog")
    w.works("ingest t.csv f.zarr --label-column y --na-values ''")


@world(f"{_SURVEY}class_names: name another label column")
def too_many_classes(w: World) -> None:
    rows = "".join(f"{number},id{number},{number % 2}\n" for number in range(100_001))
    Path("t.csv").write_text(f"a,id,y\n{rows}")
    w.refuses("ingest t.csv d.zarr --columns a --label-column id")
    w.works("ingest t.csv d.zarr --columns a --label-column y")


@world(
    f"{_COLUMNS}check_header: rename one of them",
    f"{_COLUMNS}check_header: name it; or leave it out of the file, as pandas does with to_csv(..., index=False)",
)
def headers_with_faults(w: World) -> None:
    rewritten(w, "a,a\n1,2\n", "a,b\n1,2\n")
    rewritten(w, ",a\n0,2\n", "n,a\n0,2\n", "--overwrite")
    rewritten(w, ",a\n0,2\n", "a\n2\n", "--overwrite")


@world(f"{_COLUMNS}_only_column: label_column={{}}, say")
def labels_in_a_table(w: World) -> None:
    Path("x.csv").write_text("a,b\n1,2\n3,4\n"), Path("y.csv").write_text("id,y\n1,0\n2,1\n")
    w.typed("ingest x.csv d.zarr --labels y.csv")


@world(
    f"{_COLUMNS}check_there: did you mean {{}}?",
    f"{_COLUMNS}check_there: name one of these",
    f"{_COLUMNS}_check_chosen: take it out of columns",
    f"{_COLUMNS}_check_chosen: name it once",
    f"{_COLUMNS}_check_chosen: name columns or a label column",
)
def columns_that_are_not_there(w: World) -> None:
    Path("t.csv").write_text("acid,sugar,quality\n1,2,0\n3,4,1\n")
    assert "'quality'" in w.refuses("ingest t.csv d.zarr --label-column qualty")
    w.refuses("ingest t.csv d.zarr --label-column zzz")
    w.refuses("ingest t.csv d.zarr --columns acid,quality --label-column quality")
    w.refuses("ingest t.csv d.zarr --columns acid,acid --label-column quality")
    w.works("ingest t.csv d.zarr --columns acid --label-column quality")
    table = pa.table({"__index_level_0__": [0, 1]})
    pq.write_table(table.replace_schema_metadata({"pandas": '{"index_columns": ["__index_level_0__"]}'}), "i.parquet")
    w.refuses("ingest i.parquet e.zarr")
    w.works("ingest i.parquet e.zarr --columns __index_level_0__")


@world(f"{_COLUMNS}table_source: leave the file out")
def a_table_without_rows(w: World) -> None:
    Path("t.csv").write_text("a,b\n"), Path("u.csv").write_text("a,b\n1,2\n")
    w.refuses("ingest t.csv u.csv d.zarr")
    w.works("ingest u.csv d.zarr")


@world(
    f"{_COLUMNS}in_order: {{}}; or ingest it as a dataset of its own",
    f"{_COLUMNS}in_order: data with all of these columns; or ingest it as a dataset of its own",
)
def tables_of_other_columns(w: World) -> None:
    Path("a.csv").write_text("a,b\n1,2\n"), Path("b.csv").write_text("a,b,c\n1,2,3\n")
    w.typed("ingest a.csv b.csv d.zarr")
    w.works("ingest b.csv e.zarr")
    w.refuses("ingest b.csv a.csv f.zarr")
    Path("a.csv").write_text("a,b,c\n1,2,3\n")
    w.works("ingest b.csv a.csv f.zarr")


@world(f"{_COLUMNS}_check_fits: leave the column out, or store the other columns as whole numbers")
def whole_numbers_beside_floats(w: World) -> None:
    wrong = "a,b\n9007199254740994,0.5\n9007199254740995,1.5\n"
    Path("t.csv").write_text(wrong)
    w.refuses("ingest t.csv d.zarr")
    w.works("ingest t.csv d.zarr --columns b")
    rewritten(w, wrong, "a,b\n9007199254740994,5\n9007199254740995,15\n", "--overwrite")


@world(f"{_PARQUET}reading_parquet: write or download the file again")
def a_damaged_parquet_file(w: World) -> None:
    pq.write_table(pa.table({"a": list(range(1000))}), "t.parquet")
    whole = Path("t.parquet").read_bytes()
    Path("t.parquet").write_bytes(whole[: len(whole) // 2])
    w.refuses("ingest t.parquet d.zarr")
    Path("t.parquet").write_bytes(whole)
    w.works("ingest t.parquet d.zarr")


@world(f"{_COMBINE}_unite_classes: write all labels as text, or all as numbers")
def labels_of_two_kinds(w: World) -> None:
    Path("a.csv").write_text("a,y\n1,cat\n"), Path("b.csv").write_text("a,y\n1,0\n")
    w.refuses("ingest a.csv b.csv d.zarr --label-column y")
    Path("b.csv").write_text("a,y\n1,dog\n")
    w.works("ingest a.csv b.csv d.zarr --label-column y")


@world(
    f"{_COMBINE}_codes: correct the labels, or the number of classes",
    f"{_COMBINE}_codes: correct the labels, or name their classes too",
)
def text_labels_beyond_the_classes(w: World) -> None:
    Path("t.csv").write_text("a,y\n1,cat\n2,dog\n3,bird\n")
    w.refuses("ingest t.csv d.zarr --label-column y --classes 2")
    w.refuses("ingest t.csv d.zarr --label-column y --classes cat,dog")
    w.works("ingest t.csv d.zarr --label-column y --classes 3")
    w.works("ingest t.csv e.zarr --label-column y --classes cat,dog,bird")
    Path("t.csv").write_text("a,y\n1,cat\n2,dog\n3,dog\n")
    w.works("ingest t.csv f.zarr --label-column y --classes 2")


@world(f"{_SURVEY}class_names: memory={{}}, or another label column")
def names_that_do_not_fit(w: World) -> None:
    names = [f"{number}{'n' * 2000}" for number in range(2000)]
    Path("t.csv").write_text("a,b,y\n" + "".join(f"{i},{i % 3},{name}\n" for i, name in enumerate(names)))
    pq.write_table(pa.table({"a": range(2000), "b": [1] * 2000, "y": names}), "t.parquet")
    for name in ("t.csv", "t.parquet"):
        line = f"ingest {name} {name}.zarr --memory 16MB --label-column y"
        w.typed(line)


_CLEANING = "ingestion/sources/tables/roles/cleaning.py:"


@world(
    f"{_CLEANING}cleaned: {{}} writes {{}}, to be given instead",
    f"{_CLEANING}foreign_columns: {{}}; or leave out what is not read: exclude={{}}",
)
def numbers_with_a_decimal_comma(w: World) -> None:
    rows = [f"{n},5;{n % 28 + 1}.1.2026;{n % 7};{n}" for n in range(40)]
    Path("t.csv").write_text("\n".join(["size;day;n;y", *rows]))
    w.typed("ingest t.csv d.zarr --label-column y --auto --task regression")
    command = w.refuses("ingest t.csv e.zarr --label-column y --auto --task regression").partition(" writes ")[0]
    assert command.startswith("python -c ")
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    w.works("ingest t-clean.csv e.zarr --label-column y --auto --task regression")
    command = w.refuses("ingest t.csv f.zarr --label-column size --columns n").partition(" writes ")[0]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    w.works("ingest t-clean.csv f.zarr --label-column size --columns n")


@world(f"{_CLEANING}cleaned: of a data frame of pandas, {{}}")
def a_frame_of_such_numbers(w: World) -> None:
    df = pd.DataFrame({"size": [f"{n},5" for n in range(40)], "y": range(40)})
    lines = w.refused(st.ingest, df, "d.zarr", label_column="y").removeprefix("of a data frame of pandas, ")
    exec(lines.partition("; or ")[0], {"df": df, "pd": pd})
    st.ingest(df, "d.zarr", label_column="y")


@world(f"{_CLEANING}foreign_columns: {{}} makes them missing values")
def marks_beside_numbers(w: World) -> None:
    rows = [f"{n},{'-' if n == 7 else n + 0.5}" for n in range(40)]
    Path("t.csv").write_text("\n".join(["a,y", *rows]))
    assert w.refuses("ingest t.csv d.zarr --label-column y --auto").startswith("--na-values - ")
    w.works("ingest t.csv d.zarr --label-column y --auto --na-values -")

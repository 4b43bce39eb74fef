"""Worlds of what a table's columns become: categories, dates, labels, weights; and of what is missing in them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import streamtrain as st
from tests.advice.sources import check
from tests.advice.tables import rewritten
from tests.advice.world import World, world

_ROLES = "ingestion/sources/tables/roles/"
_CHOICE = f"{_ROLES}choice.py:"
_FINDINGS = f"{_ROLES}findings.py:"
_LEARNER = f"{_ROLES}learned.py:TableLearner."
_ROWS = f"{_ROLES}rows.py:RowReader."
_TABLE = f"{_ROLES}role_table.py:"
_OPTIONS = "ingestion/sources/tables/table_options.py:"

_CITIES = "a,city,when,y\n1,Rome,2026-11-30,0\n2,Oslo,2026-12-01,1\n"


@world(
    "cli/ingest.py:_parse_hash: --hash city=100000, say",
    f"{_OPTIONS}_check_roles: hash={{'city': 100000}}, say",
    f"{_OPTIONS}_check_roles: dates={{}}, say",
)
def options_of_roles(w: World) -> None:
    Path("t.csv").write_text(_CITIES)
    w.typed("ingest t.csv a.zarr --dates when --hash city")
    w.typed("ingest t.csv b.zarr --dates when --hash city=0")
    w.typed("ingest t.csv c.zarr --hash city=10 --dates when=hours")
    w.followed(st.ingest, "t.csv", "d.zarr", dates="when", hash=["city"])


@world(
    f"{_OPTIONS}_check_missing_rules: na='error', na='drop' or na='fill=mean'",
    f"{_OPTIONS}_check_missing_rules: nan='keep'",
    f"{_OPTIONS}_check_missing_rules: na='fill=mean' too",
)
def rules_of_what_is_missing(w: World) -> None:
    Path("t.csv").write_text("a,y\n1,0\n2,1\n")
    for number, rule in enumerate(("error", "drop", "fill=mean")):
        assert f"--na {rule}" in w.refuses("ingest t.csv d.zarr --na mean")
        w.works(f"ingest t.csv {number}.zarr --na {rule}")
    w.typed("ingest t.csv e.zarr --nan drop")
    w.typed("ingest t.csv f.zarr --na-mask")


_DECLARED = "ingestion/sources/tables/typed_columns.py:"


@world(f"{_DECLARED}check_label_type: make numbers or text of it, or name another label column")
def labels_of_another_type(w: World) -> None:
    columns = {"a": [1.0, 2.0], "b": [b"x", b"y"], "w": [1.0, 2.0], "y": [0, 1]}
    pq.write_table(pa.table(columns), "t.parquet")
    w.refuses("ingest t.parquet d.zarr --label-column b --weight-column w")
    w.works("ingest t.parquet d.zarr --label-column y --weight-column w --exclude b")
    pq.write_table(pa.table(columns | {"b": ["x", "y"]}), "t.parquet")
    w.works("ingest t.parquet e.zarr --label-column b --weight-column w")


@world(
    "ingestion/append.py:appended_source: leave the options that make them out; or ingest all sources together, as one "
    "dataset"
)
def categories_behind_a_plain_table(w: World) -> None:
    Path("t.csv").write_text("a,k,y\n1,1,0\n2,1,1\n"), Path("u.csv").write_text("a,k,y\n1,3,0\n2,1,1\n")
    w.works("ingest t.csv d.zarr --label-column y")
    w.refuses("ingest u.csv d.zarr --label-column y --categorical k --append")
    w.works("ingest u.csv d.zarr --label-column y --append")
    w.works("ingest t.csv u.csv d.zarr --categorical k --label-column y --overwrite")


@world(f"{_ROLES}known.py:options_behind: leave {{}} out")
def other_roles_behind(w: World) -> None:
    Path("t.csv").write_text(_CITIES), Path("u.csv").write_text(_CITIES)
    w.works("ingest t.csv d.zarr --categorical city --dates when")
    w.typed("ingest u.csv d.zarr --dates when=days --append")


@world(
    f"{_ROLES}known.py:without_names: give a table that has all of them, its labels in a column: a file or a data frame"
)
def rows_without_names_like_a_table(w: World) -> None:
    Path("t.csv").write_text(_CITIES)
    w.works("ingest t.csv d.zarr --categorical city --dates when")
    w.refused(st.ingest, st.open("d.zarr")[:], "e.zarr", like="d.zarr")
    w.works("ingest t.csv e.zarr --like d.zarr")


@world("ingestion/sources/registry.py:_check_no_roles: leave {} out")
def roles_of_arrays(w: World) -> None:
    w.refused(w.dataset, categorical=["a"])
    w.dataset()


@world("ingestion/sources/tables/frames.py:reader: hold it in memory, pyarrow.table(x); or write it to a Parquet file")
def roles_in_a_stream(w: World) -> None:
    table = pa.table({"a": [1.0, 2.0], "k": ["u", "v"]})
    check(w, table.to_reader(), pa.table(table.to_reader()), categorical=["k"])
    pq.write_table(table, "t.parquet")
    st.ingest("t.parquet", "p.zarr", categorical=["k"])


@world(
    f"{_CHOICE}choose_roles: leave columns= or exclude= out",
    f"{_CHOICE}_check_named: name it once",
)
def names_of_columns(w: World) -> None:
    Path("t.csv").write_text("acid,sugar,quality\n1,2,0\n3,4,1\n")
    w.refuses("ingest t.csv d.zarr --columns acid --exclude sugar")
    w.works("ingest t.csv d.zarr --columns acid --label-column quality")
    assert "'sugar'" in w.refuses("ingest t.csv e.zarr --exclude sugr")
    w.refuses("ingest t.csv e.zarr --exclude zzz")
    w.refuses("ingest t.csv e.zarr --exclude sugar --categorical sugar")
    w.works("ingest t.csv e.zarr --exclude sugar")


@world(
    f"{_FINDINGS}told_at_once: {{}}, which takes the table as it is; or by hand, {{}}; or {{}}",
    f"{_FINDINGS}told_at_once: {{}}, which takes the table as it is; or by hand, {{}}; or correct the values",
)
def tables_as_they_are(w: World) -> None:
    rows = "".join(f"{i},{'' if i == 5 else i},{'uv'[i % 2]},2026-11-{i % 30 + 1:02},t{i},{i % 2}\n" for i in range(60))
    Path("t.csv").write_text(f"a,b,k,when,text,y\n{rows}")
    said = w.refuses("ingest t.csv d.zarr --label-column y")
    way, _, as_it_is = said.partition(", which takes the table as it is; or by hand, ")
    assert way == "--auto"
    w.works("ingest t.csv a.zarr --label-column y --auto")
    as_it_is = as_it_is.partition(";")[0]
    assert as_it_is == "--categorical k --dates when=seconds --na fill=mean --exclude text"
    w.works(f"ingest t.csv d.zarr --label-column y {as_it_is}")
    w.refuses("ingest t.csv e.zarr --label-column y --exclude text")
    said = w.refuses("ingest t.csv e.zarr --label-column y --exclude text --categorical k")
    assert said.endswith("; or correct the values")
    by_hand = said.partition("by hand, ")[2].partition(";")[0]
    w.works(f"ingest t.csv e.zarr --label-column y --exclude text --categorical k {by_hand}")


@world(f"{_LEARNER}_check_targets: name those of one kind: label_column={{}}, say")
def labels_of_two_kinds(w: World) -> None:
    Path("t.csv").write_text("a,p,q,r\n1,0,1,0.5\n2,1,1,7\n")
    w.typed("ingest t.csv d.zarr --label-column p,q,r")


@world(f"{_LEARNER}_fills: leave it out: {{}}")
def columns_without_a_value(w: World) -> None:
    Path("t.csv").write_text("a,b,id\n1,,7\n2,,8\n")
    w.typed("ingest t.csv d.zarr --na fill=mean")
    w.typed("ingest t.csv e.zarr --na fill=mean --exclude id")
    w.typed("ingest t.csv f.zarr --na fill=mean --columns a,b")


@world(
    f"{_TABLE}_shared_columns: columns={{}}{{}}, or ingest the files apart",
    f"{_TABLE}_check_same_columns: ingest the files apart",
    f"{_TABLE}without_rows: give a file with rows",
    f"{_TABLE}_no_rows: name another label column, or fill values in",
)
def files_of_a_table(w: World) -> None:
    Path("a.csv").write_text("a,b\n1,2\n"), Path("b.csv").write_text("a,b,c\n1,2,3\n")
    w.typed("ingest a.csv b.csv d.zarr --na fill=0")
    w.typed("ingest a.csv b.csv x.zarr --na fill=0 --exclude b")
    w.works("ingest b.csv e.zarr --na fill=0")
    wide = [f"f{number}" for number in range(60)]
    Path("c.csv").write_text(",".join(wide) + "\n" + ",".join(["1"] * 60) + "\n")
    Path("e.csv").write_text(",".join([*wide, "g"]) + "\n" + ",".join(["1"] * 61) + "\n")
    w.refuses("ingest c.csv e.csv y.zarr --na fill=0")
    w.works("ingest c.csv y.zarr --na fill=0")
    w.works("ingest e.csv z.zarr --na fill=0")
    rewritten(w, "a,b,y\n", "a,b,y\n1,2,3\n", "--overwrite --exclude b --label-column y")
    rewritten(w, "a,y\n1,\n2,\n", "a,y\n1,3\n2,\n", "--overwrite --drop-unlabelled --label-column y")
    Path("t.csv").write_text("a,y\n1,\n2,\n")
    w.refuses("ingest t.csv f.zarr --drop-unlabelled --label-column y")
    w.works("ingest t.csv f.zarr --drop-unlabelled --exclude y --label-column a")


@world(
    f"{_ROWS}_check_rounded: leave the column out, or split the number over two columns",
    f"{_ROWS}_unfit: store it in the type of the others, or leave it out",
    f"{_LEARNER}_check_exact: leave the column out, or store the other columns as whole numbers",
    f"{_LEARNER}_check_exact: leave the column out, or fill in a whole number: na='fill=0'",
)
def whole_numbers_that_are_rounded(w: World) -> None:
    wrong = "a,b\n9007199254740993,1\n0.5,2\n"
    rewritten(w, wrong, "a,a2,b\n90071992,54740993,1\n0,0.5,2\n", "--overwrite --na fill=0")
    Path("t.csv").write_text(wrong)
    w.works("ingest t.csv e.zarr --na fill=0 --exclude a")
    large = [2**53 + 1, 1]
    pq.write_table(pa.table({"a": large, "b": [0.5, 1.5]}), "t.parquet")
    w.refuses("ingest t.parquet f.zarr --na fill=0")
    w.works("ingest t.parquet f.zarr --na fill=0 --exclude a")
    pq.write_table(pa.table({"a": [1.0, 2.0], "b": [0.5, 1.5]}), "t.parquet")
    w.works("ingest t.parquet g.zarr --na fill=0")
    Path("a.csv").write_text("a,b\n9007199254740994,2\n"), Path("b.csv").write_text("a,b\n1,2.5\n")
    w.refuses("ingest a.csv b.csv h.zarr --na fill=0")
    w.works("ingest a.csv b.csv h.zarr --na fill=0 --exclude a")
    Path("b.csv").write_text("a,b\n1,2\n")
    w.works("ingest a.csv b.csv i.zarr --na fill=0")
    w.typed("ingest a.csv b.csv j.zarr --na fill=mean")
    Path("t.csv").write_text("a,when\n9007199254740993,2026-11-30\n")
    w.refuses("ingest t.csv k.zarr --dates when")
    w.works("ingest t.csv k.zarr --dates when --exclude a")


@world(
    f"{_ROWS}_no_single: another weight_column=, or none",
    f"{_ROWS}_no_single: another id_column={{}}",
    f"{_ROWS}_single: correct it, or leave the row out of the source",
)
def weights_and_ids(w: World) -> None:
    Path("t.csv").write_text("a,k,wt,n\n1,u,0.5,7\n2,v,1.5,8\n")
    w.refuses("ingest t.csv d.zarr --categorical k --weight-column k")
    w.refuses("ingest t.csv d.zarr --exclude wt,n --weight-column k")
    w.works("ingest t.csv d.zarr --exclude k,n --weight-column wt")
    w.refuses("ingest t.csv e.zarr --exclude k,n --id-column wt")
    w.works("ingest t.csv e.zarr --exclude k,wt --id-column n")
    rewritten(w, "a,wt\n1,-1\n2,1\n", "a,wt\n1,1\n2,1\n", "--overwrite --weight-column wt")
    rewritten(w, "a,n\n1,\n2,1\n", "a,n\n2,1\n", "--overwrite --id-column n")

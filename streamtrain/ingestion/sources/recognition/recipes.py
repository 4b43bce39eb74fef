"""Recipes for files that nothing here reads: a command for a shell, or lines of Python, that make what is read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

_PYTHON: Final = "in Python, "
_LINES: Final[dict[str, str]] = {
    "NetCDF 3": "import xarray; xarray.open_dataset({path}).to_netcdf({nc4}, format='NETCDF4')",
    "Arrow IPC": "import pyarrow.feather, streamtrain as st; "
    'st.ingest(pyarrow.feather.read_table({path}), "data.zarr")',
    "ORC": "import pyarrow.orc, pyarrow.parquet; "
    "pyarrow.parquet.write_table(pyarrow.orc.read_table({path}), {parquet})",
    "JSON": "import pandas; pandas.read_json({path}).to_csv({csv}, index=False)",
    "lines of JSON": "import pandas; pandas.read_json({path}, lines=True).to_csv({csv}, index=False)",
    "a spreadsheet": "import pandas; pandas.read_excel({path}).to_csv({csv}, index=False)",
    "a SQLite database": "import pandas, sqlite3; "
    'pandas.read_sql("SELECT * FROM NAME", sqlite3.connect({path})).to_csv({csv}, index=False)',
    "a MATLAB file": 'import numpy, scipy.io; numpy.save({npy}, scipy.io.loadmat({path})["NAME"])',
    "ARFF": "import pandas, scipy.io.arff; "
    "pandas.DataFrame(scipy.io.arff.loadarff({path})[0]).to_csv({csv}, index=False)",
    "safetensors": "import safetensors.numpy, streamtrain as st; "
    'st.ingest(safetensors.numpy.load_file({path}), "data.zarr")',
    "a file of torch.save": "import numpy, torch; "
    "numpy.save({npy}, torch.load({path}, weights_only=True).numpy(force=True))",
    "a Python pickle": "load it where it was made, since it can run any code, and import numpy; numpy.save({npy}, x)",
}
_IMAGE: Final = (
    "import numpy, pathlib, PIL.Image; paths = sorted(pathlib.Path({folder}).glob({pattern})); "
    'numpy.save("x.npy", numpy.stack([numpy.asarray(PIL.Image.open(path).convert("RGB").resize((64, 64))) '
    "for path in paths]))"
)
_COMMANDS: Final[dict[str, str]] = {
    "a zip archive": "python -m zipfile -e {path} {stem}",
    "an .npz archive": "mv {path} {stem}.npz",
    "a tar archive": "tar -xf {path}",
    "gzip data": "gzip -dk {path}",
    "zstd data": "zstd -d {path}",
    "xz data": "xz -dk {path}",
    "bzip2 data": "bzip2 -dk {path}",
    "text": "mv {path} {stem}.csv",
    "a .npy array": "mv {path} {stem}.npy",
    "Parquet": "mv {path} {stem}.parquet",
}


def recipe(path: Path, kind: str) -> str | None:
    """Return what turns a file of a kind into what is read; None where there is no recipe."""
    if kind.endswith("image"):
        return _PYTHON + _IMAGE.format(folder=repr(str(path.parent)), pattern=repr(f"*{path.suffix}"))
    if kind in _COMMANDS:
        quoted = shlex.quote(str(path))
        return _COMMANDS[kind].format(path=quoted, stem=shlex.quote(str(path.with_suffix(""))))
    if kind not in _LINES:
        return None
    made = {suffix: repr(str(path.with_suffix(f".{suffix}"))) for suffix in ("npy", "csv", "parquet", "nc4")}
    return _PYTHON + _LINES[kind].format(path=repr(str(path)), **made)


def class_folders_recipe(folder: Path) -> str:
    """Return the lines of Python that store a folder of classes of images."""
    return (
        f"{_PYTHON}import numpy, pathlib, PIL.Image, streamtrain as st; "
        f'paths = sorted(pathlib.Path({str(folder)!r}).glob("*/*")); '
        "names = sorted({path.parent.name for path in paths}); "
        'st.ingest(({"x": numpy.asarray(PIL.Image.open(path).convert("RGB").resize((64, 64)))[None], '
        '"y": numpy.array([names.index(path.parent.name)])} for path in paths), "data.zarr", classes=names)'
    )

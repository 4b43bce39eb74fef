"""Rows 10 and 14: the best epoch kept, and what is there after a kill."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from scripts.hour import tables
from scripts.hour.session import ROOT, Check, Row, Session, Unexpected, above, equal, unmeasured

KILLED: Final = """
import json, sys
sys.path.insert(0, sys.argv[1])
from scripts.faults.syscall_faults import Killing
from streamtrain.system import files
system = Killing(int(sys.argv[2]), is_torn=True)
files.Syscalls = lambda: system
from streamtrain.cli.main import main
code = main(sys.argv[3:])
print(json.dumps(system.n_calls))
sys.exit(code)
"""
"""A command that ends itself in a call that changes the disk; with call 0 it prints how many there are."""

OUTS: Final = {
    "p.csv": "predict run new.csv --probabilities",
    "p.parquet": "predict run new.csv --probabilities",
    "p.npy": "predict run new.csv --probabilities",
    "m.safetensors": "export run",
}


def best_epoch(session: Session) -> Iterator[Check]:
    """A net that overfits is ended by patience, and its best epoch is what counts."""
    tables.write(tables.noisy(session.sizes.samples), session.folder / "noisy.csv")
    session.look("ingest noisy.csv noisy --label-column y --split val=0.2")
    train = "train noisy --model mlp:256,128 --lr 0.003 --epochs 40 --patience 2 --out run"
    trained = session.run(train).result
    best, ended = trained["best"], len(trained["epochs"])
    yield equal("ended by", trained["stopped_by"], "patience")
    yield equal("epochs from the best to the end", ended - best["epoch"], 2)
    found = session.run("evaluate run noisy --split val").result
    yield equal("evaluate's loss is the best epoch's, bit for bit", found["loss"], best["value"])
    yield equal("weights of epoch", found["weights"]["epoch"], best["epoch"])
    yield from _killed_trainings(session)


def _killed_trainings(session: Session) -> Iterator[Check]:
    """Kill trainings at some of their calls, by the script that can do it at all of them."""
    script = [ROOT / "scripts/faults/best_epoch.py", "--kind", "batch", "--every", session.sizes.every, "--first", 1]
    done = subprocess.run([sys.executable, *map(str, script)], capture_output=True, text=True, check=False)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    if not results:
        raise Unexpected(f"best_epoch.py: {done.stderr[-600:]}")
    yield above("kill points tried (all of them: scripts/faults/run best)", sum(row["cases"] for row in results), 0)
    yield equal("of these resumed to another best", sum(row["wrong"] for row in results), 0)


def killed_writing(session: Session) -> Iterator[Check]:
    """A file of predictions or of weights is the old one, none, or the whole new one."""
    tables.write(tables.kinds(session.sizes.samples), session.folder / "kinds.csv")
    tables.write(tables.inputs(session.sizes.samples)[0], session.folder / "new.csv")
    session.look("ingest kinds.csv kinds --label-column kind")
    session.look("train kinds --model linear --epochs 1 --out run")
    n_points = max(2, 600 // session.sizes.every // len(OUTS))
    for name, command in OUTS.items():
        out = session.folder / name
        whole = _end(session, 0, f"{command} --out {name}")
        new = out.read_bytes()
        wrong, tried = 0, range(1, whole + 1, max(1, whole // n_points))
        for number in tried:
            for old in (None, b"old"):
                _put(out, old)
                _end(session, number, f"{command} --out {name} --overwrite")
                wrong += (out.read_bytes() if out.exists() else None) not in (old, new)
        yield equal(f"{name}: torn after {2 * len(tried)} kills, of {whole} calls", wrong, 0)
    yield unmeasured("zarr", "not tried here: scripts/faults/run writing kills the writer of datasets at every call")


def _put(path: Path, data: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)


def _end(session: Session, number: int, command: str) -> int:
    """Run a command that is killed at a call, or with 0 to its end; return the number of calls it made then."""
    words = [sys.executable, "-c", KILLED, str(ROOT), str(number), *command.split(), "--json"]
    done = subprocess.run(words, cwd=session.folder, capture_output=True, text=True, check=False)
    if (done.returncode == 0) != (number == 0):
        raise Unexpected(f"{command}, call {number}: exit code {done.returncode}: {done.stderr[-600:]}")
    return int(done.stdout.splitlines()[-1]) if number == 0 else 0


ROWS: Final = (
    Row(number=10, task="--patience 2 on a net that overfits, then evaluate", at_most=2, checks=best_epoch),
    Row(number=14, task="killed while predict and export write", at_most=None, checks=killed_writing),
)

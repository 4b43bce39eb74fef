"""Row 16: models of the user's own, in every form, and wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from scripts.hour import tables
from scripts.hour.session import Check, Row, Session, equal

NETS: Final = """\
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, n_outputs):
        super().__init__()
        self.last = nn.Linear(input_shape[0], n_outputs)
    def forward(self, x):
        return self.last(x.float())

def none(): return nn.Linear(4, 3)
def of_dataset(data): return nn.Linear(data.layout.fields[0].shape[0], 3)
def named(num_classes, input_shape): return nn.Linear(input_shape[0], num_classes)
ready = nn.Linear(4, 3)
number = 3
def nothing(): return None
def three(a, b, c): return None
def broken():
    raise KeyError("no such layer")
def wide(): return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(6, 3))
"""

FORMS: Final = {
    "nets.py:none": "",
    "nets.py:of_dataset": "",
    "nets.py:named": "",
    "nets.py:Net": "",
    "nets.py:ready": "",
    "torch.nn:Linear": "--model-arg in_features=4 --model-arg out_features=3",
}
WRONG: Final = {
    "lineal": "did you mean 'linear'",
    "resnet18": "FILE.py:NAME, PACKAGE.MODULE:NAME",
    "mlp:4 --model-arg width=3": "model mlp takes no arguments: width",
    "net.py:none": "did you mean 'nets.py'",
    "nets.py:nonee": "--model nets.py:none",
    "nets.py:number": "nets.py:number is int",
    "nets.py:nothing": "returned NoneType",
    "nets.py:three": "nets.py:three needs a, b, c",
    "nets.py:broken": "nets.py:18: nets.py:broken failed: KeyError: 'no such layer'",
    "nets.py:none --model-arg width=3": "unknown argument of nets.py:none 'width'",
    "bad.py:net": "bad.py:2: bad.py cannot be imported: ZeroDivisionError: division by zero",
    "nets.py:wide": "1 ReLU: (5,) -> (5,) 2 Linear: (5,)",
}
"""Wrong models, and what their refusal names."""


def own_models(session: Session) -> Iterator[Check]:
    """Train every form, start from another's weights, and refuse what is wrong."""
    (session.folder / "nets.py").write_text(NETS)
    (session.folder / "bad.py").write_text("\n1 / 0\n")
    tables.write(tables.kinds(session.sizes.samples), session.folder / "kinds.csv")
    session.look("ingest kinds.csv kinds --label-column kind --split val=0.1")
    train = "train kinds --epochs 1"
    for number, (name, more) in enumerate(FORMS.items()):
        session.next_task()
        trained = session.run(f"{train} --out run-{number} --model {name} {more}").result
        yield equal(f"{name} trains", trained["stopped_by"], "epochs")
    session.next_task()
    session.run("train kinds --epochs 0 --model nets.py:none --init run-0 --out run-init")
    files = [next((session.folder / run).glob("checkpoints/*/model.safetensors")) for run in ("run-0", "run-init")]
    yield equal("--init: the weights are the run's, bit for bit", files[0].read_bytes() == files[1].read_bytes(), True)
    for name, told in WRONG.items():
        refused = session.look(f"{train} --out wrong --model {name}", code=2)
        yield equal(f"{name} is refused with its line", told if told in _flat(refused.text) else refused.text, told)


def _flat(text: str) -> str:
    """Undo the wrapping of a message."""
    return " ".join(text.split())


ROWS: Final = (Row(number=16, task="FILE.py:NAME, PACKAGE.MODULE:NAME, --init", at_most=1, checks=own_models),)

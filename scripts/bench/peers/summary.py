"""The figures for people: a line a peer, the best of each kind against its bar, and what the peers are ahead in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from scripts.bench.peers.catalog import bar
from scripts.bench.peers.measure import is_right

MIXED: Final = 0.5
"""Mixing from which sorted rows come out somewhat like shuffled ones."""


def describe(record: dict[str, Any]) -> str:
    """One line for people."""
    name = f"{record['peer']:<21}"
    if "limit_bytes" in record:
        name = f"{record['peer']} in {record['limit_bytes'] / 1e6:,.0f} MB".ljust(21)
    if "not_measured" in record:
        return f"  {name} not measured: {record['not_measured']}"
    if "samples_s" not in record:
        return f"  {name} {extras(record)}"
    speeds = (
        f"{record['samples_s']:>11,} samples/s  streamtrain {record['streamtrain_samples_s']:>11,}  "
        f"streamtrain/it {record['ratio']:>7.2f}"
    )
    if "variant" not in record:
        return f"  {name} {speeds}"
    tuned = ", ".join(f"{k} {v}" for k, v in record["variant"].items() if k != "way") or "no options"
    best = record["as_documented"]
    documented = f"; as documented {best['samples_s']:,}" if best and record["variant"].get("by_hand") else ""
    return f"  {name} {speeds}  {extras(record)}  ({tuned}{documented})"


def extras(record: dict[str, Any]) -> str:
    """Mixing, memory, seconds and bytes, and whether its epoch was right."""
    right = "" if is_right(record["check"]) else f"  WRONG {record['check']}"
    return (
        f"mixing {record['mixing'] or 0:.2f}  memory {record['memory_bytes'] / 1e6:,.0f} MB "
        f"({record['idle_bytes'] / 1e6:,.0f} idle)  written in {record['write_seconds']:.1f} s, "
        f"{record['stored_bytes'] / 1e6:,.0f} MB, first batch {record['first_batch_seconds']:.2f} s{right}"
    )


def summarize(records: list[dict[str, Any]], row_bytes: int) -> Iterator[dict[str, Any]]:
    """The fastest peer of each kind, as tuned by hand and as documented, beside the ratio to reach."""
    for kind in dict.fromkeys(record["kind"] for record in records):
        measured = [record for record in records if record["kind"] == kind and "samples_s" in record]
        if not measured:
            continue
        best = min(measured, key=lambda record: float(record["ratio"]))
        at_least = bar(kind, row_bytes)
        verdict = (
            f", at least {at_least} wanted: {'met' if best['ratio'] >= at_least else 'missed'}" if at_least else ""
        )
        summary = {"summary": kind, "best": best["peer"], "ratio": best["ratio"], "at_least": at_least}
        text = f"  streamtrain / the best {kind} ({best['peer']}): {best['ratio']:.2f}{verdict}"
        documented = {record["peer"]: as_documented(record) for record in measured if as_documented(record)}
        if documented and kind == "out of core":
            name = min(documented, key=lambda peer: documented[peer])
            summary |= {"best_as_documented": name, "ratio_as_documented": documented[name]}
            text += f"; as documented ({name}): {documented[name]:.2f}"
            mixed = {r["peer"]: documented[r["peer"]] for r in measured if r["peer"] in documented and is_mixed(r)}
            if mixed:
                name = min(mixed, key=lambda peer: mixed[peer])
                summary |= {"best_mixed": name, "ratio_mixed": mixed[name]}
                text += f"; of those that mix ({name}): {mixed[name]:.2f}"
        yield {**summary, "text": text}


def is_mixed(record: dict[str, Any]) -> bool:
    """Whether a batch's rows come from all over the file, and not from a small part of it."""
    return (record["mixing"] or 0) >= MIXED


def as_documented(record: dict[str, Any]) -> float:
    """The ratio to the best variant without code of our own; 0 where there is none.

    Where the fastest variant is a documented one this is the ratio itself, else the ratio scaled by the two probes.
    """
    ratio, best = float(record["ratio"]), record["as_documented"]
    if not record["variant"].get("by_hand"):
        return ratio
    if best is None:
        return 0.0
    fastest = max(probe.get("samples_s", 0) for probe in record["probes"])
    return round(ratio * float(fastest) / float(best["samples_s"]), 3)


def ahead(records: list[dict[str, Any]], own: dict[str, Any]) -> str:
    """Which peers are ahead of streamtrain in what, as measured; times and bytes on disk by the sample."""
    lines = []
    for record in records:
        if "samples_s" not in record:
            continue
        per_sample = record["peer_samples"] / own["n_samples"]
        better = []
        if record["ratio"] < 1:
            better.append(f"{1 / record['ratio']:.2f} x the samples/s")
        if record["write_seconds"] < own["write_seconds"] * per_sample:
            better.append(f"written in {record['write_seconds']:.1f} s, not {own['write_seconds'] * per_sample:.1f}")
        if record["first_batch_seconds"] < own["first_batch_seconds"]:
            better.append(f"first batch in {record['first_batch_seconds']:.2f} s, not {own['first_batch_seconds']:.2f}")
        if record["memory_bytes"] < own["memory_bytes"]:
            better.append(f"{record['memory_bytes'] / 1e6:,.0f} MB of memory, not {own['memory_bytes'] / 1e6:,.0f}")
        if record["stored_bytes"] and record["stored_bytes"] < 0.99 * own["stored_bytes"] * per_sample:
            stored, own_stored = record["stored_bytes"] / 1e6, own["stored_bytes"] * per_sample / 1e6
            better.append(f"{stored:,.1f} MB on disk, not {own_stored:,.1f}")
        if better:
            lines.append(f"    {record['peer']}: {'; '.join(better)}")
    return "\n".join([f"  ahead of streamtrain at {own['row_bytes']} B rows, {own['n_samples']:,} of them:", *lines])

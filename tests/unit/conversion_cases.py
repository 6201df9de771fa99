"""Samples with controls of known methylation, on disk, through the commands up to the assembled loci."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from epivi.commands import assemble, ingest

CONFIG: dict[str, Any] = {
    "qc": {"conversion": {"unmethylated_contigs": ["lambda"], "methylated_contigs": ["pUC*"]}},
    "model": {"hypotheses": {"reset": {}}},
}
DRAWN = {"ann": (0.004, 0.01), "bob": (0.02, 0.03), "cat": (0.008, 0.02)}


def write_report(path: Path, rng: np.random.Generator, eps: float, delta: float) -> None:
    """A cytosine report: 50 CpGs and 3,000 CHHs of a genome, 1,500 CpGs of lambda, 900 CpGs and CHHs of pUC19."""
    parts = [("chr1", 50, "CG", 0.5), ("chr1", 3000, "CHH", eps), ("lambda", 1500, "CG", eps)]
    parts += [("pUC19", 900, "CG", 1 - delta), ("pUC19", 900, "CHH", eps)]
    lines, start = [], {}
    for contig, rows, context, level in parts:
        first = start.get(contig, 10)
        for pos, total in zip(range(first, first + 3 * rows, 3), rng.poisson(8, rows), strict=True):
            meth = rng.binomial(total, level)
            trinucleotide = f"{context}N"[:3]
            lines.append(f"{contig}\t{pos}\t+\t{meth}\t{total - meth}\t{context}\t{trinucleotide}")
        start[contig] = first + 3 * rows
    path.write_text("".join(line + "\n" for line in lines))


def cohort(folder: Path, config: dict[str, Any], cells: dict[str, tuple[str, str]] | None = None) -> dict[str, str]:
    """Ingest and assemble the samples of DRAWN; paths of loci, sheet and pedigree."""
    counts = []
    rows = ["sample\tindividual\tpath\tfalse_methylated\tfalse_unmethylated"]
    for number, (name, (eps, delta)) in enumerate(DRAWN.items()):
        source = folder / f"{name}.txt"
        write_report(source, np.random.default_rng([7, number]), eps, delta)
        counts.append(str(folder / f"{name}.parquet"))
        options = ["--sample", name, "--output", counts[-1], "--qc", str(folder / f"{name}.json")]
        called(ingest.command, str(source), *options, "--config", json.dumps(config))
        rows.append("\t".join([name, name, str(source), *(cells or {}).get(name, ("", ""))]))
    sheet, pedigree = folder / "samples.tsv", folder / "pedigree.tsv"
    sheet.write_text("\n".join(rows) + "\n")
    pedigree.write_text("individual\tmother\tfather\nann\t\t\nbob\t\t\ncat\tann\tbob\n")
    called(assemble.command, *counts, "--output", str(folder / "loci"), "--config", json.dumps(config))
    return {"loci": str(folder / "loci"), "samples": str(sheet), "pedigree": str(pedigree)}


def called(command: Any, *arguments: str) -> None:
    """Run a command, which must succeed."""
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output

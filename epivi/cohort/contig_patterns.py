"""Which contigs `loci.contigs` keeps, and whether each pattern of the configuration matches one that there is."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import pysam

from epivi.base.errors import Mistakes
from epivi.cohort.samples import SampleSheet
from epivi.config.load import Config, suggestion
from epivi.ingest.alignments import container_of
from epivi.loci.contig_names import contig_renamer

SHOWN = 5  # names of contigs in a message


def unmatched(patterns: Sequence[str], contigs: Sequence[str]) -> list[str]:
    """A phrase for each pattern that no contig matches: the pattern, and the contig that may be meant."""
    lacking = [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in contigs)]
    return [f"{pattern!r}, which matches no contig; {_hint(pattern, contigs)}" for pattern in lacking]


def _hint(pattern: str, contigs: Sequence[str]) -> str:
    hint = suggestion(pattern, contigs)
    if hint.startswith("did") or len(contigs) <= SHOWN:
        return hint
    return f"there are {', '.join(contigs[:SHOWN])} and {len(contigs) - SHOWN} more"


def check_contig_patterns(config: Config, sheet: SampleSheet) -> None:
    """Every pattern of contigs that are to be taken matches one, where indices list the contigs.

    Raises UserError naming key and pattern of each that does not.
    """
    contigs = known_contigs(config, sheet)
    if contigs is None:
        return
    loci, qc = config.section("loci"), config.section("qc")
    asked = {
        "loci.contigs.include": loci["contigs"]["include"],
        "qc.conversion.unmethylated_contigs": qc["conversion"]["unmethylated_contigs"],
        "qc.conversion.methylated_contigs": qc["conversion"]["methylated_contigs"],
        "qc.sex.x_contigs": qc["sex"]["x_contigs"],
        "qc.sex.y_contigs": qc["sex"]["y_contigs"],
    }
    mistakes = Mistakes()
    for key, patterns in asked.items():
        for phrase in unmatched(patterns, sorted(contigs)):
            mistakes.add(f"{config.source}: {key} has {phrase}")
    mistakes.require_none()


def known_contigs(config: Config, sheet: SampleSheet) -> set[str] | None:
    """Contigs, by their new names, of the reference's index and of all samples' headers and tabix indices.

    None where a sample has neither, so that nothing can be checked.
    """
    loci = config.section("loci")
    rename = contig_renamer(loci["contigs"]["rename"])
    index = Path(f"{loci['reference']}.fai")
    found: set[str] = set()
    if loci["reference"] is not None and index.is_file():
        found |= {line.split("\t")[0] for line in index.read_text().splitlines() if line}
    for path in dict.fromkeys(sheet.paths):
        contigs = _contigs_of(path)
        if contigs is None:
            return None
        found |= contigs
    return set(map(rename, found))


def _contigs_of(path: str) -> set[str] | None:
    """Contigs that the header of aligned reads or a text file's tabix index names; None without one.

    What is wrong with the file itself is for the step that reads it to say.
    """
    try:
        if container_of(Path(path)) is not None:
            with pysam.AlignmentFile(path, check_sq=False) as file:
                return set(file.references)
        if any(Path(f"{path}{end}").is_file() for end in (".tbi", ".csi")):
            with pysam.TabixFile(path) as file:
                return set(file.contigs)
    except (OSError, ValueError):
        return None
    return None

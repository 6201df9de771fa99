"""Files that are not read although users bring them, by their first bytes: what they are, and what to bring instead."""

from __future__ import annotations

from typing import NamedTuple

TEXT = "a table of counts as text, plain, gzip or bgzip"


class Refused(NamedTuple):
    """What a file is, and what is expected in its place."""

    what: str
    expected: str = TEXT

    def message(self, path: object) -> str:
        """One line for the user."""
        return f"{path}: this is {self.what} (expected {self.expected})"


INDEX = Refused("an index of another file", "the file that it belongs to, which is named without the last suffix")
WITH_READS = "the counts that it was made from: a coverage file, a report or a BED with reads"
R_OBJECT = Refused(
    "an R object", "what write.table writes of it: contig, position, reads and methylated reads, as chr, pos, N and X"
)

# First bytes of the file, or of what is compressed in it.
REFUSED_BYTES = {
    b"BZh": Refused("a bzip2 file", "it as gzip: bunzip2 -c FILE | gzip"),
    b"\xfd7zXZ\x00": Refused("an xz file", "it as gzip: xz -dc FILE | gzip"),
    b"\x28\xb5\x2f\xfd": Refused("a zstandard file", "it as gzip: zstd -dc FILE | gzip"),
    b"PK\x03\x04": Refused("a zip archive or an Excel workbook", "what is in it: of Excel, saved as text with tabs"),
    b"\xd0\xcf\x11\xe0": Refused("an Excel workbook", "it saved as text with tabs"),
    b"PAR1": Refused("a Parquet file"),
    b"ARROW1": Refused("an Arrow file"),
    b"\x89HDF": Refused("an HDF5 file", "a table of counts, or the BAM file with the calls in its tags MM and ML"),
    b"\x8bPOD": Refused("a POD5 file, signals without calls", "the BAM file that dorado writes of it"),
    b"\x26\xfc\x8f\x88": Refused("a bigWig file, levels without reads", WITH_READS),
    b"\x88\x8f\xfc\x26": Refused("a bigWig file, levels without reads", WITH_READS),
    b"\xeb\xf2\x89\x87": Refused("a bigBed file", "it as BED: bigBedToBed FILE OUT.bed"),
    b"\x87\x89\xf2\xeb": Refused("a bigBed file", "it as BED: bigBedToBed FILE OUT.bed"),
    b"IDAT": Refused(
        "an IDAT file, intensities of an array", "the beta values that sesame or minfi compute, as a beta_matrix"
    ),
    b"BCF": Refused("a BCF file, variants", "counts of methylation; of biscuit, what vcf2bed writes"),
    b"RDX": R_OBJECT,
    b"RDA": R_OBJECT,
    b"X\n\0\0\0": R_OBJECT,
    b"TBI\x01": INDEX,
    b"CSI\x01": INDEX,
    b"BAI\x01": INDEX,
    b"%PDF": Refused("a PDF"),
}


def refused_bytes(start: bytes) -> Refused | None:
    """What a file is that begins so, None if it may be read."""
    return next((refused for magic, refused in REFUSED_BYTES.items() if start.startswith(magic)), None)

"""Names of base modifications: SAM code, ChEBI number, and the words of older tools."""

from __future__ import annotations

# The value of `loci.modification` for 5mC and 5hmC together, and the code of rows that count them so: modkit's for all
# modifications of cytosine, and the SAM specification's for one of them that is not specified further.
COMBINED, COMBINED_CODES = "mh", ("C",)
# The values of `loci.modification`.
MODIFICATIONS = {
    "m": ("m", "27551", "5mC"),
    "h": ("h", "76792", "5hmC"),
    "a": ("a", "28871", "6mA", "A"),
    COMBINED: COMBINED_CODES,
}
MODIFIED_BASE = {"m": "C", "h": "C", "a": "A", COMBINED: "C"}
# fmt: off
OTHER_MODIFICATIONS = frozenset((
    "f", "c", "g", "e", "b", "o", "n", "21839", "17596", "17802", "19228", "69426",
    "5fC", "5caC", "5hmU", "5fU", "5caU", "4mC", "8oxoG", "5oxoG", "Xao",
))
# fmt: on
MODIFICATION_CODES = OTHER_MODIFICATIONS.union(*MODIFICATIONS.values())
# One-letter codes that the MM tag of SAM knows; upper case is any modification of that base.
SAM_CODES = frozenset("mhfcgebaonACGTUN")

"""Columns of the tables about quality."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from epivi.tables.columns import LABEL, SAMPLE, Column

VERDICT_METADATA = "epivi.verdict"  # key in the metadata of the table `relatives`
FAMILY_FACTOR = "family_factor"  # `check` of the finding that forbids calls
FACTOR = Column("factor", pa.int32(), "number", ">= 1", "number of the factor, from the largest")

QUALITY_TABLES: Mapping[str, tuple[Column, ...]] = {
    "error_rates": (
        SAMPLE,
        Column("parameter", LABEL, "", "false_methylated false_unmethylated", "error probability, as in the sheet"),
        Column("estimate", pa.float64(), "probability", "0..1, nan", "share of wrong calls of controls; nan without"),
        Column("lower", pa.float64(), "probability", "0..1, nan", "lower end of its 95 % interval"),
        Column("upper", pa.float64(), "probability", "0..1, nan", "upper end of its 95 % interval"),
        Column("reads", pa.int64(), "reads", ">= 0", "reads of controls"),
        Column("positions", pa.int64(), "positions", ">= 0", "positions and strands of controls with reads"),
        Column("given", pa.float64(), "probability", "0..0.5, nan", "value of the sample sheet; nan where left open"),
        Column("used", pa.float64(), "probability", "0..0.5", "what the likelihood uses"),
        Column(
            "source",
            LABEL,
            "",
            "words",
            "where that is from: sheet, controls; or why 0: no controls, few reads, implausible rate",
        ),
    ),
    "sample_quality": (
        SAMPLE,
        Column("individual", LABEL, "", "name", "individual, as named by the pedigree"),
        Column("coverage", pa.float64(), "reads", ">= 0", "mean reads of a locus, over loci spread over the genome"),
        Column("covered", pa.float64(), "fraction", "0..1", "share of these loci with reads"),
        Column("methylation", pa.float64(), "fraction", "0..1, nan", "mean level of those; nan without any"),
        Column("sex", LABEL, "", "female male unknown", "sex that the pedigree declares"),
        Column(
            "x_coverage",
            pa.float64(),
            "ratio",
            ">= 0, nan",
            "coverage of X against the autosomes, in that of two copies; nan where not asked for or of haplotypes",
        ),
        Column("y_coverage", pa.float64(), "ratio", ">= 0, nan", "the same of Y, in that of one copy"),
        Column("x_methylation", pa.float64(), "fraction", "0..1, nan", "methylated share of the reads on X"),
    ),
    "relatedness": (
        SAMPLE,
        Column("other", LABEL, "", "name", "second sample of the pair; of one file's samples the first stands for all"),
        Column("source", LABEL, "", "methylation genotypes", "what the samples are compared by"),
        Column("expected", pa.float64(), "fraction", "0..1", "relatedness by the pedigree"),
        Column(
            "observed",
            pa.float64(),
            "fraction",
            "any, nan",
            "likeness, scaled so that it follows the pedigree's; nan where relatives are no more alike than others",
        ),
        Column("standard_error", pa.float64(), "fraction", ">= 0, nan", "block-jackknife error of `observed`"),
        Column(
            "swap_score",
            pa.float64(),
            "ratio",
            "any, nan",
            "-1 is expected as declared, 1 of a swapped pair; nan if unseen",
        ),
        Column("swap_z", pa.float64(), "SD", "any, nan", "`swap_score` by its block-jackknife error"),
        Column(
            "swap_can_be_seen",
            pa.bool_(),
            "",
            "true false",
            "whether the two places in the pedigree differ to the other samples",
        ),
    ),
    "relatives": (
        Column("column", LABEL, "", "name or empty", "column of the sheet that is looked within; empty for all pairs"),
        Column(
            "kind",
            LABEL,
            "",
            "kinds of pairs",
            "what the two samples' individuals are to one another; same level: all pairs with one level of the column",
        ),
        Column("level", LABEL, "", "within across, empty", "whether the two share their level; or one less the other"),
        Column("pairs", pa.int64(), "pairs", ">= 1", "pairs of samples of the kind"),
        Column(
            "families", pa.int32(), "families", ">= 1", "connected pedigrees that have a sample in one of the pairs"
        ),
        Column(
            "relatedness", pa.float64(), "fraction", "0..1", "mean relatedness by the pedigree; 1/2 of parent and child"
        ),
        Column(
            "correlation",
            pa.float64(),
            "correlation",
            "any, nan",
            "mean correlation of logits, less that of the reference; nan where the pairs do not determine it",
        ),
        Column(
            "se_families",
            pa.float64(),
            "correlation",
            ">= 0, nan",
            "standard error by leaving out one family at a time; nan where there are not enough families",
        ),
        Column(
            "se_loci",
            pa.float64(),
            "correlation",
            ">= 0, nan",
            "the same by blocks of loci: too small for what all loci share",
        ),
        Column(
            "lower",
            pa.float64(),
            "correlation",
            "any, nan",
            "lower end of the 95 % interval, by the larger error and Student's t over families",
        ),
        Column("upper", pa.float64(), "correlation", "any, nan", "upper end of the 95 % interval"),
        Column(
            "detectable",
            pa.float64(),
            "correlation",
            ">= 0, nan",
            "correlation that a test of the run would have shown with a probability of 80 %",
        ),
        Column("is_reference", pa.bool_(), "", "true false", "whether the others are relative to these pairs"),
    ),
    "factors": (
        FACTOR,
        Column(
            "singular_value", pa.float64(), "SD", ">= 0", "root of its variance over all samples, in SDs of a sample"
        ),
        Column(
            "share",
            pa.float64(),
            "fraction",
            "any",
            "share of the variance between samples beyond reads, estimated at other loci than the values",
        ),
        Column("standard_error", pa.float64(), "fraction", ">= 0", "of the share, over blocks of loci"),
        Column("p_value", pa.float64(), "probability", "0..1", "of no factor, with what relatives share left in"),
        Column("agreement", pa.float64(), "correlation", "0..1", "between the values found at either half of the loci"),
        Column("is_significant", pa.bool_(), "", "true false", "whether p_value is below 0.01; the last one is not"),
    ),
    "factor_values": (
        FACTOR,
        SAMPLE,
        Column("value", pa.float64(), "SD", "any", "value of the sample, of mean square 1 over the samples"),
    ),
    "factor_relations": (
        FACTOR,
        Column(
            "name", LABEL, "", "name", "column of the sheet; (family), (sex), (generation), (kinship) of the pedigree"
        ),
        Column(
            "correlation",
            pa.float64(),
            "correlation",
            "-1..1, nan",
            "with a number; of categories, the root of the share of the factor between them; of pairs with kinship",
        ),
        Column("p_value", pa.float64(), "probability", "0..1, nan", "of no relation; nan without a test"),
        Column("is_named", pa.bool_(), "", "true false", "whether it is beyond doubt for a significant factor"),
    ),
    "findings": (
        Column("check", LABEL, "", "name", "what was looked at"),
        SAMPLE,
        Column("other", LABEL, "", "name", "second sample, empty where there is none"),
        Column("value", pa.float64(), "of the check", "any, nan", "the number behind the warning; nan of `file`"),
        Column("limit", pa.float64(), "of the check", "any, nan", "what it was compared with"),
        Column("text", pa.string(), "", "text", "both in a sentence, as in the log"),
    ),
}

"""The cohort's configuration: read, checked against the JSON schema, defaults filled in.

The schema (workflow/schemas/config.schema.json) is the one place that knows keys, defaults, ranges and descriptions.
Rules that join several keys (a hypothesis, names that must exist) are checked here.
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from epivi.base.errors import UserError
from epivi.base.files import content_hash, expand_home
from epivi.config.analyses import ANALYSIS_KEYS, ANALYSIS_NAME, MAIN, idle_removals, laid_over, shared_keys
from epivi.config.declarations import DECLARATIONS

log = logging.getLogger(__name__)

INLINE = "inline configuration"
NULL_HYPOTHESES, FORMER_NULL = "null_hypotheses", "null"  # the name of a key of `model`, and the one that it had
# YAML reads that word, without quotes, as nothing, and so Snakemake hands it over.
FORMER_KEYS = (None, FORMER_NULL)
HYPOTHESIS_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+.-]*")

YAML_TEXT = "tag:yaml.org,2002:str"
YAML_MERGE = "tag:yaml.org,2002:merge"

KeyPath = tuple[Any, ...]

# Keys whose value is a path, where it is text, or a list of paths; `~` in them is the home folder.
PATH_KEYS = (
    ("samples",),
    ("pedigree",),
    ("pedigree", "nodes"),
    ("pedigree", "edges"),
    ("results",),
    ("loci", "reference"),
    ("loci", "unit", "bed"),
    ("loci", "exclude"),
    ("loci", "array", "manifest"),
    ("qc", "genotypes"),
    ("model", "classes"),
)


@dataclass(frozen=True)
class Config:
    """A checked configuration.

    source: the file, or "inline configuration", for messages.
    resolved: every section and key, defaults filled in; cohort, samples and pedigree are None where not given. The keys
    `analyses` and `analysis` are not among them.
    analyses: the configuration of each further analysis by its name, with the same keys as `resolved`.
    analysis: the analysis that is to be run alone, MAIN or one of `analyses`; None for all.
    """

    source: str
    resolved: dict[str, Any]
    analyses: Mapping[str, Config] = field(default_factory=dict)
    analysis: str | None = None

    def section(self, *path: str) -> dict[str, Any]:
        """A copy of one mapping: `section("loci")`, `section("loci", "coverage")`."""
        value: Any = self.resolved
        for name in path:
            value = value[name]
        if not isinstance(value, dict):
            raise TypeError(f"{'.'.join(path)} is a value, not a section of the configuration")
        return copy.deepcopy(value)

    def select(self, *names: str) -> dict[str, Any]:
        """Some top-level keys, as a configuration of their own; all without names."""
        return copy.deepcopy({name: self.resolved[name] for name in names or self.resolved})

    def hash(self, *names: str) -> str:
        """Hash of `select(*names)`; independent of process, key order and platform."""
        return content_hash(self.select(*names))

    def require(self, name: str) -> Any:
        """The value of a top-level key without a default; raises UserError where it was not given."""
        value = self.resolved[name]
        if value is None:
            raise UserError(f"{self.source}: the key {name!r} is missing")
        return copy.deepcopy(value)

    def seed(self, section: str | None = None) -> int:
        """The seed of a section (`fit`, `evidence`), or the top-level seed where the section has none."""
        own = None if section is None else self.resolved[section].get("seed")
        return int(self.resolved["seed"] if own is None else own)

    @property
    def contexts(self) -> tuple[str, ...]:
        """Cytosine contexts, one or several."""
        context = self.resolved["loci"]["context"]
        return (context,) if isinstance(context, str) else tuple(context)

    @property
    def null_hypotheses(self) -> tuple[str, ...]:
        """Hypotheses that count as null: those named in `model.null_hypotheses`, else those that the family says."""
        model, family = self.resolved["model"], DECLARATIONS[self.family]
        return tuple(model["null_hypotheses"]) or tuple(
            name for name, hypothesis in model["hypotheses"].items() if family.is_null(hypothesis)
        )

    @property
    def family(self) -> str:
        """Name of the model family, one of epivi.families.FAMILIES."""
        return str(self.resolved["model"]["family"])

    @property
    def sheet_columns(self) -> tuple[str, ...]:
        """Every sample-sheet column that the model names, in order of first mention."""
        model = self.resolved["model"]
        names = list(model["covariates"])
        for hypothesis in model["hypotheses"].values():
            names += hypothesis.get("covariates", [])
            names += [environment["column"] for environment in hypothesis.get("environment", [])]
        return tuple(dict.fromkeys(names))

    @property
    def relatedness_files(self) -> tuple[str, ...]:
        """Every relatedness matrix that a hypothesis names, in order of first mention."""
        hypotheses = self.resolved["model"]["hypotheses"].values()
        return tuple(dict.fromkeys(one["file"] for terms in hypotheses for one in terms.get("relatedness", [])))


def load_config(source: str, *, base: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration from a YAML or JSON file, or from inline JSON text that starts with "{".

    Keys of `source` win over those of `base`; a set of hypotheses replaces another as a whole.
    Raises UserError naming the source, the line where it is known, key, value and what was expected.
    """
    document, name, lines = _read(expand_home(source))
    if any(former in _model_of(document) for former in FORMER_KEYS):
        place = _place(name, lines, ("model", FORMER_NULL))
        log.warning("%s: model.%s is now called model.%s; please rename it", place, FORMER_NULL, NULL_HYPOTHESES)
    merged = _merged(_renamed(base or {}, name, {}), _renamed(document, name, lines))
    origin = Origin(name, lines)
    _check_schema(merged, origin)
    entries, analysis = merged.get("analyses") or {}, merged.get("analysis")
    resolved = _resolved(merged)
    _check_loci(resolved, origin)
    _check_model(resolved, origin)
    analyses = {label: _analysis(resolved, label, entry or {}, origin) for label, entry in entries.items()}
    if analysis not in (None, MAIN, *analyses):
        hint = suggestion(analysis, (MAIN, *analyses))
        raise UserError(f"{origin.place('analysis')}: analysis is {analysis!r}, which is not in analyses; {hint}")
    return Config(name, resolved, analyses, analysis)


@cache
def load_schema(name: str) -> dict[str, Any]:
    """The JSON schema `name` ("config", "samples", "pedigree"), from a wheel or from a checkout."""
    here = Path(__file__).resolve().parents[1]
    candidates = [folder / f"{name}.schema.json" for folder in (here / "schemas", here.parent / "workflow" / "schemas")]
    for path in candidates:
        if path.is_file():
            schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return _without_references(schema, schema.get("$defs", {}))
    raise UserError(f"{candidates[0]}: the file is missing; the installation of epivi is not complete")


def _without_references(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema with the definition that each `$ref` names in its place; what stands beside it wins."""
    if isinstance(schema, list):
        return [_without_references(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    named = definitions[schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else {}
    own = {key: value for key, value in schema.items() if key not in ("$ref", "$defs")}
    return {key: _without_references(value, definitions) for key, value in {**named, **own}.items()}


def suggestion(word: str, known: Iterable[str]) -> str:
    """A question "did you mean ...?" for a misspelt word, else the list of what is known."""
    names = [str(name) for name in known]
    lowered = {name.lower(): name for name in reversed(names)}
    close = difflib.get_close_matches(str(word).lower(), lowered, n=1, cutoff=0.55)
    if close:
        return f"did you mean {lowered[close[0]]!r}?"
    return f"known are {', '.join(names)}" if names else "none is known here"


# ---- reading


class Origin(NamedTuple):
    """Where a mapping comes from, for messages: a source, the lines of its keys, and the key that the mapping is at."""

    name: str
    lines: Mapping[KeyPath, int]
    under: KeyPath = ()

    def place(self, *path: Any) -> str:
        """The source with the line of a key of the mapping, or of the nearest key above it."""
        return _place(self.name, self.lines, (*self.under, *path))

    def key(self, *path: Any) -> str:
        """A key of the mapping as it is written in the source, with dots."""
        return _dotted((*self.under, *path))


def _read(source: str) -> tuple[Any, str, dict[KeyPath, int]]:
    """Document, name for messages, and the line of each key (empty for JSON)."""
    if source.lstrip().startswith("{"):
        return _parse_json(source, INLINE), INLINE, {}
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{source}: the configuration file does not exist") from None
    except UnicodeDecodeError:
        raise UserError(f"{source}: the configuration file is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{source}: cannot read the configuration file: {error.strerror}") from None
    if source.endswith(".json"):
        return _parse_json(text, source), source, {}
    document, lines = _parse_yaml(text, source)
    return document, source, lines


def _parse_json(text: str, name: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{name}: the key {key!r} is given twice in one mapping")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UserError(f"{name} line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from None


def _parse_yaml(text: str, name: str) -> tuple[Any, dict[KeyPath, int]]:
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        _walk(node, (), name, lines)
        return (None if node is None else loader.construct_document(node)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{name}{place}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


def _walk(node: Any, path: KeyPath, name: str, lines: dict[KeyPath, int]) -> None:
    """Record the line of every key below `node` and make keys text; a key twice in one mapping is an error."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            lines[(*path, index)] = child.start_mark.line + 1
            _walk(child, (*path, index), name, lines)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key, child in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{name} line {line}: a key of the mapping is not text: expected a name")
        if key.tag != YAML_MERGE:  # YAML takes the key `null` for nothing, and `no` for false
            key.tag = YAML_TEXT
        if key.value in seen:
            dotted = _dotted((*path, key.value))
            raise UserError(f"{name} line {line}: the key {dotted!r} is given twice, first on line {seen[key.value]}")
        seen[key.value] = line
        lines[(*path, key.value)] = line
        _walk(child, (*path, key.value), name, lines)


def _model_of(document: Any) -> Mapping[Any, Any]:
    """The section `model`; empty where there is none, or none that is a mapping."""
    model = document.get("model") if isinstance(document, Mapping) else None
    return model if isinstance(model, Mapping) else {}


def _renamed(document: Any, name: str, lines: dict[KeyPath, int]) -> Any:
    """The document with `model.null_hypotheses` under that name, also where it has the name of before.

    Raises UserError where both are there.
    """
    model = _model_of(document)
    former = [key for key in FORMER_KEYS if key in model]
    if not former:
        return document
    if NULL_HYPOTHESES in model:
        place = _place(name, lines, ("model", FORMER_NULL))
        raise UserError(
            f"{place}: model.{FORMER_NULL} and model.{NULL_HYPOTHESES} are both given: expected the second alone"
        )
    renamed = {NULL_HYPOTHESES if key in former else key: value for key, value in model.items()}
    for path in [path for path in lines if path[:2] == ("model", FORMER_NULL)]:
        lines[("model", NULL_HYPOTHESES, *path[2:])] = lines.pop(path)
    return {**document, "model": renamed}


def _merged(base: Any, document: Any, path: KeyPath = ()) -> Any:
    """`document` over `base`, mapping by mapping."""
    if document is None and path == ():
        return base
    if not isinstance(base, Mapping) or not isinstance(document, Mapping) or path == ("model", "hypotheses"):
        return document
    result = dict(base)
    for key, value in document.items():
        result[key] = _merged(result[key], value, (*path, key)) if key in result else value
    return result


def _with_home(resolved: dict[str, Any]) -> dict[str, Any]:
    """The configuration with `~` replaced in every path."""
    result = copy.deepcopy(resolved)
    for *sections, key in PATH_KEYS:
        holder: Any = result
        for name in sections:
            holder = holder.get(name) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            holder[key] = expand_home(holder[key])
        elif isinstance(holder, dict) and isinstance(holder.get(key), list):
            holder[key] = list(map(expand_home, holder[key]))
    for hypothesis in result["model"]["hypotheses"].values():
        for component in hypothesis.get("relatedness", []):
            component["file"] = expand_home(component["file"])
    return result


# ---- checking


def _check_schema(document: Any, origin: Origin) -> None:
    import jsonschema

    if not isinstance(document, dict):
        raise UserError(f"{origin.name}: the configuration must be a mapping of keys, not {_shown(document)}")
    for path, number in _numbers(document):
        if not math.isfinite(number):
            raise UserError(f"{origin.place(*path)}: {origin.key(*path)} is {number}: expected a finite number")
    schema = load_schema("config")
    validator = jsonschema.Draft202012Validator(schema)
    errors = sorted(
        validator.iter_errors(_without_empty(schema, document)),
        key=lambda error: (error.validator != "additionalProperties", [str(part) for part in error.absolute_path]),
    )
    if errors:
        raise UserError(_message(errors[0], origin))


def _numbers(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, float]]:
    """Every floating-point number of a document with its path."""
    if isinstance(value, float):
        yield path, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from _numbers(child, (*path, key))


def _message(error: Any, origin: Origin) -> str:
    """One line for a schema error: place, key, value, expected."""
    path: KeyPath = tuple(error.absolute_path)
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        unknown = next(key for key in error.instance if key not in known)
        elsewhere = [key for key, _ in leaf_keys(load_schema("config")) if key.split(".")[-1] == unknown]
        hint = f"did you mean {elsewhere[0]!r}?" if elsewhere else suggestion(unknown, known)
        return f"{origin.place(*path, unknown)}: unknown key {origin.key(*path, unknown)!r}; {hint}"
    place, key = origin.place(*path), origin.key(*path)
    expected = error.schema.get("expected", "a mapping of keys")
    if error.validator == "required":
        missing = next(key for key in error.validator_value if key not in error.instance)
        return f"{place}: {key} lacks the key {missing!r}: expected {expected}"
    return f"{place}: {key} is {_shown(error.instance)}: expected {expected}{_hint(error.instance, expected)}"


def _hint(value: Any, expected: str) -> str:
    """YAML reads 5e-4 as text, 42 as a number and 2024-01-01 as a date; say how to write them."""
    if isinstance(value, int | float | date) and not isinstance(value, bool) and "a name" in expected:
        return " (write it in quotes)"
    if not isinstance(value, str) or "number" not in expected:
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    return f" (this is text: write it as {number:.12g}, without quotes)" if abs(number) >= 1e-4 else " (this is text)"


def _check_loci(resolved: Mapping[str, Any], origin: Origin) -> None:
    """Rules that join several keys of `loci`."""
    coverage = resolved["loci"]["coverage"]
    if coverage["min"] > coverage["max"]:
        place = origin.place("loci", "coverage", "min")
        raise UserError(
            f"{place}: loci.coverage.min is {coverage['min']}: expected at most loci.coverage.max, {coverage['max']}"
        )
    minimum = resolved["loci"]["min_covered_samples"]
    if isinstance(minimum, float) and minimum >= 1:
        place = origin.place("loci", "min_covered_samples")
        raise UserError(
            f"{place}: loci.min_covered_samples is {minimum}: expected a fraction below 1, or a number of samples "
            "without a decimal point"
        )


def _check_model(resolved: Mapping[str, Any], origin: Origin) -> None:
    """Rules that join several keys of an analysis."""
    model = resolved["model"]
    _check_family(resolved, origin)
    _check_hypotheses(model, origin)
    for index, null in enumerate(model["null_hypotheses"]):
        if null not in model["hypotheses"]:
            place, key = origin.place("model", "null_hypotheses", index), origin.key("model", "null_hypotheses")
            hint = suggestion(null, model["hypotheses"])
            raise UserError(f"{place}: {key} names {null!r}, which is no hypothesis; {hint}")


def _check_family(resolved: Mapping[str, Any], origin: Origin) -> None:
    """What the family does not know must stand at its default."""
    chosen = resolved["model"]["family"]
    declaration = DECLARATIONS[chosen]
    method = resolved["fit"]["method"]
    if method not in declaration.fit_methods:
        place, key = origin.place("fit", "method"), origin.key("fit", "method")
        expected = " or ".join(declaration.fit_methods)
        raise UserError(f"{place}: {key} is {method}, which family {chosen} does not offer: expected {expected}")
    default = _with_defaults(load_schema("config"), {})["model"]
    for family in DECLARATIONS.values():
        for key in family.model_keys:
            path = tuple(key.split("."))
            if key not in declaration.model_keys and _value_at(resolved["model"], path) != _value_at(default, path):
                place, dotted = origin.place("model", *path), origin.key("model", *path)
                raise UserError(f"{place}: {dotted} is of another family than {chosen}: expected it to be left out")


def _value_at(mapping: Any, path: KeyPath) -> Any:
    for key in path:
        mapping = mapping[key]
    return mapping


def _keys_at(mapping: Any, path: Iterable[Any]) -> tuple[Any, ...]:
    """Keys of the mapping at a path; none where there is none."""
    for key in path:
        mapping = mapping.get(key) if isinstance(mapping, Mapping) else None
    return tuple(mapping) if isinstance(mapping, Mapping) else ()


def _check_hypotheses(model: Mapping[str, Any], origin: Origin) -> None:
    key = ("model", "hypotheses")
    hypotheses, family = model["hypotheses"], DECLARATIONS[model["family"]]
    if not hypotheses:
        raise UserError(f"{origin.place(*key)}: {origin.key(*key)} is empty: expected at least one hypothesis")
    seen: dict[str, str] = {}
    for label, hypothesis in hypotheses.items():
        place = f"{origin.place(*key, label)}: {origin.key(*key, label)}"
        if not HYPOTHESIS_NAME.fullmatch(label):
            raise UserError(
                f"{place}: expected a name of letters, digits, '_', '+', '.' and '-' that starts with a letter"
            )
        foreign = [word for word in hypothesis if word not in family.hypothesis_keys]
        if foreign:
            words = ", ".join(family.hypothesis_keys)
            raise UserError(f"{place} has {foreign[0]}, which family {model['family']} does not know: expected {words}")
        problem = family.hypothesis_problem(hypothesis, model)
        if problem:
            raise UserError(f"{place} {problem}")
        # Two equal hypotheses would share one weight arbitrarily.
        same = seen.setdefault(content_hash(hypothesis), label)
        if same != label:
            raise UserError(f"{place} is the same as {origin.key(*key, same)}: expected different hypotheses")


# ---- further analyses


def _analysis(main: Mapping[str, Any], label: Any, entry: Mapping[str, Any], origin: Origin) -> Config:
    """The configuration of a further analysis: its entry in `analyses` laid over the main one, checked as that is."""
    at = Origin(origin.name, origin.lines, ("analyses", label))
    if not isinstance(label, str) or not ANALYSIS_NAME.fullmatch(label) or label == MAIN:
        raise UserError(
            f"{at.place()}: {at.key()}: expected a name of letters, digits, '.', '_' and '-' that starts with a "
            f"letter, other than {MAIN}"
        )
    for shared in shared_keys(entry, load_schema("config")["properties"]):
        raise UserError(
            f"{at.place(*shared)}: {at.key(*shared)} is shared by all analyses of a cohort, as loci and counts are: "
            "expected it outside of analyses, or another cohort"
        )
    base = _base_of_family(main, entry)
    for *path, key in idle_removals(base, entry):
        raise UserError(
            f"{at.place(*path, key)}: {at.key(*path, key)} is empty, which removes a key that is not there; "
            f"{suggestion(key, _keys_at(base, path) if path else ANALYSIS_KEYS)}"
        )
    laid = laid_over(base, entry)
    if laid.get("pedigree") is None and main["pedigree"] is not None:
        expected = load_schema("config")["properties"]["pedigree"]["expected"]
        raise UserError(f"{at.place('pedigree')}: {at.key('pedigree')} is empty: expected {expected}")
    _check_schema(laid, at)
    resolved = _resolved(laid)
    _check_model(resolved, at)
    return Config(origin.name, resolved)


def _base_of_family(main: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry is laid over: the main configuration, without what it says of another model family.

    Where the entry names another family, hypotheses and what the main family alone looks at take that one's defaults.
    """
    base = copy.deepcopy(dict(main))
    model = entry.get("model")
    family = model.get("family") if isinstance(model, Mapping) else None
    if isinstance(family, str) and family in DECLARATIONS and family != main["model"]["family"]:
        default = _resolved({"model": {"family": family}})["model"]
        for key in ("hypotheses", "null_hypotheses", *DECLARATIONS[main["model"]["family"]].model_keys):
            *sections, last = key.split(".")
            _value_at(base["model"], tuple(sections))[last] = _value_at(default, (*sections, last))
    return base


def _place(name: str, lines: Mapping[KeyPath, int], path: KeyPath) -> str:
    """`name` with the line of `path`, or of the nearest key above it."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return f"{name} line {lines[path[:length]]}"
    return name


def _dotted(path: KeyPath) -> str:
    text = "".join(f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


# ---- defaults


def _allows_null(schema: Mapping[str, Any]) -> bool:
    return _is_type(schema, "null")


def _child_schema(schema: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Schema of the value at `key`; empty where the schema knows nothing about it."""
    additional = schema.get("additionalProperties")
    fallback = additional if isinstance(additional, dict) else {}
    child: dict[str, Any] = schema.get("properties", {}).get(key, fallback)
    return child


def _without_empty(schema: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what was written as nothing (`fit:` alone on its line), so that it takes its default.

    A hypothesis written as nothing is the empty hypothesis. A single value left empty stays, and is an error.
    """
    result: dict[str, Any] = {}
    for key, value in document.items():
        child = _child_schema(schema, key)
        if value is None and not _allows_null(child):
            if _is_object(child):
                if key not in schema.get("properties", {}):
                    result[key] = {}
                continue
            if "default" not in child and key in schema.get("properties", {}) and schema.get("title"):
                continue
        result[key] = _without_empty(child, value) if isinstance(value, dict) else value
    return result


def _resolved(document: Mapping[str, Any]) -> dict[str, Any]:
    """A checked configuration with all defaults, and without what it says of further analyses."""
    alone = {key: value for key, value in document.items() if key not in ("analyses", "analysis")}
    resolved = _with_home(_with_defaults(load_schema("config"), _with_family_hypotheses(alone)))
    del resolved["analyses"], resolved["analysis"]
    return resolved


def _with_defaults(schema: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` in the order of the schema, with every default that its schema names."""
    given = _without_empty(schema, document)
    result: dict[str, Any] = {}
    for key, child in schema.get("properties", {}).items():
        if key in given:
            value = given[key]
            result[key] = _filled(child, value)
        elif "default" in child:
            result[key] = copy.deepcopy(child["default"])
        elif _is_object(child) and not child.get("required"):
            result[key] = _with_defaults(child, {})
        elif schema.get("title"):
            result[key] = None
    for key in given:
        if key not in schema.get("properties", {}):
            result[key] = _with_defaults(_child_schema(schema, key), given[key])
    return result


def _filled(schema: Mapping[str, Any], value: Any) -> Any:
    """A value with the defaults of its schema; what may be one mapping or a list of them becomes a list."""
    if not _is_object(schema):
        return value
    if _is_array(schema):
        return [_with_defaults(schema["items"], one) for one in (value if isinstance(value, list) else [value])]
    return _with_defaults(schema, value) if isinstance(value, dict) else value


def _with_family_hypotheses(document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with the default hypotheses of its model family, where those of the schema are another family's."""
    model = document.get("model") or {}
    defaults = load_schema("config")["properties"]["model"]["properties"]["hypotheses"]["family_defaults"]
    if model.get("family") in defaults and model.get("hypotheses") is None:
        model = {**model, "hypotheses": copy.deepcopy(defaults[model["family"]])}
    return {**document, "model": model}


def _is_object(schema: Mapping[str, Any]) -> bool:
    """Whether a mapping may stand there."""
    return _is_type(schema, "object")


def _is_array(schema: Mapping[str, Any]) -> bool:
    return _is_type(schema, "array")


def _is_type(schema: Mapping[str, Any], name: str) -> bool:
    kind = schema.get("type")
    return name in kind if isinstance(kind, list) else name == kind


def leaf_keys(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of a schema that takes a value: dotted path and its schema; hypotheses as `<name>`."""
    for key, child in schema.get("properties", {}).items():
        path = f"{prefix}{key}"
        if not _is_object(child) or "default" in child:
            yield path, child
        if _is_object(child):
            yield from leaf_keys(child, f"{path}.")
    additional = schema.get("additionalProperties")
    if isinstance(additional, dict):
        yield from leaf_keys(additional, f"{prefix}<name>.")

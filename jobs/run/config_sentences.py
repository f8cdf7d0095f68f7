"""Sentences about a configuration: which values a key may have, and why a value is refused."""

import difflib
from typing import Any

from pydantic import ValidationError

from jobs.run.config_keys import Config, config_keys


def allowed_values(schema: dict[str, Any]) -> str:
    """The allowed values of a key in words, from its JSON schema, such as "whole numbers from 1"."""
    if "allowed" in schema:
        return schema["allowed"]
    if "anyOf" in schema:
        return " or ".join(allowed_values(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    match schema["type"]:
        case "boolean":
            return "`true`, `false`"
        case "string":
            return "text"
        case "array":
            return f"a list of {allowed_values(schema['items'])}"
        case kind:
            return f"{'whole numbers' if kind == 'integer' else 'numbers'}{_bounds(schema)}"


def _bounds(schema: dict[str, Any]) -> str:
    lower = {"minimum": "from", "exclusiveMinimum": "above"}
    upper = {"maximum": "up to", "exclusiveMaximum": "below"}
    if any(bound in schema for bound in lower):
        upper = {"maximum": "to", "exclusiveMaximum": "to below"}
    return "".join(f" {word} {schema[bound]:g}" for bound, word in (lower | upper).items() if bound in schema)


_NUMBER_FAULTS = {
    *("int_parsing", "int_from_float", "int_type", "float_parsing", "float_type", "finite_number"),
    *("greater_than_equal", "greater_than", "less_than_equal", "less_than"),
}

# What is allowed, for each of pydantic's names of faults. For other faults pydantic's own words are used.
_ALLOWED = {
    **dict.fromkeys(("bool_parsing", "bool_type"), "true or false"),
    "string_type": "text",
    "tuple_type": "a list, separated by commas",
    "too_short": "a list of one or more",
    "model_type": "a section of keys; set one of them, as in maps.num_samples=100",
}


def refusal(error: ValidationError) -> str:
    """One sentence about the first fault."""
    fault = error.errors()[0]
    # Unions and tuples add parts to the path that are not names of keys: leave them out.
    key = ".".join(str(part) for part in fault["loc"][:2] if isinstance(part, str))
    is_no_section = isinstance(fault["input"], dict) and key in config_keys()  # seed.theta, for seeds.theta
    if is_no_section:
        key = f"{key}.{next(iter(fault['input']), '')}"
    if fault["type"] == "extra_forbidden" or is_no_section:
        section = key.partition(".")[0]
        near = difflib.get_close_matches(key, [*config_keys(), *Config.model_fields], n=1, cutoff=0.6)
        known = [name for name in config_keys() if name.startswith(f"{section}.")] or list(Config.model_fields)
        return f"{key}: unknown key. " + (f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}.")
    if fault["type"] in _NUMBER_FAULTS:
        finite = "finite " if fault["type"] == "finite_number" else ""
        allowed = finite + allowed_values(_schema_of(key))
    elif fault["type"] in _ALLOWED:
        allowed = _ALLOWED[fault["type"]]
    else:
        allowed = fault["msg"].removeprefix("Input should be ")
    return f"{key}: given {fault['input']!r}, allowed: {allowed}."


def _schema_of(key: str) -> dict[str, Any]:
    schema = Config.model_json_schema()
    section, _, name = key.partition(".")
    found = schema["properties"][section]
    return schema["$defs"][found["$ref"].rsplit("/", 1)[1]]["properties"][name] if name else found

"""Forty schemas out of the vocabulary of JSON Schema, each a form that the others don't have."""

from __future__ import annotations

from typing import Any

SMALL = {"type": "string", "maxLength": 6}

SCHEMAS: dict[str, Any] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "integer_range": {"type": "integer", "minimum": -7, "maximum": 42},
    "exclusive_range": {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 13},
    "number": {"type": "number"},
    "number_range": {"type": "number", "minimum": 0, "maximum": 1},
    "multiple_of": {"type": "integer", "multipleOf": 5},
    "string": {"type": "string", "maxLength": 20},
    "string_lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "pattern": {"type": "string", "pattern": "^[a-z]{2,5}-[0-9]{3}$"},
    "pattern_choice": {"type": "string", "pattern": "^(yes|no|maybe)( [a-z]+)?$"},
    "format_date": {"type": "string", "format": "date"},
    "format_uuid": {"type": "string", "format": "uuid"},
    "enum": {"enum": ["red", "green", 3, None, True]},
    "enum_structures": {"enum": [{"a": 1}, [1, 2], "a"]},
    "const": {"const": "only this"},
    "const_structure": {"const": {"a": [1, None]}},
    "types": {"type": ["integer", "null", "boolean"]},
    "array": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4},
    "array_lengths": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "boolean"}],
        "items": False,
        "minItems": 2,
    },
    "tuple_rest": {"type": "array", "prefixItems": [{"const": "a"}], "items": {"type": "null"}, "maxItems": 3},
    "nested_arrays": {
        "type": "array",
        "maxItems": 2,
        "items": {"type": "array", "items": {"type": "null"}, "maxItems": 2},
    },
    "object": {
        "type": "object",
        "properties": {"name": SMALL, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"type": "integer"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "no_properties": {"type": "object", "additionalProperties": False},
    "additional_typed": {
        "type": "object",
        "properties": {"identity": {"type": "integer"}},
        "required": ["identity"],
        "additionalProperties": {"type": "boolean"},
    },
    "map": {"type": "object", "additionalProperties": {"enum": [1, 2]}},
    "pattern_properties": {
        "type": "object",
        "patternProperties": {"^n_[a-z]{1,3}$": {"type": "integer"}},
        "additionalProperties": False,
    },
    "nested_objects": {
        "type": "object",
        "properties": {
            "outer": {
                "type": "object",
                "properties": {"inner": {"type": "object", "properties": {"leaf": SMALL}, "required": ["leaf"]}},
                "required": ["inner"],
                "additionalProperties": False,
            }
        },
        "required": ["outer"],
        "additionalProperties": False,
    },
    "any_of": {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^x+$"}, {"type": "null"}]},
    "any_of_objects": {
        "anyOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": "circle"}, "r": {"type": "integer"}},
                "required": ["kind", "r"],
                "additionalProperties": False,
            },
            {
                "type": "object",
                "properties": {"kind": {"const": "square"}, "side": {"type": "integer"}},
                "required": ["kind", "side"],
                "additionalProperties": False,
            },
        ]
    },
    "one_of_disjoint": {"oneOf": [{"type": "boolean"}, {"type": "integer"}]},
    "all_of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "all_of_objects": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"properties": {"b": {"type": "null"}}, "required": ["b"]},
        ]
    },
    "ref": {
        "$defs": {"positive": {"type": "integer", "exclusiveMinimum": 0}},
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/positive"}, "y": {"$ref": "#/$defs/positive"}},
        "required": ["x", "y"],
        "additionalProperties": False,
    },
    "recursive": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "v": {"type": "integer", "minimum": 0, "maximum": 9},
                    "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
                },
                "required": ["v"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    "draft_7_tuple": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "array",
        "items": [{"type": "boolean"}, {"type": "null"}],
        "additionalItems": False,
        "minItems": 2,
    },
    "record": {
        "type": "object",
        "properties": {
            "id": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}$"},
            "tags": {"type": "array", "items": {"enum": ["new", "old", "hot"]}, "maxItems": 3},
            "price": {"type": "number", "minimum": 0, "exclusiveMaximum": 1000},
            "owner": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/person"}]},
            "active": {"type": "boolean"},
        },
        "required": ["id", "tags", "price", "owner", "active"],
        "additionalProperties": False,
        "$defs": {
            "person": {
                "type": "object",
                "properties": {"name": SMALL},
                "required": ["name"],
                "additionalProperties": False,
            }
        },
    },
}

"""Generation that follows a JSON schema, a regular expression or a Lark grammar, and forks with the tree."""

from dendrite.grammar.spec import Grammar

__all__ = ["Grammar"]

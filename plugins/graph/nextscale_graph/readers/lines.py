"""Lines of a text file as fields: comments, separators and quotes, as collections of graphs write them."""

from __future__ import annotations

import ast
import csv
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nextscale.plugin import DataError, shown_path

COMMENTS = ("#", "%", "//", ";")
"""What a comment line begins with. Behind data only ``#`` after a blank begins a comment."""
SEPARATORS = ("\t", ";", ",")
ATTRIBUTES = re.compile(r"\{[^{}]*\}\s*$")
"""networkx writes the attributes of an edge behind it, as a dictionary."""
LONGEST = 10_000
"""Characters of a line whose dictionary is read."""
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass
class Row:
    """The fields of a line. ``line`` is its number, ``text`` what it says, ``attributes`` a dictionary at its end."""

    line: int
    text: str
    fields: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)


def split_lines(text: str, path: Path) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Lines with data, and comments, each with its number.

    Raises:
        DataError: a line is no text.
    """
    data, comments = [], []
    # Not splitlines: it also splits at signs that editors do not count as the end of a line.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1):
        if "\0" in line:
            raise DataError(f"{shown_path(path)}, line {number}, holds a zero byte: the file is damaged, or no text")
        line = line.strip()
        if line:
            (comments if line.startswith(COMMENTS) else data).append((number, line))
    return data, comments


def read_rows(data: list[tuple[int, str]], path: Path) -> list[Row]:
    """The fields of each line, separated by tabs, semicolons, commas or blanks.

    Where any line has a tab (else a semicolon, else a comma), lines with one are split there, and names may hold
    blanks; lines without are split at blanks. A name in double quotes may hold anything.

    Raises:
        DataError: quotes do not end, or separators do not tell names apart.
    """
    attributes = [_attributes(line) for _, line in data]
    cleaned = [(number, _without_comment(line, number, path)) for number, line in data]
    bare = [re.sub(r'"[^"]*"', "", line) if '"' in line else line for _, line in cleaned]
    separator = next((one for one in SEPARATORS if any(one in line for line in bare)), None)
    rows, named = [], None
    for (number, line), plain, own in zip(cleaned, bare, attributes, strict=True):
        here = separator if separator is not None and separator in plain else None
        fields = _split(line, here, number, path)
        rows.append(Row(number, line, fields, own))
        if here and '"' not in line and any(" " in field for field in fields[:2]):
            named = number
    if separator is not None and named is not None:  # then a line without the separator may be one name, or several
        for row, plain in zip(rows, bare, strict=True):
            if separator not in plain and " " in plain:
                raise DataError(
                    f"{shown_path(path)}, line {row.line}, is separated by blanks, but line {named} by {separator!r}: "
                    "use one of them"
                )
    return rows


def _attributes(line: str) -> dict[str, Any]:
    """The dictionary at the end of a line; empty if there is none, or none that can be read."""
    found = ATTRIBUTES.search(line) if line.endswith("}") and len(line) < LONGEST else None
    try:
        read = ast.literal_eval(found[0].strip()) if found else {}
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {}
    return {str(name): value for name, value in read.items()} if isinstance(read, dict) else {}


def _without_comment(line: str, number: int, path: Path) -> str:
    if "{" in line:
        line = ATTRIBUTES.sub("", line).strip()
    for found in re.finditer("#", line):
        before = line[: found.start()]
        if before.count('"') % 2:
            continue
        if not before[-1].isspace():
            raise DataError(
                f"{shown_path(path)}, line {number}: is '#' in {line!r} a part of a name or a comment? "
                "Put the name in double quotes, or a blank before the comment"
            )
        return before.strip()
    return line


def _split(line: str, separator: str | None, number: int, path: Path) -> list[str]:
    if '"' in line:
        try:
            fields = next(csv.reader([line], delimiter=separator or " ", skipinitialspace=True, strict=True))
        except csv.Error as error:
            raise DataError(
                f"{shown_path(path)}, line {number}: quotes in {line[:80]!r} do not end ({error})"
            ) from None
        return [field.strip() for field in fields]
    if separator is None:
        return line.split()
    fields = [field.strip() for field in line.split(separator)]
    words = [word for field in fields[:2] for word in field.split()]
    if len(words) > 2 and all(NUMBER.fullmatch(word) for word in words):
        return line.replace(separator, " ").split()  # numbers hold no blanks, so blanks separate them too
    return fields


def node_name(word: str, row: Row, path: Path) -> str:
    """The name of a node as one text: ``1.0`` and ``1e+00``, which spreadsheets and pandas write, are ``1``.

    Raises:
        DataError: the word can be no name.
    """
    if word.isdecimal():
        return word
    if NUMBER.fullmatch(word):
        if re.fullmatch(r"\+?\d+\.0*", word):
            return word.lstrip("+").split(".")[0]
        value = float(word)
        if re.fullmatch(r"[^eE]+[eE]\+\d+", word) and value == int(min(max(value, -1e15), 1e15)):
            return str(int(value))
        if not re.fullmatch(r"[+-]?\d+([eE]\d+)?", word):
            raise _no_name(word, row, path, "is a fraction: nodes are whole numbers or names")
        return word.lstrip("+")
    if word.lower() in ("", "nan", "null"):
        raise _no_name(word, row, path, "is missing: an edge has two ends")
    if word in ("->", "<-", "--", "<->", "-->", "=>", "-", "|"):
        raise _no_name(word, row, path, "is no node: write the two nodes of an edge with a blank between them")
    if any(word.count(one) != word.count(other) for one, other in ("()", "[]", "{}")):
        raise _no_name(word, row, path, "has a bracket too many: write an edge as two names, without brackets")
    if '"' not in row.text and word.startswith("'") and not word.endswith("'"):
        raise _no_name(word, row, path, "begins with a quote that does not end: quote names with double quotes")
    return word


def _no_name(word: str, row: Row, path: Path, reason: str) -> DataError:
    return DataError(f"{shown_path(path)}, line {row.line}: {word[:80]!r} in {row.text[:80]!r} {reason}")

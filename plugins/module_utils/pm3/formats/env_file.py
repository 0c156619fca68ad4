# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Env files: lines of KEY=value, in pm3's grammar (spec: pm3.md, section 1.4).

Lines that are none are skipped silently, `export` is no keyword and nothing is expanded: all of that is pm3's contract.
"""

from __future__ import annotations

import re

from ..model.problems import DefinitionError, Problem

# What Unicode calls white space. str.strip() alone would also take the separators U+001C to U+001F.
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
_ESCAPED = {"\\n": "\n", "\\t": "\t", "\\\\": "\\", '\\"': '"'}
_PAIR = re.compile(r"\\.", re.DOTALL)


def read(path: str) -> dict[str, str]:
    """The variables of the file at `path`. Raises `DefinitionError`, which says `env file` and the path."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return parse(file.read())
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise _unreadable(path, "expected UTF-8, found a byte that is not") from None
    except DefinitionError as error:
        raise _unreadable(path, error.problems[0].message) from None


def _unreadable(path: str, why: str) -> DefinitionError:
    return DefinitionError([Problem(f"env file {path}: {why}", field="env_file")])


def parse(text: str) -> dict[str, str]:
    """The variables in `text`; of a key given twice, the last. Raises `DefinitionError` for a NUL, which no environment can hold."""
    variables: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(_BLANKS)
        key, equals, value = line.partition("=")
        key = key.strip(_BLANKS)
        if line.startswith("#") or not equals or not key:
            continue
        if "\0" in line:
            raise DefinitionError([Problem(f"line {number}: expected text, found a NUL character")])
        variables[key] = _value(value.strip(_BLANKS))
    return variables


def _value(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1]
    if len(text) > 1 and text[0] == text[-1] == '"':
        return _PAIR.sub(lambda pair: _ESCAPED.get(pair.group(), pair.group()), text[1:-1])
    return text

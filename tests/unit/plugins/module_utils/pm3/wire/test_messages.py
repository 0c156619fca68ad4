from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import Problem
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import messages
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire.messages import Malformed
from hypothesis import given
from hypothesis import strategies as st

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates included: bytes that were not UTF-8
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(any_text, json_values, max_size=4))
def test_what_is_encoded_comes_back(document: dict[str, Any]) -> None:
    line = messages.encode(document)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert messages.decode(line) == document


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_bytes_are_an_object_or_malformed(line: bytes) -> None:
    try:
        document = messages.decode(line)
    except Malformed as error:
        said = str(error)
    else:
        assert isinstance(document, dict)
        return
    assert said.startswith("expected one JSON object")


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"1", b"null", b"{", b'{"a":NaN}', b'{"a":-Infinity}', b"\xff{}", b"[" * 100_000, b"9" * 5000]
)
def test_not_an_object(line: bytes) -> None:
    with pytest.raises(Malformed):
        messages.decode(line)


def test_a_checked_request_has_all_fields() -> None:
    assert messages.check({"type": "log", "name": None, "lines": 40, "colour": "red"}) == {
        "type": "log",
        "name": None,
        "names": None,
        "stream": None,
        "since": None,
        "timestamps": False,
        "lines": 40,
        "follow": False,
    }
    apply = messages.check({"type": "apply", "project": "shop", "definitions": {"web": {"command": "x"}}})
    assert apply["prune"] is True
    assert apply["wait"] is True
    assert apply["state"] == "present"
    assert apply["secrets"] == {}


@pytest.mark.parametrize(
    "line",
    [  # the examples of the specification
        '{"type":"start","configs":{"mailer":{"command":"./mailer --once","environments":{}}},"wait":true,"path":"/bin"}',
        '{"type":"stop"}',
        '{"type":"log","name":"mailer","lines":40,"follow":true}',
        '{"type":"info","name":"mailer","more":{"unknown":1}}',
    ],
)
def test_requests_of_pm3_are_understood(line: str) -> None:
    request = messages.check(messages.decode(line.encode()))
    given_ = json.loads(line)
    assert {name: value for name, value in request.items() if name in given_} == {
        name: value for name, value in given_.items() if name != "more"
    }


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "expected a request with its type, a string"),
        ({"type": ["list"]}, "expected a request with its type, a string"),
        ({"type": "frobnicate"}, "request type 'frobnicate' is unknown to this agent (pm3 0.1.0)"),
        ({"type": "info"}, "request info: name is missing; expected a string"),
        (
            {"type": "apply", "project": ""},
            "request apply: project: expected a name: a string that is not empty, without control characters",
        ),
        (
            {"type": "plan", "project": "a\x1b[2J"},
            "request plan: project: expected a name: a string that is not empty, without control characters",
        ),
        (
            {"type": "apply", "project": "a", "label": "1\n2"},
            "request apply: label: expected a name: a string that is not empty, without control characters",
        ),
        ({"type": "info", "name": None}, "request info: name is missing; expected a string"),
        ({"type": "info", "name": "a\0b"}, "request info: name: expected a string"),
        (
            {"type": "apply", "project": "shop", "rollback_from": ""},
            "request apply: rollback_from: expected a name: a string that is not empty, without control characters",
        ),
        ({"type": "stop", "names": "web"}, "request stop: names: expected an array of strings"),
        ({"type": "stop", "names": [1]}, "request stop: names: expected an array of strings"),
        ({"type": "log", "lines": -1}, "request log: lines: expected a whole number, 0 or more"),
        ({"type": "log", "lines": True}, "request log: lines: expected a whole number, 0 or more"),
        ({"type": "log", "follow": 1}, "request log: follow: expected true or false"),
        ({"type": "start", "configs": {"web": "x"}}, "request start: configs: expected an object of objects"),
        (
            {"type": "apply", "project": "p", "definitions": {}, "secrets": {"web": {"KEY": 1}}},
            "request apply: secrets: expected an object of objects of strings",
        ),
        (
            {"type": "plan", "project": "p", "definitions": {}, "state": "gone"},
            "request plan: state: expected one of present, stopped, restarted, reloaded, absent",
        ),
        ({"type": "snapshot", "timeout": -0.5}, "request snapshot: timeout: expected a number, 0 or more"),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Malformed) as caught:
        messages.check(request_)
    assert str(caught.value) == sentence


@given(st.sampled_from(sorted(messages.REQUESTS)), st.dictionaries(any_text, json_values, max_size=3), st.data())
def test_a_request_is_checked_or_malformed(kind: str, more: dict[str, Any], data: st.DataObject) -> None:
    known = {name: data.draw(json_values) for name in messages.REQUESTS[kind] if data.draw(st.booleans())}
    try:
        request = messages.check({**more, **known, "type": kind})
    except Malformed:
        return
    assert set(request) == {"type", *messages.REQUESTS[kind]}
    assert messages.check(request) == request


def test_a_secret_is_not_repeated() -> None:
    with pytest.raises(Malformed) as caught:
        messages.check({"type": "apply", "project": "p", "definitions": {}, "secrets": {"web": ["hunter2"]}})
    assert "hunter2" not in str(caught.value)


def test_an_error_reply_lists_problems() -> None:
    assert messages.error("no") == {"type": "error", "message": "no"}
    reply = messages.error("no", [Problem("unknown field", "pm3.toml", "web", "comand")])
    assert reply["problems"] == [{"file": "pm3.toml", "table": "web", "field": "comand", "message": "unknown field"}]

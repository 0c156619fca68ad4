# Copyright (c) 2026, pm3.fleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Revisions of projects in a real store: which are kept, which can be gone back to, and which were tried in vain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.projects import UNFINISHED, Projects
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.store import Revision, Store
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import load
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import DefinitionError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    one = Store(str(tmp_path / "store.sqlite"))
    yield one
    one.close()


def web(release: int) -> dict[str, Any]:
    return load({"web": {"command": f"serve --release {release}"}})


def release(number: int, projects: Projects, label: str | None = None, **about: Any) -> Revision:
    """Applies a release of this number: `failure` and `at` are what became of it."""
    failure, at, origin = about.get("failure"), about.get("at"), about.get("origin")
    made = projects.made("shop", web(number), {"web"}, about.get("places", {}), label, 0, origin)
    projects.keep(made)
    projects.judge("shop", failure, at)
    return made


def number_of(found: Revision | None) -> int | None:
    return found.revision if found is not None else None


def test_revisions_are_numbered_and_the_newest_is_the_current_one(store: Store) -> None:
    projects = Projects(store)
    assert projects.current("shop") is None
    assert projects.current(None) is None
    assert projects.definitions("shop") == {}
    made = projects.made("shop", web(1), {"b", "a"}, {"web": {"/srv/current": "/srv/1"}}, "v1", 1000)
    assert (made.revision, made.changed, made.failure, made.failed_at) == (1, ("a", "b"), UNFINISHED, None)
    assert projects.current("shop") is None, "it is not kept yet"
    projects.keep(made, {"stage": "forward"})
    projects.keep(projects.made("bank", web(7), (), {}, None, None))
    assert store.runs() == {"shop": {"stage": "forward"}}
    assert release(2, projects).revision == 2
    assert store.runs() == {}, "the run of the revision before it is over"
    for one in (projects, Projects(store)):
        assert one.definitions("shop") == web(2)
        assert {name: found.revision for name, found in one.of(None).items()} == {"shop": 2, "bank": 1}
        assert list(one.of("bank")) == ["bank"]
    assert store.revision("shop", 1) == made


def test_what_became_of_a_revision_is_kept(store: Store) -> None:
    projects = Projects(store)
    projects.keep(projects.made("shop", web(1), (), {}, None, None))
    projects.judge("shop", "web exited with code 1: \udcff", 12.5)
    for one in (projects, Projects(store)):
        current = one.current("shop")
        assert current is not None
        assert (current.failure, current.failed_at) == ("web exited with code 1: \ufffd", 12.5)
    projects.judge("shop", None)
    current = Projects(store).current("shop")
    assert current is not None
    assert (current.failure, current.failed_at) == (None, None)


def test_twenty_are_kept_of_each_project(store: Store) -> None:
    projects = Projects(store)
    projects.keep(projects.made("bank", web(0), (), {}, None, None))
    for number in range(1, 31):
        release(number, projects, failure="bad" if number > 9 else None, at=1.0 if number > 9 else None)
    assert [one.revision for one in projects.revisions("shop")] == list(range(11, 31))
    assert [one.revision for one in projects.revisions("bank")] == [1]
    assert projects.good_before("shop", 30) is None, "the last good one is not kept any more"
    assert projects.revisions("nobody") == []


def test_good_before(store: Store) -> None:
    projects = Projects(store)
    release(1, projects, "v1")
    release(2, projects, "v2")
    release(3, projects, "v3", failure="bad", at=1.0)
    release(2, projects, "v2", origin=2)
    projects.keep(projects.made("shop", web(5), (), {}, "v5", None))
    assert number_of(projects.good_before("shop", 5)) == 2
    assert number_of(projects.good_before("shop", 5, brought_back=True)) == 4
    assert number_of(projects.good_before("shop", 5, "v2")) == 1
    assert number_of(projects.good_before("shop", 2)) == 1
    assert projects.good_before("shop", 1) is None
    assert projects.good_before("nobody", 9) is None
    assert number_of(projects.good_before("shop", 9)) == 2, "what is not finished is no place to go back to"
    found = projects.good_before("shop", 5)
    assert found is not None
    assert found.definitions == web(2), "it is whole"


def test_back_goes_further_each_time(store: Store) -> None:
    projects = Projects(store)
    for number in (1, 2, 3):
        release(number, projects, f"v{number}")
    found, current = projects.back_to("shop", "", None)
    assert (number_of(found), current.revision) == (2, 3)
    release(2, projects, "v2", origin=2)
    found, current = projects.back_to("shop", "", None)
    assert (number_of(found), current.revision) == (1, 4)
    release(1, projects, "v1", origin=1)
    with pytest.raises(DefinitionError, match="project shop has no earlier revision that it could go back to"):
        projects.back_to("shop", "", None)


def test_back_leads_to_what_was_there_and_not_to_what_had_been_left(store: Store) -> None:
    """Revision 2 was left by a rollback, and 4 comes after that; going back twice does not go forward again."""
    projects = Projects(store)
    release(1, projects, "v1")
    release(2, projects, "v2")
    release(1, projects, "v1", origin=1)
    release(4, projects, "v4")
    for of_label in (None, "v4"):
        assert number_of(projects.back_to("shop", "" if of_label is None else None, of_label)[0]) == 1
    release(1, projects, "v1", origin=1)
    with pytest.raises(DefinitionError, match="no earlier revision"):
        projects.back_to("shop", "", None)
    release(6, projects, "v6")
    release(1, projects, "v1", origin=5)
    release(8, projects, "v8")
    assert number_of(projects.back_to("shop", "", None)[0]) == 1, "what was brought back from what was brought back"
    release(1, projects, "v8", origin=1)
    release(10, projects, "v10")
    assert number_of(projects.back_to("shop", None, "v10")[0]) == 1
    release(11, projects, "v1")
    assert number_of(projects.back_to("shop", None, "v1")[0]) == 10, "nor to another name of what is to be left"


def test_back_to_what_is_kept_only_as_it_was_brought_back(store: Store) -> None:
    projects = Projects(store)
    release(1, projects, "v1")
    for number in range(10):
        release(100 + number, projects, failure="bad", at=1.0)
        release(1, projects, "v1", origin=1)
    release(2, projects, "v2")
    assert projects.revisions("shop")[0].revision > 1
    found, _current = projects.back_to("shop", "", None)
    assert found is not None
    assert (found.definitions, projects.root(found)) == (web(1), 1)
    release(1, projects, "v1", origin=1)
    with pytest.raises(DefinitionError, match="no earlier revision"):
        projects.back_to("shop", "", None)


def test_back_from_a_label(store: Store) -> None:
    projects = Projects(store)
    release(1, projects, "v1")
    release(2, projects, "v2")
    release(3, projects, "v2")
    assert number_of(projects.back_to("shop", None, "v2")[0]) == 1, "not to another one of this label"
    assert projects.back_to("shop", None, "v9")[0] is None
    release(1, projects, "v1", origin=1)
    assert projects.back_to("shop", None, "v2")[0] is None, "it was done"


def test_back_to_a_number_or_a_label(store: Store) -> None:
    projects = Projects(store)
    release(1, projects, "v1")
    release(2, projects, "3")
    release(3, projects, "v2", failure="web exited with code 1", at=1.0)
    release(4, projects, "v1")
    assert number_of(projects.back_to("shop", "1", None)[0]) == 1
    assert number_of(projects.back_to("shop", "2", None)[0]) == 2
    for there in ("4", "v1"):
        assert projects.back_to("shop", there, None)[0] is None, "it is there already"
    for bad in ("3", "v2"):
        with pytest.raises(DefinitionError, match=f"revision {bad} of project shop has not come up here: web exited"):
            projects.back_to("shop", bad, None)
    with pytest.raises(DefinitionError, match=r"has no revision v9; there are 1 \(v1\), 2 \(3\), 3 \(v2\), 4 \(v1\)"):
        projects.back_to("shop", "v9", None)
    with pytest.raises(DefinitionError, match="project bank has no revisions here"):
        projects.back_to("bank", "", None)
    release(2, projects, "3", origin=2)
    assert projects.back_to("shop", "2", None)[0] is None, "what it brought back is there"


def test_a_number_is_a_revision_first_and_none_is_no_revision(store: Store) -> None:
    projects = Projects(store)
    release(1, projects, "v1")
    release(2, projects, "v2")
    release(3, projects, "2")
    assert number_of(projects.back_to("shop", "2", None)[0]) == 2, "and not what is there, which has this label"
    with pytest.raises(DefinitionError, match="has no revision None"):
        projects.back_to("shop", "None", None)
    release(4, projects, "77")
    assert projects.back_to("shop", "77", None)[0] is None, "a label that looks like a number of none"


def test_a_current_revision_that_failed_is_no_place_where_one_is_already(store: Store) -> None:
    projects = Projects(store)
    release(1, projects, "v1")
    release(2, projects, "v2", failure="bad", at=1.0)
    with pytest.raises(DefinitionError, match="has not come up here: bad"):
        projects.back_to("shop", "v2", None)
    assert number_of(projects.back_to("shop", "", None)[0]) == 1


def test_failed_like(store: Store) -> None:
    projects, places = Projects(store), {"web": {"/srv/current": "/srv/releases/2"}}
    release(1, projects)
    release(2, projects, failure="first", at=1.0, places=places)
    release(2, projects, failure="second", at=2.0, places=places)
    release(3, projects, failure=UNFINISHED)
    found = projects.failed_like("shop", web(2), places)
    assert found is not None
    assert (found.revision, found.failure) == (3, "second")
    assert projects.failed_like("shop", web(2), {}) is None, "the link leads elsewhere"
    assert projects.failed_like("shop", web(1), {}) is None
    assert projects.failed_like("shop", web(3), {}) is None, "nobody has seen it fail"
    assert projects.failed_like("bank", web(2), places) is None
    release(2, projects, places=places)
    assert projects.failed_like("shop", web(2), places) is None, "it has come up since, and is there"
    release(4, projects)
    assert projects.failed_like("shop", web(2), places) is None, "it has come up since"


def test_what_is_stopped_is_not_started_by_a_run_that_goes_on(store: Store) -> None:
    projects = Projects(store)
    projects.keep(projects.made("shop", web(1), (), {}, None, None), {"resting": ["a", "b"], "revision": 1})
    projects.keep(projects.made("bank", web(1), (), {}, None, None), {"resting": ["c"], "revision": 1})
    projects.stopped(["b", "x"])
    assert {name: run["resting"] for name, run in store.runs().items()} == {"shop": ["a"], "bank": ["c"]}
    assert {run["revision"] for run in store.runs().values()} == {1}

"""What is seen of files, links, folders and globs: against a real file system, without an agent."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent import fingerprints, globs
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.fingerprints import Digests, Fingerprints, Look
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.instance import Instance
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.agent.spawn import Process
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.definition import load, located
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.parts import whole
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.model.problems import Unfit


def tokens(glob: object) -> dict[str, str]:
    return dict(whole(Look(Digests()).at(str(glob))))


def found(glob: object) -> list[str]:
    return list(dict.fromkeys(path for path in globs.matching(str(glob)) if path))


def a_process(folder: Path, name: str = "web", number: int = 0, **fields: Any) -> Instance:
    """An instance that looks as if it ran."""
    loaded = load({name: {"command": "run", **fields}})[name]
    definition, _wrong = located(loaded, str(folder))
    instance = Instance(f"{name}:{number}", name, number, 2, "shop", definition, None)
    instance.running = Process(1, 1, -1)
    instance.spawn_id = f"s{number}"
    return instance


class Host:
    """One process that was started with what is there now, and what an apply would say of it."""

    def __init__(self, folder: Path, *listed: str, **fields: Any) -> None:
        self.fingerprints = Fingerprints()
        self.instance = a_process(folder, restart_when_changed=list(listed), **fields)
        self.instance.seen = self.fingerprints.take(self.instance)

    def reason(self) -> str:
        stale = whole(self.fingerprints.stale([self.instance], {"web": self.instance.definition}))
        return stale.get("s0", "")


# What there is


def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert tokens(tmp_path / "*") == {
            f"{tmp_path}/fifo": "other",
            f"{tmp_path}/folder": "folder",
            f"{tmp_path}/socket": "other",
        }
    assert tokens("/dev/null") == {"/dev/null": "other"}
    assert tokens(tmp_path / "none") == {f"{tmp_path}/none": "absent"}
    assert tokens(tmp_path / "fifo" / "none") == {f"{tmp_path}/fifo/none": "absent"}


def test_circles_of_links_end(tmp_path: Path) -> None:
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "back").symlink_to("..")
    assert tokens(tmp_path / "round")[f"{tmp_path}/round"].startswith("error-")
    assert found(tmp_path / "**") == [f"{tmp_path}/{name}" for name in ("a", "round", "up", "a/back")]


def test_content_counts_and_time_does_not_in_small_files(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * fingerprints.LARGEST)
    small = tokens(file)
    os.utime(file, (1, 1))
    assert tokens(file) == small
    file.write_bytes(b"y" * fingerprints.LARGEST)
    assert tokens(file) != small


def test_size_and_time_count_in_large_files(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * (fingerprints.LARGEST + 1))
    os.utime(file, (1, 1))
    large = tokens(file)
    assert tokens(file) == large
    os.utime(file, (2, 2))
    assert tokens(file) != large


def test_what_is_read_for_one_glob_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "MOST_BYTES", 10)
    for name in "abc":
        (tmp_path / name).write_text("12345")
    digests = [token.partition(" ")[0] for token in tokens(tmp_path / "*").values()]
    assert ["-" in digest for digest in digests] == [False, False, True]


def test_of_many_paths_their_number_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "MOST_PATHS", 3)
    for name in "abc":
        (tmp_path / name).touch()
    host = Host(tmp_path, "*")
    (tmp_path / "d").touch()
    assert host.reason() == f"{tmp_path}/* has 4 paths (was at most 3)"
    host = Host(tmp_path, "*")
    (tmp_path / "d").write_text("beyond")
    assert host.reason() == ""
    (tmp_path / "e").touch()
    assert host.reason() == f"{tmp_path}/* has 5 paths (was 4)"


def test_a_look_at_a_whole_disk_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(globs, "MOST_NAMES", 50)
    for number in range(100):
        (tmp_path / f"{number:03}").mkdir()
    assert found(tmp_path / "**") == [f"{tmp_path}/{number:03}" for number in range(50 - 1 - len(tmp_path.parts[1:]))]
    assert len(found("/**/none/**")) == 0


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, reads, digests = tmp_path / "a", [], Digests()
    file.write_text("a")
    read = fingerprints._content

    def counted(fd: int) -> bytes | None:
        reads.append(fd)
        return read(fd)

    monkeypatch.setattr(fingerprints, "_content", counted)
    whole(Look(digests).at(str(file)))
    whole(Look(digests).at(str(file)))
    assert len(reads) == 2, "it is too young for its times to be believed"
    late = time.time() + 60
    monkeypatch.setattr(fingerprints.time, "time", lambda: late)
    for _again in range(3):
        whole(Look(digests).at(str(file)))
    assert len(reads) == 3
    file.write_text("b")
    whole(Look(digests).at(str(file)))
    assert len(reads) == 4


# Globs


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.conf", ".hidden.conf", "x/b.conf", "x/y/c.conf", "x/.git/d.conf", "[1]/e.conf", "z/none"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "dangling.conf").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("a.conf", ["a.conf"]),
        ("none.conf", ["none.conf"]),
        ("*.conf", ["a.conf", "dangling.conf"]),
        (".*.conf", [".hidden.conf"]),
        ("*/*.conf", ["[1]/e.conf", "link/b.conf", "x/b.conf"]),
        ("*/b.conf", ["link/b.conf", "x/b.conf"]),
        ("[[]1]/*", ["[1]/e.conf"]),
        ("**/*.conf", ["[1]/e.conf", "a.conf", "dangling.conf", "x/b.conf", "x/y/c.conf"]),
        ("**/c.conf", ["x/y/c.conf"]),
        ("x/**", ["x/b.conf", "x/y", "x/y/c.conf"]),
        ("link/**", ["link/b.conf", "link/y", "link/y/c.conf"]),
        ("none/*", []),
        ("a.conf/*", []),
    ],
)
def test_what_a_glob_means(tree: Path, glob: str, names: list[str]) -> None:
    assert sorted(found(tree / glob)) == [f"{tree}/{name}" for name in names]
    assert found(tree / glob) == found(tree / glob)


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    os.makedirs(os.fsencode(tmp_path) + b"/\xff")
    host = Host(tmp_path, "**")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff/\xfe\n")).touch()
    assert host.reason() == f"{tmp_path}/\\xff/\\xfe\\n is new"


# Changes


def release(folder: Path, number: int) -> Path:
    path = folder / "releases" / str(number)
    path.mkdir(parents=True, exist_ok=True)
    (path / "app.conf").write_text("same")
    return path


def point(link: Path, target: Path) -> None:
    link.with_name("new").symlink_to(target)
    link.with_name("new").rename(link)


CHANGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "nothing": ("*", lambda at: None, ""),
    "content": ("a", lambda at: (at / "a").write_text("other"), "@/a changed since it was started"),
    "same content": ("a", lambda at: (at / "a").write_text("a"), ""),
    "another file, same content": ("a", lambda at: ((at / "t").write_text("a"), (at / "t").rename(at / "a")), ""),
    "gone": ("a", lambda at: (at / "a").unlink(), "@/a is gone"),
    "new": ("c", lambda at: (at / "c").touch(), "@/c is new"),
    "found": ("*", lambda at: (at / "c").touch(), "@/c is new"),
    "not found": ("*", lambda at: (at / "a").unlink(), "@/a is gone"),
    "several": ("*", lambda at: [(at / name).write_text("-") for name in "abc"], "@/a changed since it was started, and 2 more"),
    "file in a folder": ("f", lambda at: (at / "f" / "x").touch(), ""),
    "a folder instead": ("a", lambda at: ((at / "a").unlink(), (at / "a").mkdir()), "@/a changed since it was started"),
    "a link": ("current", lambda at: point(at / "current", release(at, 2)), "@/current now leads to @/releases/2 (was @/releases/1)"),
    "a link above": (
        "current/app.conf",
        lambda at: point(at / "current", release(at, 2)),
        "@/current/app.conf now leads to @/releases/2/app.conf (was @/releases/1/app.conf)",
    ),
    "a link above a glob": (
        "current/*",
        lambda at: point(at / "current", release(at, 2)),
        "@/current/app.conf now leads to @/releases/2/app.conf (was @/releases/1/app.conf)",
    ),
    "a link that leads nowhere": ("current", lambda at: point(at / "current", at / "x"), "@/current is gone"),
    "a link, the same way": ("current", lambda at: point(at / "current", Path("releases/1")), ""),
    "times": ("*", lambda at: [os.utime(at / name, (1, 1)) for name in ("a", "b", "f")], ""),
    "a missing file under a link": ("current/none", lambda at: point(at / "current", release(at, 2)), ""),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CHANGES))
def test_what_is_a_change(tmp_path: Path, case: str) -> None:
    listed, change, expected = CHANGES[case]
    for name in "ab":
        (tmp_path / name).write_text(name)
    (tmp_path / "f").mkdir()
    (tmp_path / "current").symlink_to(release(tmp_path, 1))
    host = Host(tmp_path, listed)
    assert host.reason() == ""
    change(tmp_path)
    assert host.reason() == expected.replace("@", str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_counts_by_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "a").chmod(0)
    host = Host(tmp_path, "a")
    assert host.reason() == ""
    os.utime(tmp_path / "a", (1, 1))
    assert host.reason() == f"{tmp_path}/a changed since it was started"


def test_a_file_that_cannot_be_opened_counts_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the one before, for root: /proc has files that not even root can read."""
    assert "-" in tokens("/proc/self/mem")["/proc/self/mem"].partition(" ")[0]


def test_an_env_file_is_no_glob_and_always_counts(tmp_path: Path) -> None:
    for name in ("[a].env", "a.env"):
        (tmp_path / name).touch()
    host = Host(tmp_path, env_file="[a].env")
    (tmp_path / "a.env").write_text("A=1")
    assert host.reason() == ""
    (tmp_path / "[a].env").write_text("A=1")
    assert host.reason() == f"{tmp_path}/[a].env changed since it was started"


# Instances


def test_each_instance_has_its_own_files(tmp_path: Path) -> None:
    seen = Fingerprints()
    instances = [
        a_process(tmp_path, "w*b", number, restart_when_changed=["@{process}-@{instance}.*"]) for number in range(2)
    ]
    for number in range(2):
        (tmp_path / f"w*b-{number}.a").touch()
        (tmp_path / f"web-{number}.a").touch()
    for one in instances:
        one.seen = seen.take(one)
    for name in ("w*b-1.a", "web-0.a"):
        (tmp_path / name).write_text("x")
    desired = {"w*b": instances[0].definition}
    assert whole(seen.stale(instances, desired)) == {"s1": f"{tmp_path}/w*b-1.a changed since it was started"}


def test_what_is_the_same_is_one_object(tmp_path: Path) -> None:
    seen = Fingerprints()
    instances = [a_process(tmp_path, number=number, restart_when_changed=["a"]) for number in range(2)]
    one, other = (seen.take(instance) for instance in instances)
    assert one is other
    seen.forget()
    assert seen.take(instances[0]) is one
    assert seen.shared(dict(one or {})) is one


def test_what_waits_together_is_read_once_until_told_to_forget(tmp_path: Path) -> None:
    seen, instance = Fingerprints(), a_process(tmp_path, restart_when_changed=["a"])
    before = seen.take(instance)
    (tmp_path / "a").touch()
    assert seen.take(instance) is before
    seen.forget()
    assert seen.take(instance) != before


def test_only_what_runs_was_seen_and_is_asked_for_is_compared(tmp_path: Path) -> None:
    host = Host(tmp_path, "a", "b")
    (tmp_path / "a").touch()
    only_b = a_process(tmp_path, restart_when_changed=["b", "c"]).definition
    (tmp_path / "c").touch()
    ask = host.fingerprints.stale
    assert whole(ask([host.instance], {"web": only_b})) == {}, "a is not asked for any more, and c was never seen"
    assert whole(ask([host.instance], {})) == {}
    host.instance.running = None
    assert host.reason() == ""


def test_a_glob_that_is_added_counts_from_then_on(tmp_path: Path) -> None:
    host = Host(tmp_path, "a", "b")
    before = host.instance.seen or {}
    assert host.fingerprints.completed(host.instance) is before
    (tmp_path / "a").touch()
    (tmp_path / "c").touch()
    host.instance.definition = a_process(tmp_path, restart_when_changed=["a", "c"]).definition
    host.fingerprints.forget()
    host.instance.seen = host.fingerprints.completed(host.instance)
    assert list(host.instance.seen or ()) == [f"{tmp_path}/a", f"{tmp_path}/c"]
    assert host.reason() == f"{tmp_path}/a is new", "what was seen at its start still counts"
    (tmp_path / "c").unlink()
    assert host.reason() == f"{tmp_path}/a is new, and 1 more"


def test_without_files_nothing_is_seen(tmp_path: Path) -> None:
    seen, instance = Fingerprints(), a_process(tmp_path)
    assert seen.take(instance) is seen.completed(instance) is None


def test_a_placeholder_that_cannot_be_computed_keeps_only_a_start_from_succeeding(tmp_path: Path) -> None:
    seen, instance = Fingerprints(), a_process(tmp_path, number=1, restart_when_changed=["@{1 // (1 - instance)}"])
    instance.seen = {"/a": {}}
    assert seen.completed(instance) == {"/a": {}}
    assert whole(seen.stale([instance], {"web": instance.definition})) == {}
    with pytest.raises(Unfit):
        seen.take(instance)

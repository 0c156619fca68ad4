from __future__ import annotations

import os
import pathlib
import socket

import pytest
from ansible_collections.pm3.fleet.plugins.module_utils.pm3.wire import paths


def test_the_environment_names_the_data_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert paths.data_dir({"PM3_DATA_DIR": "/srv/agent/"}) == "/srv/agent"
    assert paths.data_dir({"PM3_DATA_DIR": "data"}) == str(tmp_path / "data")


@pytest.mark.parametrize("shared", ["", "relative/is/ignored"])
def test_the_users_place(tmp_path: pathlib.Path, shared: str) -> None:
    environ = {"HOME": "/home/ann", "XDG_DATA_HOME": shared, "PM3_DATA_DIR": ""}
    assert paths.data_dir(environ, str(tmp_path)) == "/home/ann/.local/share/pm3"
    assert paths.data_dir({**environ, "XDG_DATA_HOME": "/data/ann"}, str(tmp_path)) == "/data/ann/pm3"


@pytest.mark.parametrize(
    ("own", "of_system", "expected"),
    [
        (None, None, "own"),
        (None, "pm3.sock", "system"),
        (None, "managed", "system"),
        (None, "store.sqlite", "own"),  # left behind by an agent that was removed
        ("pm3.sock", "pm3.sock", "own"),
        ("store.sqlite", "pm3.sock", "own"),
        ("logs", "pm3.sock", "system"),
    ],
)
def test_an_agent_of_the_user_goes_before_the_systems(
    tmp_path: pathlib.Path, own: str | None, of_system: str | None, expected: str
) -> None:
    places = {"own": tmp_path / "home/.local/share/pm3", "system": tmp_path / "system"}
    for place, file in (("own", own), ("system", of_system)):
        if file is not None:
            places[place].mkdir(parents=True)
            (places[place] / file).touch()
    found = paths.data_dir({"HOME": str(tmp_path / "home")}, str(places["system"]))
    assert found == str(places[expected])


def test_a_link_to_a_socket_that_is_gone_counts(tmp_path: pathlib.Path) -> None:
    system = tmp_path / "system"
    system.mkdir()
    (system / "pm3.sock").symlink_to("nowhere")
    assert paths.data_dir({"HOME": str(tmp_path)}, str(system)) == str(system)


def test_who_starts_the_agent(tmp_path: pathlib.Path) -> None:
    assert paths.managed(str(tmp_path)) is None
    (tmp_path / "managed").touch()
    assert paths.managed(str(tmp_path)) == "systemctl --user start pm3"
    (tmp_path / "managed").write_text("rc-service pm3 start\n")
    assert paths.managed(str(tmp_path)) == "rc-service pm3 start"


def test_the_systems_agent_is_always_managed() -> None:
    if os.path.exists(paths.SYSTEM):
        pytest.skip("this machine has an agent of its own")
    assert paths.scope(paths.SYSTEM + "/") == "system"
    assert paths.managed(paths.SYSTEM) == "systemctl start pm3"


@pytest.mark.parametrize("length", [20, 107, 108, 300])
def test_a_socket_is_reached_whatever_the_length_of_its_path(tmp_path: pathlib.Path, length: int) -> None:
    folder = str(tmp_path)
    while len(folder) < length - len("/pm3.sock"):
        folder += "/" + "d" * min(100, max(1, length - len("/pm3.sock") - len(folder) - 1))
    os.makedirs(folder, exist_ok=True)
    path = paths.socket(folder)
    before = set(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        paths.reach(server.bind, path)
        assert os.path.exists(path)
        server.listen()
        paths.reach(client.connect, path)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_a_long_path_to_nowhere_is_a_missing_file(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(FileNotFoundError):
        paths.reach(client.connect, str(tmp_path / ("d" * 120) / "pm3.sock"))

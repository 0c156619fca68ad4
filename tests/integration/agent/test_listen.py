"""Sockets that the agent opens for its processes: real servers, real clients, and not one connection refused."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Agent, alive
from .test_agent import SLEEP, at_rest, descriptors, environment_of, free_port
from .test_races import keeper_of
from .waiting import until

# Takes connections from descriptor 3 on, says who it is, and when asked to end finishes what it has begun.
SERVER = """
import os, select, signal, socket, sys
asked, ask = os.pipe()
signal.signal(signal.SIGTERM, lambda *_: os.write(ask, b"x"))
assert os.environ.get("LISTEN_PID", str(os.getpid())) == str(os.getpid())
listeners = [socket.socket(fileno=3 + place) for place in range(int(os.environ.get("LISTEN_FDS", "0")))]
assert all(one.getblocking() for one in listeners)
for one in listeners:
    one.setblocking(False)  # others may be faster
who = os.environ.get("WHO", "") + os.environ["PM3_NAME"] + " " + str(os.getpid())
print("up", flush=True)
if "NOTIFY_SOCKET" in os.environ:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.sendto(b"READY=1", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
while True:
    ready = select.select([*listeners, asked], [], [])[0]
    if asked in ready:
        sys.exit(0)
    for one in ready:
        try:
            connection, _peer = one.accept()
        except BlockingIOError:
            continue
        with connection:
            connection.setblocking(True)
            place = listeners.index(one)
            connection.sendall(f"{place} {who}".encode())
"""
NOTIFY = {"readiness_check": "notify://", "readiness_timeout": 20}


def server(agent: Agent, *addresses: str, **fields: Any) -> dict[str, Any]:
    """The definition of a server that listens there."""
    (agent.folder / "server.py").write_text(SERVER)
    return {"command": "python3 -S server.py", "listen": list(addresses), "min_uptime": 0, **NOTIFY, **fields}


def up(agent: Agent, **definitions: Any) -> dict[str, int]:
    done = agent.apply(definitions)
    assert done["ok"], done["report"]
    return agent.pids()


def answer(connection: socket.socket) -> str:
    """What the server says; an empty one is a connection that was dropped."""
    with connection:
        said = b""
        while True:
            part = connection.recv(1000)
            if not part:
                return said.decode()
            said += part


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection((host, port), timeout=20)


def ask(port: int, host: str = "127.0.0.1") -> str:
    return answer(connect(port, host))


def ask_unix(path: Path) -> str:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return answer(connection)


def refuses(port: int) -> bool:
    try:
        connect(port).close()
    except ConnectionRefusedError:
        return True
    return False


def listeners(agent: Agent) -> int:
    """Sockets of the agent that listen on TCP."""
    pid = agent.pid()
    inodes = {
        row.split()[9]
        for table in ("tcp", "tcp6")
        for row in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        if row.split()[3] == "0A"
    }
    links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    return len([link for link in links if link.partition("[")[2].rstrip("]") in inodes])


class Clients:
    """Two that connect again and again, one connection after the other."""

    def __init__(self, port: int) -> None:
        self.said: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _client in range(2)]

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                said = ask(self._port)
            except OSError as error:
                self.wrong.append(repr(error))
                return
            self.said[said] += 1
            if not said:
                self.wrong.append("closed without a word")
                return

    @property
    def count(self) -> int:
        return sum(self.said.values())

    def more(self) -> None:
        """Returns when some more have been served."""
        enough = self.count + 50
        until(lambda: self.count >= enough or self.wrong, "more connections are served")


@contextlib.contextmanager
def clients(port: int) -> Iterator[Clients]:
    """Connections all the time; none may fail."""
    made = Clients(port)
    for thread in made._threads:
        thread.start()
    try:
        made.more()
        yield made
        made.more()
    finally:
        made._over.set()
        for thread in made._threads:
            thread.join()
    assert not made.wrong


def upgrade(agent: Agent) -> None:
    """SIGHUP; returns when the agent has become itself anew."""
    pid = agent.pid()
    life = Path(f"/proc/{pid}/auxv").read_bytes()  # addresses, which each exec draws anew
    os.kill(pid, signal.SIGHUP)
    until(lambda: Path(f"/proc/{pid}/auxv").read_bytes() != life, "it became itself anew")
    until(lambda: agent.answering_pid() == pid, "it answers")


@contextlib.contextmanager
def dying(agent: Agent) -> Iterator[None]:
    """The agent stands still while the block runs, and is dead after it; goes on when the next one answers."""
    pid = agent.pid()
    os.kill(pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "it has stopped")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: agent.answering_pid() not in (None, pid), "another agent answers")


# What a program gets


def test_all_instances_take_connections_from_one_socket(agent: Agent) -> None:
    port = free_port()
    pids = up(agent, web=server(agent, f"tcp://127.0.0.1:{port}", instances=4))
    expected = {f"0 {name} {pid}" for name, pid in pids.items()}
    seen: set[str] = set()
    until(lambda: seen.add(ask(port)) or seen == expected, "each of them takes one")  # type: ignore[func-returns-value]
    sockets = {os.readlink(f"/proc/{pid}/fd/3") for pid in pids.values()}
    assert len(sockets) == 1
    one = environment_of(pids["web:0"])
    assert (one["LISTEN_FDS"], one["LISTEN_FDNAMES"], one["LISTEN_PID"]) == ("1", "web", str(pids["web:0"]))


def test_several_addresses_come_in_the_order_of_the_definition(agent: Agent) -> None:
    ports = [free_port(), free_port()]
    path = agent.folder / "new" / "folder" / "web.sock"
    addresses = [f"tcp://[::1]:{ports[0]}", f"unix://{path}", f"tcp://*:{ports[1]}"]
    pid = up(agent, web=server(agent, *addresses))["web"]
    assert environment_of(pid)["LISTEN_FDNAMES"] == "web:web:web"
    assert ask(ports[0], "::1") == f"0 web {pid}"
    assert refuses(ports[0])  # an IPv6 address is one of IPv6 alone
    assert ask_unix(path) == f"1 web {pid}"
    assert ask(ports[1]) == ask(ports[1], "::1") == f"2 web {pid}"


def test_more_sockets_than_the_shell_has_descriptors_of_its_own(agent: Agent) -> None:
    paths = [agent.folder / f"{number}.sock" for number in range(20)]
    pid = up(agent, web=server(agent, *(f"unix://{path}" for path in paths)))["web"]
    assert [ask_unix(path) for path in paths] == [f"{place} web {pid}" for place in range(20)]


def test_a_placeholder_gives_each_instance_a_socket_of_its_own(agent: Agent) -> None:
    address = f"unix://{agent.folder}/@{{name}}.sock"
    pids = up(agent, web=server(agent, address, instances=2))
    for number in (0, 1):
        name = f"web:{number}"
        assert ask_unix(agent.folder / f"{name}.sock") == f"0 {name} {pids[name]}"
    agent.apply({"web": server(agent, address, instances=3)})
    assert ask_unix(agent.folder / "web:2.sock").startswith("0 web:2")
    agent.apply({"web": server(agent, address, instances=2)})
    assert sorted(path.name for path in agent.folder.glob("*.sock")) == ["web:0.sock", "web:1.sock"]


def test_others_get_nothing(agent: Agent) -> None:
    up(
        agent,
        web=server(agent, f"tcp://127.0.0.1:{free_port()}", pre_start="env >hook; ls /proc/$$/fd >fds"),
        job=SLEEP,
    )
    assert not [name for name in environment_of(agent.pids()["job"]) if name.startswith(("LISTEN", "NOTIFY"))]
    assert "3" not in os.listdir(f"/proc/{agent.pids()['job']}/fd")
    hook = (agent.folder / "hook").read_text()
    assert "LISTEN_" not in hook
    assert "NOTIFY_" not in hook


@pytest.mark.skipif(os.getuid() != 0, reason="only root may run a program as another user")
def test_a_unix_socket_belongs_to_the_user_of_the_program(agent: Agent) -> None:
    path = agent.folder / "web.sock"
    user = pwd.getpwnam("nobody")
    definition = {"command": "sleep 1000", "listen": f"unix://{path}", "min_uptime": 0}
    up(agent, web={**definition, "user": "nobody", "cwd": "/"})
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (user.pw_uid, user.pw_gid, 0o660)
    up(agent, web=definition)
    assert (path.stat().st_uid, path.stat().st_gid) == (os.getuid(), os.getgid())


# No gap


@pytest.mark.parametrize("how", ["restart", "reload", "apply"])
def test_replacing_all_instances_costs_no_connection(agent: Agent, how: str) -> None:
    port = free_port()
    definition = server(agent, f"tcp://127.0.0.1:{port}", instances=4)
    before = up(agent, web=definition)
    with clients(port) as talking:
        if how == "apply":
            up(agent, web={**definition, "env": {"WHO": "new "}})
        else:
            done = agent.ask(how, names=["web"])
            assert done["type"] == "success", done
        talking.more()
        after = agent.pids()
    assert set(before.values()).isdisjoint(after.values())
    assert not [pid for pid in before.values() if alive(pid)]


def test_a_crash_of_the_program_costs_no_connection_that_waits(agent: Agent) -> None:
    port = free_port()
    pid = up(agent, web=server(agent, f"tcp://127.0.0.1:{port}"))["web"]
    os.kill(pid, signal.SIGSTOP)
    with connect(port) as waiting:
        os.kill(pid, signal.SIGKILL)
        assert answer(waiting).startswith("0 web")


def test_from_one_instance_to_several_without_a_gap(agent: Agent) -> None:
    """`web` ends, and `web:0` begins: nobody has the socket in between, but for the agent."""
    port = free_port()
    definition = server(agent, f"tcp://127.0.0.1:{port}")
    up(agent, web=definition, db=SLEEP)
    with clients(port):
        up(agent, web={**definition, "instances": 3, "depends_on": ["new"]}, db=SLEEP, new={**SLEEP, "min_uptime": 300})
        up(agent, web=definition, db=SLEEP)
    assert listeners(agent) == 1


def test_connections_wait_for_a_process_that_is_stopped(agent: Agent) -> None:
    port = free_port()
    up(agent, web=server(agent, f"tcp://127.0.0.1:{port}"))
    agent.ask("stop", names=["web"])
    with connect(port) as waiting:
        agent.ask("restart", names=["web"])
        assert answer(waiting) == f"0 web {agent.pids()['web']}"


def test_no_connection_is_lost_over_a_crash_of_the_agent(agent: Agent) -> None:
    port, path = free_port(), agent.folder / "web.sock"
    definition = server(agent, f"tcp://127.0.0.1:{port}", f"unix://{path}", instances=2)
    before = up(agent, web=definition)
    with clients(port):
        agent.crash()
        assert agent.pids() == before
        assert listeners(agent) == 1
        agent.ask("restart", names=["web"])  # by the agent that has taken it over
        assert set(before.values()).isdisjoint(agent.pids().values())
        assert ask_unix(path).startswith("1 web")
        agent.crash()
        agent.crash()
    assert not agent.apply({"web": definition})["changed"]


def test_what_waits_in_the_queue_outlives_agent_and_program(agent: Agent) -> None:
    """Both die at once: only the keeper has the socket then."""
    port = free_port()
    pid = up(agent, web=server(agent, f"tcp://127.0.0.1:{port}"))["web"]
    os.kill(pid, signal.SIGSTOP)
    with connect(port) as waiting:
        with dying(agent):
            os.kill(pid, signal.SIGKILL)
            until(lambda: not alive(pid), "the program is dead")
        assert answer(waiting).startswith("0 web")


def test_no_connection_is_lost_over_an_upgrade_in_place(agent: Agent) -> None:
    port = free_port()
    before = up(agent, web=server(agent, f"tcp://127.0.0.1:{port}", instances=2))
    inode = os.readlink(f"/proc/{before['web:0']}/fd/3")
    with clients(port):
        for _turn in range(3):
            upgrade(agent)
        assert agent.pids() == before
        agent.ask("restart", names=["web"])
    assert os.readlink(f"/proc/{agent.pids()['web:0']}/fd/3") == inode
    assert listeners(agent) == 1


# The end of a socket


@pytest.mark.parametrize("how", ["removed", "not listed", "another address", "deleted", "stopped and changed"])
def test_a_socket_that_nobody_lists_is_closed(agent: Agent, how: str) -> None:
    port, path = free_port(), agent.folder / "web.sock"
    definition = server(agent, f"tcp://127.0.0.1:{port}", f"unix://{path}", instances=2)
    up(agent, job=SLEEP)
    rest = at_rest(lambda: len(descriptors(agent.pid())))
    up(agent, web=definition, job=SLEEP)
    agent.crash()
    if how == "removed":
        up(agent, job=SLEEP)
    elif how == "deleted":
        agent.ask("delete", names=["web"])
    elif how == "stopped and changed":
        agent.apply({"web": {**definition, "listen": []}, "job": SLEEP}, state="stopped")
    else:
        others = [f"unix://{agent.folder}/other.sock"] if how == "another address" else []
        up(agent, web={**definition, "listen": others}, job=SLEEP)
        assert (agent.folder / "other.sock").exists() == bool(others)
    assert refuses(port)
    assert not path.exists()
    agent.crash()
    assert refuses(port)
    up(agent, job=SLEEP)
    assert at_rest(lambda: len(descriptors(agent.pid()))) == rest
    assert not list(agent.folder.glob("*.sock"))


def test_the_orderly_end_closes_them_all(agent: Agent) -> None:
    port, path = free_port(), agent.folder / "web.sock"
    definition = server(agent, f"tcp://127.0.0.1:{port}", f"unix://{path}")
    up(agent, web=definition)
    agent.end()
    assert refuses(port)
    assert not path.exists()
    agent.pm3("list")
    until(lambda: agent.instance("web")["status"] == "online", "it is up again")
    assert ask(port).startswith("0 web")


def test_another_process_can_have_it_in_the_same_apply(agent: Agent) -> None:
    port = free_port()
    definition = server(agent, f"tcp://127.0.0.1:{port}")
    up(agent, web=definition)
    keeper = keeper_of(agent)
    os.kill(keeper, signal.SIGSTOP)  # so that it certainly still has the old socket
    try:
        up(agent, api=definition)
    finally:
        os.kill(keeper, signal.SIGCONT)
    assert ask(port).startswith("0 api")


def test_descriptors_of_agent_and_keeper_do_not_grow(agent: Agent) -> None:
    port = free_port()
    definition = server(agent, f"tcp://127.0.0.1:{port}", f"unix://{agent.folder}/@{{name}}.sock", instances=2)
    keeper = keeper_of(agent)

    def opened() -> tuple[int, int]:
        return len(descriptors(agent.pid())), len(os.listdir(f"/proc/{keeper}/fd"))

    seen = []
    for _turn in range(3):
        up(agent, web=definition)
        agent.ask("restart", names=["web"])
        agent.ask("reload", names=["web"])
        seen.append(at_rest(opened))
        agent.apply({}, state="absent")
        seen.append(at_rest(opened))
    assert seen[2:4] == seen[4:6]
    assert seen[0][1] == seen[2][1]


# What cannot be


def reason(agent: Agent, *addresses: str, **fields: Any) -> str:
    """Why a process that listens there cannot be started."""
    done = agent.apply({"bad": server(agent, *addresses, **fields)}, project="other")
    assert not done["ok"]
    assert done["instances"][0]["pid"] is None
    return str(done["instances"][0]["reason"])


def test_an_address_in_use_is_told(agent: Agent) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        assert reason(agent, address) == f"cannot listen on {address}: somebody else listens there"
        everywhere = f"tcp://*:{other.getsockname()[1]}"
        assert reason(agent, everywhere) == f"cannot listen on {everywhere}: somebody else listens there"
    up(agent, web=server(agent, address))
    assert reason(agent, address) == f"cannot listen on {address}: process web listens there"
    assert reason(agent, "tcp://192.0.2.1:80") == (
        "cannot listen on tcp://192.0.2.1:80: this host does not have that address"
    )


def test_a_start_that_fails_keeps_nothing_open(agent: Agent) -> None:
    port, path = free_port(), agent.folder / "file"
    path.write_text("precious")
    said = reason(agent, f"tcp://127.0.0.1:{port}", f"unix://{path}")
    assert said == f"cannot listen on unix://{path}: there is something else of that name"
    assert refuses(port)
    assert path.read_text() == "precious"


@pytest.mark.skipif(os.getuid() == 0, reason="root may listen anywhere")
def test_what_the_agent_may_not_is_told(agent: Agent) -> None:
    assert reason(agent, "unix:///not-allowed.sock").endswith("the agent is not allowed to")


def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(agent: Agent) -> None:
    path = agent.folder / "web.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        assert reason(agent, f"unix://{path}") == f"cannot listen on unix://{path}: somebody else listens there"
    assert path.exists()
    up(agent, web=server(agent, f"unix://{path}"))
    assert ask_unix(path).startswith("0 web")


def test_a_unix_socket_whose_file_was_removed_is_made_anew(agent: Agent) -> None:
    path = agent.folder / "web.sock"
    up(agent, web=server(agent, f"unix://{path}", instances=2))
    path.unlink()
    agent.ask("restart", names=["web"])
    assert ask_unix(path).startswith("0 web")
    agent.crash()
    agent.ask("restart", names=["web"])
    assert ask_unix(path).startswith("0 web")


def test_a_program_of_systemd_takes_them(agent: Agent) -> None:
    """As sd_listen_fds(3) reads them: with the pid, which is that of the program behind a switch of user and limits."""
    program = "import os; assert os.environ['LISTEN_PID'] == str(os.getpid()); import time; print('mine', flush=True); time.sleep(1000)"
    user = {"user": "nobody", "cwd": "/"} if os.getuid() == 0 else {}
    definition = {"listen": f"tcp://127.0.0.1:{free_port()}", "nice": 5, "limits": {"nofile": 100}, **user}
    up(agent, web={"command": f'python3 -c "{program}"', "min_uptime": 0, **definition})
    until(lambda: agent.log("web-out") == "mine\n", "the pid is its own")

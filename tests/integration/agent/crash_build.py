"""Stands in the place of agent/points.py in the build that dies at named points; and says what these points are.

What is to happen is told by the file `crash-at` in the data dir, or by PM3_CRASH_AT in the environment: `NAME`, or `NAME:N` for the
N-th time that it is reached, counted from when it was told; several with commas, one crash after the other. A crash is written
down in the file `crashed` before it happens, so that it happens once and the next agent goes on.
"""

from __future__ import annotations

import os
import signal
import threading

TOLD, DONE, VARIABLE = "crash-at", "crashed", "PM3_CRASH_AT"

# What has been done at a point, and what has not.
POINTS = {
    # Starting a process
    "spawn.before_intent": "The machine has asked for a spawn, which has a number; nothing is stored.",
    "spawn.after_intent": "The number is stored; nothing else is there.",
    "spawn.piped": "The FIFOs are there and open; nobody else keeps their descriptors.",
    "spawn.pipes_kept": "The manager keeps the read ends; nothing runs yet.",
    "spawn.forked": "The process runs; there is no pidfd.",
    "spawn.watched": "There is a pidfd, which only the agent has.",
    "spawn.pidfd_kept": "The manager keeps the pidfd; the store has no pid.",
    "spawn.attended": "The pump fills its log; the store has no pid.",
    # Ending a process
    "stop.unwanted": "Somebody's stop is in memory; nothing is stored or signalled.",
    "stop.signalled": "That it is to stop is stored, and the signal is sent.",
    "stop.killed": "All of it has got SIGKILL; nothing of that is stored.",
    "end.reaped": "Its status is ours alone; nothing is stored.",
    "end.delivered": "The machine knows of the end; it is not stored.",
    "end.swept": "Nothing of it runs; its output is not drained.",
    "end.drained": "Its output is in the log and its FIFOs are gone; its descriptors are still kept.",
    "end.cleared": "Nothing of the spawn is left but what the store says.",
    "end.gone": "The machine has decided what follows; it is not stored.",
    # The store
    "store.before_commit": "A transaction is complete and not committed.",
    "store.after_commit": "A transaction is committed, and nothing that was to follow has happened.",
    # A change of a project
    "run.before_kept": "The plan is made, its revision is not stored.",
    "run.kept": "The revision and the run are stored, nothing is changed.",
    "run.noted": "A run that makes no revision is stored, nothing is changed.",
    "run.walked": "All is as it was to be, and not judged.",
    "run.judged": "The revision is judged, the run is still stored.",
    "run.over": "The run is not stored any more; nobody has the answer.",
    "apply.rested": "What is to be removed or stopped rests.",
    "apply.removed": "One of those is forgotten, in memory.",
    "apply.level": "One level of processes is done, the next one is not begun.",
    "apply.soaks": "All has come up; it must go on being up for a while.",
    "apply.placed": "An instance has its new definition and rests, in memory.",
    "roll.stopped": "The old process of an instance is gone, the new one not begun.",
    "roll.replaced": "One instance of several is replaced.",
    "swap.up": "The copy is up and has not taken the place.",
    "swap.replaced": "The copy has taken the place, in memory; the old one runs.",
    "swap.ended": "The old one has ended.",
    "back.before_judged": "The release has failed and the way back is planned; neither is stored.",
    "back.judged": "The way back is planned and the failure is stored, the way back is not.",
    "back.kept": "The way back is stored and nothing has gone it.",
    "back.walked": "All has gone back, and is not judged.",
    "restart.stopped": "What somebody restarts is stopped, all of it.",
    "delete.removed": "An instance is forgotten, in memory.",
    "hold.made": "A hold is not stored.",
    "hold.kept": "A hold is stored and not in memory.",
    "hold.released": "The end of a hold is stored and not in memory.",
    # Output
    "rotation.begun": "There is room for another copy; nothing has another name.",
    "rotation.index_shifted": "The index of a copy has its next name, the copy has not.",
    "rotation.shifted": "A copy has its next name.",
    "rotation.removed": "The oldest copy is removed, its index is not.",
    "rotation.index_shelved": "The index of the live log has its next name, the log has not.",
    "rotation.shelved": "The log has its next name; there is no live log.",
    "rotation.opened": "The new log is made; it has not the owner and mode of the old one.",
    "packing.written": "A copy is compressed, under a name that nobody reads.",
    "packing.made": "The compressed copy is whole and has not taken the place.",
    "packing.placed": "The compressed copy and the plain one are both there.",
    "index.noted": "The index tells of bytes that are not in the log.",
    "spool.begun": "The state says that the log is going to be written; it is not.",
    "spool.appended": "The log is written; the state does not say so.",
    "spool.committed": "The state says that it is done.",
    "spool.moved": "The rest of a spool is at its begin; the state does not say so.",
    "spool.to_be_cut": "The state says to what the spool is to be cut; it is not.",
    "spool.cut": "The spool is cut; the state does not say so.",
    "spool.finished": "Nothing waits in a spool that is to go.",
    "spool.removed": "A spool is gone, its stream is not.",
    "flush.emptied": "A log is empty, its copies are there.",
    # The agent itself
    "agent.begun": "It has its descriptors and nothing else.",
    "agent.restored": "It has taken over all instances; nobody can ask it for anything.",
    "agent.open": "It answers; its manager does not know.",
    "adoption.adopted": "It has taken over, and nothing of that is stored.",
    "adoption.strangers_ended": "What nobody knew is ended, its descriptors are still kept.",
    "agent.rests": "All instances rest in an orderly end, which is not stored.",
    "agent.ended": "The orderly end is stored; it still runs.",
    "upgrade.closed": "The pump has ended; nothing is handed over.",
    "upgrade.noted": "It is noted that there will be another version; nothing is handed over.",
    "upgrade.before_exec": "Everything is handed over, to nobody.",
    "agent.ready": "Its manager knows that it is ready; an upgrade that brought it is not over.",
}

_lock = threading.Lock()  # the pump's thread gets here, too
_counts: dict[str, int] = {}


def reached(name: str) -> None:
    """Dies here, if that is told."""
    with _lock:
        folder = os.environ["PM3_DATA_DIR"]
        told = _read(os.path.join(folder, TOLD))
        done = _read(os.path.join(folder, DONE)).split()
        todo = (told or os.environ.get(VARIABLE, "")).strip().split(",")
        first = next(iter(todo[len(done) :]), "")
        point, __, number = first.partition(":")
        if point != name:
            return
        key = f"{len(done)} {first}"
        _counts[key] = _counts.get(key, 0) + 1
        if _counts[key] == int(number or "1"):
            with open(os.path.join(folder, DONE), "a", encoding="utf-8") as file:
                file.write(f"{first}\n")
            os.kill(os.getpid(), signal.SIGKILL)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""

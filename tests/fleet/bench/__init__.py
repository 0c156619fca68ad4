"""The parts of the fleet bench: machine, cgroup, base and host. What a person or a test uses is in hosts.py."""

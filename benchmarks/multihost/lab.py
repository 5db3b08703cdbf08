"""Several hosts on one machine: network namespaces on a switch, with links of a chosen rate.

A laboratory NAME is one namespace ``NAME-sw`` that holds a bridge, and one namespace for each host,
``NAME-h0`` to ``NAME-h<N-1>``, joined to the bridge by a veth pair whose end in the host is eth0.
Token buckets (tc tbf) at both ends of a pair limit each direction. Nothing is made outside of these
namespaces but ``/etc/netns/NAME-h*``, which ``ip netns exec`` lays over /etc, so that hosts know
each other by name. Several laboratories do not see each other.

All that is known about a laboratory is read from the kernel: no file can disagree with it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from multihost.errors import UnavailableError, UserError

UNLIMITED = "unlimited"
MAX_HOSTS = 64
INTERFACE = "eth0"
_SUBNET = "10.213.0"
_ETC_NETNS = Path("/etc/netns")
_TOOLS = ("ip", "tc", "unshare")
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_KILL_AFTER_SECONDS = 3.0
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Lab:
    """A laboratory's name and its hosts; the namespaces may be there or not."""

    name: str
    hosts: tuple[str, ...]

    def namespace(self, host: str) -> str:
        return f"{self.name}-{host}"

    @property
    def switch(self) -> str:
        return f"{self.name}-sw"

    def address(self, host: str) -> str:
        return f"{_SUBNET}.{self.hosts.index(host) + 1}"

    def command(self, host: str, command: Sequence[str]) -> list[str]:
        """``command`` as it is started on ``host``: its network, its names, its host name."""
        if host not in self.hosts:
            raise UserError(f"There is no host {host!r} here: the hosts are {self.hosts}.")
        # The host name lies in a namespace of another kind, which ip does not make.
        rename = 'echo "$0" > /proc/sys/kernel/hostname && exec "$@"'
        entered = ["ip", "netns", "exec", self.namespace(host), "unshare", "--uts"]
        return [*entered, "sh", "-c", rename, host, *command]


def check_requirements() -> None:
    """Raise UnavailableError where network namespaces can't be made."""
    if os.geteuid() != 0:
        raise UnavailableError(
            "Network namespaces need root: run this with sudo, or use real hosts, "
            "see docs/benchmarks.md."
        )
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        raise UnavailableError(
            f"{', '.join(missing)} not found: install iproute2 and util-linux "
            "(Debian: apt-get install iproute2 util-linux)."
        )


def bits_per_second(rate: str) -> float | None:
    """``"1gbit"`` -> 1e9, ``"100mbit"`` -> 1e8; None for ``"unlimited"``."""
    if rate == UNLIMITED:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)bit", rate.lower())
    if match is None or float(match[1]) <= 0:
        raise UserError(
            f"A rate is a number with kbit, mbit or gbit, such as 100mbit, or {UNLIMITED}; "
            f"got {rate!r}."
        )
    return float(match[1]) * _UNITS[match[2]]


def create(name: str, hosts: int, rate: str) -> Lab:
    """Make a laboratory of ``hosts`` hosts with links of ``rate`` each way.

    What was made is removed again if it can't be finished, or is interrupted. What somebody else
    makes under this name at the same time is left alone.

    Raises:
        UnavailableError: not root, a tool is missing, or the system does not permit it.
        UserError: the name is taken, an argument is wrong, or the kernel refuses.
    """
    check_requirements()
    bits_per_second(rate)
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        raise UserError(f"A name is lower-case letters, digits and hyphens; got {name!r}.")
    if not 1 <= hosts <= MAX_HOSTS:
        raise UserError(f"From 1 to {MAX_HOSTS} hosts are possible, got {hosts}.")
    if _namespaces(name):
        raise _taken(name)
    lab = Lab(name, tuple(f"h{i}" for i in range(hosts)))
    ours = False
    try:
        # Not to be interrupted between the two, or nobody would remove what was made.
        with uninterrupted():
            _claim(lab)
            ours = True
        _make_switch(lab)
        for host in lab.hosts:
            _make_host(lab, host, rate)
    except BaseException:
        if ours:
            destroy(name)
        raise
    return lab


def find(name: str) -> Lab:
    """The laboratory of this name; raises UserError if there is none."""
    check_requirements()
    numbers = [n.removeprefix(f"{name}-h") for n in _namespaces(name) if n != f"{name}-sw"]
    if not numbers:
        raise UserError(f"There is no {name!r}: make it with 'netlab.py up --name {name}'.")
    return Lab(name, tuple(f"h{i}" for i in sorted(map(int, numbers))))


def destroy(name: str) -> bool:
    """End the processes in a laboratory's namespaces and remove it; False if there was none."""
    with uninterrupted():  # a second interrupt must not cut this short
        namespaces = _namespaces(name)
        end_processes(lambda: processes(namespaces))
        for namespace in namespaces:
            _ip("netns", "del", namespace)
            shutil.rmtree(_ETC_NETNS / namespace, ignore_errors=True)
        return bool(namespaces)


def names() -> list[str]:
    """All laboratories on this machine."""
    listed = re.findall(r"(?m)^(\S+)-sw(?!\S)", _ip("netns", "list"))
    return sorted(listed)


def rate_of(lab: Lab) -> str:
    """The rate at the first host's end of its link, as the kernel has it."""
    namespace = lab.namespace(lab.hosts[0])
    text = _output("tc", "-netns", namespace, "-json", "qdisc", "show", "dev", INTERFACE)
    for qdisc in json.loads(text or "[]"):
        if qdisc["kind"] == "tbf":
            return f"{8 * qdisc['options']['rate'] / 1e6:g}mbit"
    return UNLIMITED


def processes(namespaces: Sequence[str]) -> set[int]:
    """Ids of the processes in these network namespaces."""
    found = [_ip("netns", "pids", namespace).split() for namespace in namespaces]
    return {int(pid) for pids in found for pid in pids}


def end_processes(find: Callable[[], set[int]]) -> None:
    """Terminate the processes that ``find`` finds, until there are none; kill what doesn't end."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _KILL_AFTER_SECONDS
        signalled: set[int] = set()
        while left := find() - {os.getpid()}:
            for pid in left - signalled:
                _signal(pid, sign)
            signalled |= left
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)


def _signal(pid: int, sign: signal.Signals) -> None:
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return  # ended by itself in between


def _namespaces(name: str) -> list[str]:
    # Whole names: NAME-h1 may be a laboratory of its own, and NAME-h1-h0 a host of that one.
    pattern = rf"(?m)^({re.escape(name)}-(?:sw|h\d+))(?!\S)"
    return re.findall(pattern, _ip("netns", "list"))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Interrupts wait until the end of the block; programs started in it do not see them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _taken(name: str) -> UserError:
    return UserError(
        f"{name!r} exists already: remove it with 'netlab.py down --name {name}', or choose "
        "another --name."
    )


def _claim(lab: Lab) -> None:
    """Make the switch's namespace, which the kernel gives to one of several who ask for it."""
    try:
        _ip("netns", "add", lab.switch)
    except UserError as error:
        if "File exists" in str(error):
            raise _taken(lab.name) from None
        raise


def _make_switch(lab: Lab) -> None:
    _ip("-netns", lab.switch, "link", "add", "br0", "type", "bridge")
    _ip("-netns", lab.switch, "link", "set", "br0", "up")


def _make_host(lab: Lab, host: str, rate: str) -> None:
    namespace, port = lab.namespace(host), f"port-{host}"
    _ip("netns", "add", namespace)
    _write_names(lab, namespace, host)
    _ip("-netns", namespace, "link", "set", "lo", "up")
    ends = [INTERFACE, "netns", namespace, "type", "veth", "peer", "name", port]
    _ip("link", "add", *ends, "netns", lab.switch)
    _limit(namespace, INTERFACE, rate)
    _limit(lab.switch, port, rate)
    _ip("-netns", lab.switch, "link", "set", port, "master", "br0", "up")
    _ip("-netns", namespace, "address", "add", f"{lab.address(host)}/24", "dev", INTERFACE)
    _ip("-netns", namespace, "link", "set", INTERFACE, "up")


def _write_names(lab: Lab, namespace: str, host: str) -> None:
    """Names for all hosts. Gloo and torchrun look up the machine's own name, too."""
    folder = _ETC_NETNS / namespace
    folder.mkdir(parents=True, exist_ok=True)
    # The second form is what c10d asks for when it names a peer of its dual-stack sockets.
    lines = ["127.0.0.1 localhost", *(f"{lab.address(h)} {h}" for h in lab.hosts)]
    lines += [f"::ffff:{lab.address(h)} {h}" for h in lab.hosts]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    (folder / "hostname").write_text(host + "\n")


def _limit(namespace: str, device: str, rate: str) -> None:
    bits = bits_per_second(rate)
    if bits is None:
        return
    # A bucket of one millisecond: a smaller one does not reach 10 Gbit/s, a larger one would let
    # small messages through unlimited. The queue holds what W - 1 senders may have on their way to
    # one receiver, so that the link is slow rather than lossy.
    burst = max(16 * 1024, int(bits / 8 * 1e-3))
    limit = max(1 << 20, 32 * burst)
    sizes = ["rate", f"{bits:.0f}bit", "burst", str(burst), "limit", str(limit)]
    _output("tc", "-netns", namespace, "qdisc", "add", "dev", device, "root", "tbf", *sizes)


def _ip(*arguments: str) -> str:
    return _output("ip", *arguments)


def _output(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        message = f"'{' '.join(command)}' failed: {result.stderr.strip()}"
        if "not permitted" in result.stderr:
            raise UnavailableError(
                f"{message}: in a container it takes the capabilities NET_ADMIN and SYS_ADMIN."
            )
        raise UserError(f"{message}.")
    return result.stdout

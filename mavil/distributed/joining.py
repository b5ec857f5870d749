"""Start-up of the process group: everybody meets at rank 0's address, is compared with the others, and only then connects.

The libraries below wait half an hour without a word for a process that never comes, and name none. Here the ranks first sign
a list; rank 0 reads it and tells all of them who is missing or unlike the others. No GPU has done anything by then.
"""

from __future__ import annotations

import errno
import gc
import ipaddress
import itertools
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta

import torch
import torch.distributed as dist

from mavil.distributed.members import Member, listed, own_member, what_differs
from mavil.distributed.standing import Standing, here
from mavil.structs import UserError

JOIN_MINUTES = 10.0
"""The longest the first rank waits for the last: nodes of a large job differ in how fast they load the program."""
_FOR_EVER = timedelta(days=365)
_LOOK_SECONDS = 0.2
_NAME_SECONDS = 30.0
"""A node's name may be known a little later than the node starts."""
_PARTING_SECONDS = 10.0
"""So long rank 0 keeps the list open after bad news, for the others to read it."""
_MEETINGS = itertools.count()
"""Of this process: what it wrote at an earlier one may still lie there."""


@contextmanager
def process_group(
    device: torch.device,
    timeout_minutes: float | None = 30.0,
    *,
    join_minutes: float = JOIN_MINUTES,
    look_up: Callable[[], None] = lambda: None,
    compares: bool = True,
) -> Iterator[None]:
    """Join the group that torchrun or srun announce in the environment; nothing to join means one process.

    Args:
        device: of this rank; on CUDA the ranks talk over nccl, else over gloo.
        timeout_minutes: a rank that waits so long for the others in one exchange gives up; ``None``: never.
        join_minutes: how long all ranks may take to come.
        look_up: called again and again while waiting for them; it may raise, e.g. because the run is to stop.
        compares: refuse ranks that are not alike.

    Raises:
        UserError: not all ranks came, their meeting place is not there or taken, or they are not alike
            (:func:`what_differs`).
        RuntimeError: they met but could not connect. A run that meant to be distributed never carries on alone.
    """
    place = here()
    if dist.is_initialized() or place.world_size == 1:
        yield
        return
    meeting = _Meeting(place, time.monotonic() + 60 * join_minutes, look_up)
    store = meeting.store(own_member(place, device), compares)
    timeout = _FOR_EVER if timeout_minutes is None else timedelta(minutes=timeout_minutes)
    on_cuda = device.type == "cuda"
    backend = "nccl" if on_cuda else "gloo"
    try:
        dist.init_process_group(
            backend,
            store=store,
            rank=place.rank,
            world_size=place.world_size,
            timeout=timeout,
            device_id=device if on_cuda else None,
        )
    except Exception as error:
        look_up()
        advice = "; NCCL_DEBUG=INFO tells more" if on_cuda else address_problem(place)
        raise RuntimeError(f"{_who(place)} could not join the process group over {backend}: {error}{advice}") from error
    yield
    # A model that is still held by a cycle would take the group down later, while other threads wait for this one.
    gc.collect()
    # Not after an error: leaving is itself an agreement, and a rank that failed alone would wait for it.
    dist.destroy_process_group()


class _Meeting:
    """One rank's way to the others, up to a deadline (``time.monotonic``); see :func:`process_group` for ``look_up``."""

    def __init__(self, place: Standing, deadline: float, look_up: Callable[[], None]) -> None:
        self._place, self._deadline, self._look_up = place, deadline, look_up
        self._where = f"{place.address}:{place.port}"
        self._num_missing = 0

    def store(self, own: Member, compares: bool) -> dist.Store:
        """The store through which the group is formed, once every rank has signed in it and all are found alike."""
        place = self._place
        store = dist.PrefixStore(f"mavil/{place.meeting}/{next(_MEETINGS)}", self._connect())
        try:
            store.set(f"member/{place.rank}", json.dumps(asdict(own)))
            if place.rank == 0:
                verdict = self._verdict(store, compares)
                store.set("verdict", verdict)
            else:
                # Rank 0 also says when it has waited too long; only then is it rank 0 that is missing.
                self._wait_for(store, ["verdict"], self._deadline + _PARTING_SECONDS)
                verdict = store.get("verdict").decode() if store.check(["verdict"]) else "rank 0 did not come"
            num_read = store.add("read", 1)
        except RuntimeError as error:  # so is everything that torch's stores raise
            self._look_up()
            raise UserError(
                f"{_who(place)}: rank 0 at {self._where} went away before all ranks had come; look at its log"
            ) from error
        if not verdict:
            return store
        end = time.monotonic() + _PARTING_SECONDS
        while place.rank == 0 and num_read < place.world_size - self._num_missing and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
            num_read = store.add("read", 0)
        raise UserError(verdict)

    def _verdict(self, store: dist.Store, compares: bool) -> str:
        """Of rank 0: what is wrong, for people; empty if nothing."""
        world_size = self._place.world_size
        names = [f"member/{rank}" for rank in range(world_size)]
        missing = self._wait_for(store, names, self._deadline)
        self._num_missing = len(missing)
        if missing:
            shown = listed([name.removeprefix("member/") for name in missing])
            return (
                f"only {world_size - len(missing)} of {world_size} ranks came to {self._where} in time; missing: {shown}. Look "
                f"at the log of those, and whether their nodes reach {self._place.address}"
            )
        members = [Member(**json.loads(store.get(name))) for name in names]
        return (compares and what_differs(members)) or ""

    def _wait_for(self, store: dist.Store, names: list[str], deadline: float) -> list[str]:
        """Until the store has all these; those it has not by the deadline. A wait of its own would hear no signal."""
        missing = names
        while True:
            missing = [name for name in missing if not store.check([name])]
            if not missing or time.monotonic() > deadline:
                return missing
            self._look_up()
            time.sleep(_LOOK_SECONDS)

    def _connect(self) -> dist.Store:
        place = self._place
        opens_it = place.rank == 0 and not place.is_met
        if not opens_it:
            self._wait_for_rank_0()
        timeout = timedelta(seconds=max(1.0, self._deadline - time.monotonic()))
        try:
            # Not to wait for the workers: it would do so deaf to signals, and not tell which are missing.
            return dist.TCPStore(
                place.address,
                place.port,
                place.world_size,
                is_master=opens_it,
                timeout=timeout,
                wait_for_workers=False,
                multi_tenant=opens_it,
            )
        except (RuntimeError, ValueError) as error:
            if "EADDRINUSE" in str(error):
                raise UserError(
                    f"port {place.port} of {place.node} is taken, maybe by another training: set MASTER_PORT to a free one"
                ) from None
            cause = str(error).splitlines()[0]
            raise UserError(f"{_who(place)} could not join the others at {self._where}: {cause}") from error

    def _wait_for_rank_0(self) -> None:
        """Until somebody listens at the meeting place. torch would wait for it too, but deaf to signals."""
        place, begun = self._place, time.monotonic()
        while True:
            try:
                socket.create_connection((place.address, place.port), timeout=5.0).close()
                return
            except socket.gaierror as error:
                problem: OSError = error
                if time.monotonic() > min(self._deadline, begun + _NAME_SECONDS):
                    raise UserError(
                        f"{_who(place)}: the name of rank 0's machine, {place.address}, is not known there "
                        f"({error.strerror}): set MASTER_ADDR to a name or address that all nodes know"
                    ) from None
            except OSError as error:
                problem = error
            if time.monotonic() > self._deadline:
                raise UserError(
                    f"{_who(place)} could not reach rank 0 at {self._where} in time ({problem.strerror or problem}): look at the "
                    "log of rank 0, and whether this node reaches it"
                )
            self._look_up()
            time.sleep(_LOOK_SECONDS)


def address_problem(place: Standing) -> str:
    """What is odd about the address that gloo takes, that of this host's own name; empty if nothing, or on one node."""
    if place.address in ("localhost", "127.0.0.1", "::1"):
        return ""
    node, name = place.node, socket.gethostname()
    advice = "set GLOO_SOCKET_IFNAME to the network interface the nodes share (ip addr lists them)"
    try:
        found = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(name, None)}
    except socket.gaierror:
        return f"; {node}: its own name, {name}, is not known there: {advice}"
    usable = {address for address in found if _is_own(address)}
    if not usable:
        return (
            f"; {node}: its own name, {name}, is {', '.join(sorted(found))}, which none of its interfaces has: {advice}"
        )
    if all(ipaddress.ip_address(address).is_loopback for address in usable):
        return f"; {node}: its own name, {name}, is {', '.join(sorted(usable))}, which no other node reaches: {advice}"
    return ""


def _is_own(address: str) -> bool:
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        # A link-local address needs its interface to be bound to, but it is one of ours or it would not resolve here.
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


def _who(place: Standing) -> str:
    return f"rank {place.rank} of {place.world_size} on {place.node}"

"""The SFU of one namespace as a process of its own: ``python -m orama.worker --namespace N --data-dir DIR``.

It is what the unit ``orama-namespace-sfu@N`` runs. It has the namespace's rooms, its media socket and its signalling
port, and no database: what it has to know comes from the node of this host over the control socket, where it also
claims rooms and reports. When the node goes away, what runs goes on, credentials are still renewed, and the worker
looks for the node until it is back. TURN stays with the node, so that media come from its relays through the kernel.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from orama import reactors

reactors.ensure()

from attrs import evolve  # noqa: E402
from twisted.application.internet import TimerService  # noqa: E402
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, maybeDeferred  # noqa: E402
from twisted.internet.error import CannotListenError  # noqa: E402
from twisted.internet.interfaces import IListeningPort  # noqa: E402
from twisted.internet.protocol import Protocol, connectionDone  # noqa: E402
from twisted.internet.stdio import StandardIO  # noqa: E402
from twisted.internet.task import deferLater  # noqa: E402
from twisted.logger import Logger, globalLogBeginner  # noqa: E402
from twisted.python.failure import Failure  # noqa: E402

from orama.attachment import Attachment  # noqa: E402
from orama.cluster.desired import WebRtcConfig  # noqa: E402
from orama.cluster.keyring import KEY_FILE, Keyring  # noqa: E402
from orama.cluster.rooms import RoomRecord  # noqa: E402
from orama.cluster.signing import Verifier  # noqa: E402
from orama.cluster.turn_access import TurnAccess  # noqa: E402
from orama.cluster.workers import REPORT_INTERVAL, Assignment, LiveRoom, Report  # noqa: E402
from orama.daemon import Daemon  # noqa: E402
from orama.errors import NotAuthenticated, NotFound, OramaError, StartError, Unavailable  # noqa: E402
from orama.listening import busy  # noqa: E402
from orama.logs import observer  # noqa: E402
from orama.net.fabric import Fabric  # noqa: E402
from orama.notify import Notifier  # noqa: E402
from orama.outward import Outward  # noqa: E402
from orama.rest.internal import Gate  # noqa: E402
from orama.rest.origins import Origins  # noqa: E402
from orama.rest.site import Site  # noqa: E402
from orama.settings import Settings  # noqa: E402
from orama.sfu.rooms import Rooms  # noqa: E402
from orama.sfu.transit import Transit  # noqa: E402
from orama.signaling.resource import SignalResource  # noqa: E402
from orama.signaling.service import SignalingService  # noqa: E402
from orama.signaling.site import signaling_site  # noqa: E402
from orama.worker_directory import WorkerDirectory  # noqa: E402

#: Seconds between two looks for the node: the first pause, and the longest that it grows to.
FIRST_PAUSE = 0.2
LONGEST_PAUSE = 3.0
#: Times of joins, and of first frames, that are kept for a report while the node is away.
MAX_SECURED = 1000
#: Clients that may wait at the door: a crowd comes at once when another process dies.
BACKLOG = 1024
#: Seconds that connections get to close when the namespace is not wanted any more.
CLOSE_GRACE = 5.0

_log = Logger()


class Worker:
    """The SFU of *namespace*.

    :param attachment: the way to the node.
    :param key_file: the cluster's keys, with which other nodes sign; looked at again when it changes.
    :param index: which of the SFUs of the namespace on this node, where there are several.
    :param run: another one for each process.
    """

    def __init__(
        self, reactor: Any, namespace: str, attachment: Attachment, key_file: Path, index: int = 0, run: str = ""
    ) -> None:
        #: Why it takes no calls; empty when it does.
        self.unready = "waiting for the node"
        self._reactor = reactor
        self._namespace = namespace
        #: Who we are, in what we say to the node.
        self._me = {"namespace": namespace, "worker": index}
        self._run = run
        self._attachment = attachment
        self._key_file = key_file
        self._keys_of = 0
        self._signal_site: Site | None = None
        self._held: Assignment | None = None
        self._unwanted = False
        self._served: Deferred[None] = Deferred()
        self._following: Deferred[None] | None = None
        self._changing = DeferredLock()
        self._running: list[tuple[str, Callable[[], Any]]] = []
        self._report = TimerService(REPORT_INTERVAL, self._tick)
        self._report.clock = reactor
        self._serving = False
        self._transit = Transit()
        self._reporting = False
        self._again = False
        self._heard = 0
        self._secured: list[float] = []
        self._first_frames: list[float] = []

    async def start(self) -> None:
        """Wait for the node, then serve.

        :raises StartError: a port of the namespace is taken.
        """
        self._following = Deferred.fromCoroutine(self._follow())
        self._following.addErrback(_unless_cancelled, "the worker does not look for its node any more")
        await self._served
        self.unready = ""
        _log.info("the SFU of {namespace} is ready", namespace=self._namespace)

    async def drain(self) -> None:
        """Let nobody new in, tell the peers, and wait until the last has gone or their time is over."""
        self.unready = "draining"
        if not hasattr(self, "signaling"):
            return
        if self._unwanted:
            await self.rooms.close_namespace(self._namespace, CLOSE_GRACE)
            return
        held = self._assignment
        deadline = held.settings.signaling.drain_deadline
        _log.info("draining: {peers} peers have {deadline} s", peers=self.rooms.peers(), deadline=deadline)
        await self.signaling.drain("the SFU goes down", deadline, held.reconnect_url)

    async def stop(self) -> None:
        """Stop what runs, the last that was started first. Nothing is left behind."""
        self.unready = self.unready or "stopping"
        if self._following is not None:
            self._following.cancel()
        async with self._changing:
            while self._running:
                name, stop = self._running.pop()
                try:
                    await maybeDeferred(stop)
                except Exception:
                    _log.failure("{part} did not stop cleanly", part=name)

    async def reload(self, settings: Settings) -> None:
        """Nothing is configured here: the node says what has changed."""

    # ---- the node

    async def _follow(self) -> None:
        """Be attached to the node, whenever it is there."""
        pause, told = FIRST_PAUSE, ""
        while True:
            began = self._reactor.seconds()
            try:
                me = {name: str(value) for name, value in self._me.items()}
                await self._attachment.follow("worker", {**me, "run": self._run}, self._take)
                why = "the node went away"
            except OramaError as error:
                why = error.message
            if self._reactor.seconds() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            self.unready = self.unready and f"waiting for the node: {why}"
            if why != told:
                _log.info("looking for the node: {why}", why=why)
            told = why
            await deferLater(self._reactor, pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _take(self, message: Mapping[str, Any]) -> None:
        """One message of the node; what it says is done one after the other."""
        doing = Deferred.fromCoroutine(self._obey(message))
        doing.addErrback(_unless_cancelled, "a message of the node could not be obeyed")

    async def _obey(self, message: Mapping[str, Any]) -> None:
        event = message.get("event")
        if event == "stats":  # nothing changes by that, and somebody waits
            await self._answer_stats(message)
            return
        async with self._changing:
            if event == "assignment":
                await self._assigned(Assignment.from_json(message["assignment"]))
            elif event == "unwanted":
                self._unwanted = True
            elif event == "create":
                self.rooms.create(self._namespace, message["room_id"], message["max_participants"])
            elif event == "close" and self.rooms.get(self._namespace, message["room_id"]) is not None:
                self.rooms.close(self._namespace, message["room_id"], message["reason"])
            elif event == "lose" and self.rooms.get(self._namespace, message["room_id"]) is not None:
                _log.warn("room {room} is another node's by now", room=message["room_id"])
                self.signaling.lobby.lose_room(self._namespace, message["room_id"])
                self.rooms.close(self._namespace, message["room_id"])
        self._heard = message.get("serial", 0)
        self._tell()

    async def _answer_stats(self, message: Mapping[str, Any]) -> None:
        """Say what goes on in a room."""
        found = None
        if self._held is not None:
            found = await self.rooms.stats(self._namespace, message["room_id"], message["peer_id"])
        body = {**self._me, "question": message["serial"], "answer": found}
        try:
            await self._attachment.post("worker/answer", body)
        except OramaError as error:
            _log.debug("the node takes no answer: {why}", why=error.message)

    async def _assigned(self, assignment: Assignment) -> None:
        before = self._held
        if before is not None and assignment.config.blocks.media is None:
            # The SFU is to be another node's: what is here stays until we are stopped.
            blocks = before.config.blocks
            assignment = evolve(assignment, config=evolve(assignment.config, blocks=blocks))
        self._held, self._unwanted = assignment, False
        try:
            if before is None:
                self._begin(assignment)
                await self._serve(assignment.config)
            elif before.config.blocks != assignment.config.blocks:
                await self._withdraw()
                await self._serve(assignment.config)
            else:
                self.rooms.set_relays(self._namespace, _relays(assignment.config))
            self._adopt(assignment.settings)
        except CannotListenError as error:
            await self._say_taken(busy(error))
            self._failed(StartError(busy(error)))
        except OramaError as error:
            self._failed(error)
        else:
            if not self._served.called:
                self._served.callback(None)

    async def _say_taken(self, why: str) -> None:
        """Let the node know that somebody has our port: it gives us another."""
        try:
            await self._attachment.post("worker/taken", {**self._me, "why": why})
        except OramaError as error:
            _log.warn("the node is not told of a port that is taken: {why}", why=error.message)

    def _adopt(self, settings: Settings) -> None:
        """What can change while we run; ports of TURN do when the node comes back with others."""
        self.signaling.lobby.access = TurnAccess(settings, self, self._reactor)
        self.signaling.lobby.settings = settings.signaling

    def _failed(self, error: OramaError) -> None:
        self._serving = False
        if self._served.called:
            _log.error("{namespace} is not served: {why}", namespace=self._namespace, why=error.message)
            self.unready = error.message
        else:
            self._served.errback(error)

    # ---- what runs

    def _begin(self, assignment: Assignment) -> None:
        """What is there for as long as the process is."""
        settings, reactor = assignment.settings, self._reactor
        self.directory = WorkerDirectory(reactor, self._attachment, assignment.node_id, self._me, self._live_room)
        fabric = Fabric(reactor)
        fabric.transit = self._transit.note
        self.rooms = Rooms(reactor, settings, fabric)
        self.rooms.on_empty = self._emptied
        self.rooms.on_secured = partial(_remember, self._secured)
        self.rooms.on_first_frame = partial(_remember, self._first_frames)
        self._outward = Outward(reactor, self._namespace, self._attachment, self._has_webhook)
        self.rooms.on_occurrence = self._outward.note
        self._running.append(("events", self._outward.stop))
        self._running.append(("rooms", self.rooms.stop))
        access = TurnAccess(settings, self, reactor)
        self.signaling = SignalingService(reactor, settings, self.rooms, self.directory, access)
        self.signaling.startService()
        self._running.append(("signalling", self.signaling.stopService))
        self._report.startService()
        self._running.append(("reports", self._report.stopService))

    async def _serve(self, config: WebRtcConfig) -> None:
        """Open the ports of the namespace, both or none."""
        blocks, settings = config.blocks, self._assignment.settings
        if blocks.media is None or blocks.signaling is None:
            raise Unavailable("not_assigned", "the namespace has no SFU on this node")
        self.rooms.start_namespace(self._namespace, blocks.media, None, _relays(config))
        try:
            site = self._signal_site = self._site(settings)
            port = self._listen(site, blocks.signaling[0], settings)
        except BaseException:
            await self.rooms.stop_namespace(self._namespace)
            raise
        self._running.append(("signalling port", port.stopListening))
        self._serving = True

    def _listen(self, site: Site, number: int, settings: Settings) -> IListeningPort:
        """Take clients: on the signalling port, or where our node passes them on."""
        if not self._assignment.door:
            port: IListeningPort = self._reactor.listenTCP(number, site, interface=settings.internal_ip)
            return port
        door = Path(self._assignment.door)
        door.unlink(missing_ok=True)  # a dead one's, if there is one
        port = self._reactor.listenUNIX(str(door), site, backlog=BACKLOG, mode=0o600)
        return port

    async def _withdraw(self) -> None:
        """Close the ports, to open others."""
        self._serving = False
        while self._running and self._running[-1][0] == "signalling port":
            await maybeDeferred(self._running.pop()[1])
        await self.rooms.stop_namespace(self._namespace)

    def _site(self, settings: Settings) -> Site:
        """What answers on the signalling port: signalling, for the nodes of the cluster, and nothing else."""
        self._keys_of = self._key_file.stat().st_mtime_ns if self._key_file.exists() else 0
        gate = Gate(Verifier(Keyring.load(self._key_file), self._reactor), self._assignment.node_id)
        signal = SignalResource(self.signaling, settings, _Nobody(), self._require, gate)
        return signaling_site(self._reactor, settings, Origins(()), signal)

    async def _require(self, namespace: str) -> None:
        if namespace != self._namespace or self._unwanted:
            raise NotFound("namespace_not_found", "another namespace is served here")

    async def config(self, namespace: str) -> WebRtcConfig:
        """For the credentials of peers: what the node said last."""
        await self._require(namespace)
        return self._assignment.config

    @property
    def _assignment(self) -> Assignment:
        assert self._held is not None, "nothing is served before the node has said what"
        return self._held

    # ---- rooms

    def _live_room(self, namespace: str, room_id: str) -> RoomRecord | None:
        room = self.rooms.get(namespace, room_id)
        if room is None:
            return None
        node_id = self._assignment.node_id
        return RoomRecord(namespace, room_id, node_id, room.max_participants, room.participants, room.created_at)

    def _emptied(self, namespace: str, room_id: str) -> None:
        releasing = Deferred.fromCoroutine(self.directory.release(namespace, room_id))
        releasing.addErrback(_unless_cancelled, "the claim of an empty room stays")

    def _has_webhook(self) -> bool:
        webhooks = self._assignment.settings.webhooks
        return bool(webhooks.url or webhooks.namespaces)

    def _tick(self) -> None:
        # A timer whose function raises never runs again.
        try:
            self._look_at_keys()
            self._tell()
            self._outward.tell()
        except Exception:
            _log.failure("the worker stumbled")

    def _look_at_keys(self) -> None:
        """Take the cluster's other keys when its file has changed; connections stay."""
        try:
            changed = self._key_file.stat().st_mtime_ns != self._keys_of
            if changed and self._signal_site is not None:
                self._signal_site.adopt(self._site(self._assignment.settings))
        except (OSError, OramaError) as error:
            _log.warn("the cluster's keys stay as they were: {why}", why=str(error))

    def _tell(self) -> None:
        """Report, after the report that may be on its way: who reports serves."""
        if self._reporting or not self._serving:
            self._again = self._reporting
            return
        self._reporting = True
        reporting = Deferred.fromCoroutine(self._say())
        reporting.addErrback(_unless_cancelled, "a report failed")

    async def _say(self) -> None:
        try:
            live = self.rooms.all(self._namespace)
            rooms = tuple(LiveRoom(room.room_id, room.participants, room.max_participants) for room in live)
            secured, first_frames = tuple(self._secured), tuple(self._first_frames)
            report = Report(rooms, self._samples(), self._heard, secured, first_frames)
            await self._attachment.post("worker/report", {**self._me, "report": report.to_json()})
            del self._secured[: len(secured)], self._first_frames[: len(first_frames)]
        except OramaError as error:
            _log.debug("the node takes no report: {why}", why=error.message)
        finally:
            self._reporting = False
            if self._again:
                self._again = False
                self._tell()

    def _samples(self) -> tuple[tuple[str, dict[str, str], float], ...]:
        mine = {"namespace": self._namespace}
        return tuple(
            (name, {**labels, **mine}, float(value))
            for source in (self.rooms.samples, self.signaling.samples, self._transit.samples)
            for name, labels, value in source()
        )


class _Nobody:
    """Keys and tokens are looked at by gateways; here the nodes of the cluster come in."""

    async def authenticate(self, *_: object) -> Any:
        raise NotAuthenticated("bad_signature", "only nodes of the cluster may come in here")


def _relays(config: WebRtcConfig) -> list[tuple[str, int, int]]:
    """All relays of the namespace, those of this host's node as well: for us they are another process's."""
    return [(place.relay_ip, *place.relay) for place in config.turns]


def _remember(times: list[float], seconds: float) -> None:
    if len(times) < MAX_SECURED:
        times.append(seconds)


def _unless_cancelled(failure: Any, what: str) -> None:
    if failure.check(CancelledError) is None:
        _log.failure(what, failure)


class _Leash(Protocol):
    """The node at the other end of standard input: nothing is said, but its end is seen, however it comes."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._reactor.running:
            self._reactor.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m orama.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--data-dir", required=True, type=Path, help="of the node of this host")
    parser.add_argument("--index", type=int, default=0, help="which it is, where several share the namespace's rooms")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--attached", action="store_true", help="end when standard input does: the node has gone")
    options = parser.parse_args(arguments)
    # The daemon takes signals, and gives back what was there: a second one that comes at the very end means nothing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reactor = reactors.installed()
    settings = Settings(data_dir=options.data_dir.absolute(), log_format=options.log_format)
    globalLogBeginner.beginLoggingTo(
        [observer(settings.log_format, sys.stdout)], redirectStandardIO=False, discardBuffer=True
    )
    attachment = Attachment(reactor, settings.data_dir)
    key_file, run = settings.data_dir / KEY_FILE, str(os.getpid())
    worker = Worker(reactor, options.namespace, attachment, key_file, options.index, run)
    notifier = Notifier.from_environment(os.environ, os.getpid())
    daemon = Daemon(reactor, settings, lambda: settings, node=worker, notifier=notifier, name="orama-worker")
    daemon.startService()
    reactor.addSystemEventTrigger("before", "shutdown", daemon.stopService)
    if options.attached:
        StandardIO(_Leash(reactor), reactor=reactor)  # type: ignore[call-arg]  # the types are those of Windows
    reactor.run(installSignalHandlers=False)


if __name__ == "__main__":
    main()

"""The ports of TURN in the host's firewall: over random histories in memory, and with the real ufw."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from attrs import evolve
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from orama.cluster import ufw
from orama.cluster.desired import Blocks, WebRtcConfig
from orama.cluster.firewall import COMMENT, LOOK, Firewall, Rule, rules_for
from orama.cluster.processes import Run, processes
from orama.settings import FirewallSettings, Settings, TurnSettings
from tests.cluster.firewalls import MemoryUfw

SETTINGS = Settings(public_ip="192.0.2.1", internal_ip="10.0.0.1")
TURN = (Rule("udp", 3478, 3478), Rule("tcp", 3478, 3478), Rule("tcp", 5349, 5349))
BLOCK = Rule("udp", 49152, 49951)


_PIECES = ("ufw", "allow", "comment", "'", "Chain", "\n", "0 0 ACCEPT 17 -- * * 0.0.0.0/0 0.0.0.0/0", "udp dpt:", "1:2")


def config(name: str, relay: tuple[int, int] | None = None) -> WebRtcConfig:
    return WebRtcConfig(name, ("c2VjcmV0",), 600, True, Blocks((30000, 30000), (20000, 20499), relay))


class WantedTests(SynchronousTestCase):
    """What follows from the namespaces of a node."""

    def test_no_relay(self) -> None:
        """A node that only forwards opens nothing: the SFU is on the internal address."""
        self.assertEqual(rules_for([], SETTINGS), frozenset())
        self.assertEqual(rules_for([config("a")], SETTINGS), frozenset())

    def test_shared(self) -> None:
        """However many namespaces relay here, the listener's ports are open once."""
        for count in (1, 2, 5):
            configs = [config(f"n{index}", (49152, 49951)) for index in range(count)]
            self.assertEqual(rules_for(configs, SETTINGS), frozenset(TURN))

    def test_public_relays(self) -> None:
        """Where relays are on the public address each namespace's block is open too, and goes with it."""
        settings = evolve(SETTINGS, turn=TurnSettings(relay_ip="192.0.2.1"), turn_port=3400, turns_port=443)
        one, two = config("a", (49152, 49951)), config("b", (49952, 50751))
        both = {str(rule) for rule in rules_for([one, two, config("c")], settings)}
        self.assertEqual(both, {"3400/udp", "3400/tcp", "443/tcp", "49152:49951/udp", "49952:50751/udp"})
        self.assertEqual(rules_for([one, two], settings) - rules_for([two], settings), {BLOCK})

    def test_public_relays_of_ipv6(self) -> None:
        """A relay address of IPv6 that is on the Internet opens the blocks too, one of the inside does not."""
        for relay_ip6, opened in (("2a01:4f8::1", True), ("fd00::1", False), ("", False)):
            settings = evolve(SETTINGS, turn=TurnSettings(relay_ip6=relay_ip6))
            self.assertEqual(BLOCK in rules_for([config("a", (49152, 49951))], settings), opened, relay_ip6)

    def test_tcp_relays(self) -> None:
        """Where there are TCP relays their ports are open for TCP as well."""
        settings = evolve(SETTINGS, turn=TurnSettings(relay_ip="192.0.2.1", tcp_relays=True))
        rules = {str(rule) for rule in rules_for([config("a", (49152, 49951))], settings)}
        self.assertLessEqual({"49152:49951/udp", "49152:49951/tcp"}, rules)


class OutputTests(SynchronousTestCase):
    """What ufw 0.36.2 prints."""

    ADDED = """\
Added user rules (see 'ufw status' for running firewall):
ufw allow 3478/udp comment 'orama'
ufw allow 49152:49951/udp comment 'orama'
ufw allow 80,443/tcp
ufw limit 2222/tcp
ufw allow from 10.0.0.0/8 to any port 22 proto tcp comment 'my ssh'
ufw allow log 90/tcp comment 'orama'
ufw allow in on eth0 to any port 57 comment 'orama'
ufw allow out 58/tcp comment 'orama'
ufw allow 53 comment 'orama'
ufw route allow 99/udp comment 'orama'
ufw allow 'WWW Full'
ufw deny 5349/tcp comment 'x
"""
    KERNEL = """\
IPV4 (user):
Chain ufw-user-input (1 references)
    pkts      bytes target     prot opt in     out     source               destination
       0        0 ACCEPT     17   --  *      *       0.0.0.0/0            0.0.0.0/0            udp dpt:3478
       0        0 ACCEPT     17   --  *      *       0.0.0.0/0            0.0.0.0/0            multiport dports 1:9,20
       0        0 ufw-user-limit-accept  6    --  *      *       0.0.0.0/0            0.0.0.0/0            tcp dpt:2222
       0        0 ACCEPT     6    --  *      *       10.0.0.0/8           0.0.0.0/0            tcp dpt:22
       0        0 ACCEPT     6    --  eth0   *       0.0.0.0/0            0.0.0.0/0            tcp dpt:57
       0        0 ACCEPT     6    --  *      *       0.0.0.0/0            1.2.3.4              tcp dpt:55
       0        0 DROP       tcp  --  *      *       0.0.0.0/0            0.0.0.0/0            tcp dpts:5000:6000
       0        0 ACCEPT     6    --  *      *       0.0.0.0/0            0.0.0.0/0            tcp dpt:5349
       0        0 ACCEPT     6    --  *      *       0.0.0.0/0            0.0.0.0/0            multiport dports 80,443 /* 'dapp_WWW%20Full' */
       0        0 REJECT     0    --  *      *       0.0.0.0/0            0.0.0.0/0            reject-with icmp-port-unreachable
       0        0 ACCEPT     17   --  *      *       0.0.0.0/0            0.0.0.0/0            udp dpt:60

Chain ufw-user-output (1 references)
       0        0 ACCEPT     6    --  *      *       0.0.0.0/0            0.0.0.0/0            tcp dpt:58

IPV6:
Chain ufw6-user-input (1 references)
       0        0 ACCEPT     udp      *      *       ::/0                 ::/0                 udp dpt:59
"""  # noqa: E501

    def test_added(self) -> None:
        """Comment and words are told apart; only an action with ports and a protocol has a target."""
        rules = ufw.added(self.ADDED)
        self.assertEqual(len(rules), 12)
        targets = {rule.target: rule.comment for rule in rules if rule.target}
        self.assertEqual(
            targets,
            {"3478/udp": "orama", "49152:49951/udp": "orama", "2222/tcp": "", "90/tcp": "orama", "5349/tcp": "'x"},
        )
        self.assertEqual(rules[4].comment, "my ssh")
        self.assertEqual(str(rules[3]), "ufw limit 2222/tcp")
        self.assertEqual(ufw.added("Added user rules (see 'ufw status' for running firewall):\n(None)\n"), [])

    def test_kernel(self) -> None:
        """The first rule for everybody that has a port decides; what is for some only says nothing."""
        ours = ufw.kernel(self.KERNEL, ipv6=False)
        for proto, port, expected in (
            ("udp", 3478, True),
            ("tcp", 5349, False),
            ("tcp", 443, True),
            ("udp", 9, True),
            ("udp", 20, True),
            ("udp", 60, False),
            ("tcp", 57, False),
            ("tcp", 58, False),
        ):
            self.assertIs(ufw.is_open(ours, Rule(proto, port, port)), expected, (proto, port))
        self.assertIs(ufw.is_open(ours, Rule("udp", 1, 9)), True)
        self.assertIs(ufw.is_open(ours, Rule("udp", 1, 10)), False)
        (six,) = ufw.kernel(self.KERNEL, ipv6=True)
        self.assertIs(ufw.is_open([six], Rule("udp", 59, 59)), True)
        self.assertIs(ufw.is_open([six], Rule("tcp", 59, 59)), None)
        for some in ours[:2]:
            self.assertIs(ufw.is_open([some], Rule("tcp", 3478, 3478)), None)

    @given(st.lists(st.sampled_from(_PIECES) | st.text(max_size=5), max_size=20).map(" ".join))
    def test_anything(self, text: str) -> None:
        """Whatever is printed, reading it does not fail."""
        for output in (text, f"Chain ufw-user-input\n{text}", text.replace(" ", "\n")):
            for ours in ufw.added(output):
                str(ours), ours.target
            ufw.is_open(ufw.kernel(output, False), BLOCK)


class FirewallCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.ufw = MemoryUfw()
        self.use(SETTINGS)

    def use(self, settings: Settings) -> None:
        self.firewall = Firewall(self.clock, settings, self.ufw.run)

    def ensure(self, *rules: Rule) -> tuple[str, str]:
        self.successResultOf(Deferred.fromCoroutine(self.firewall.ensure(rules)))
        return self.firewall.state, self.firewall.detail


class FirewallTests(FirewallCase):
    def test_opened_and_closed(self) -> None:
        """What is wanted is opened under our comment, and closed when it is not wanted any more."""
        self.assertEqual(self.ensure(*TURN, BLOCK), ("active", ""))
        self.assertEqual(self.ufw.rules, {str(rule): ("allow", COMMENT) for rule in sorted((*TURN, BLOCK), key=str)})
        self.assertEqual(
            self.firewall.report(),
            {"state": "active", "detail": "", "rules": ["3478/tcp", "3478/udp", "49152:49951/udp", "5349/tcp"]},
        )
        self.assertEqual(self.ensure(*TURN), ("active", ""))
        self.assertNotIn(str(BLOCK), self.ufw.rules)
        self.assertEqual(self.ensure(), ("active", ""))
        self.assertEqual(self.ufw.rules, {})

    def test_rules_of_others(self) -> None:
        """Rules of others stay as they are, in their order; the same port of theirs counts as open."""
        for words in (("allow", "22/tcp"), ("allow", "3478/udp", "comment", "theirs"), ("allow", "49152:65535/udp")):
            self.ufw.do(*words)
        before = dict(self.ufw.rules)
        self.assertEqual(self.ensure(*TURN, BLOCK), ("active", ""))
        self.assertEqual(set(self.ufw.rules) - set(before), {"3478/tcp", "5349/tcp"})
        self.assertEqual(self.ensure(), ("active", ""))
        self.assertEqual(self.ufw.rules, before)

    def test_neighbour(self) -> None:
        """One namespace of two goes: the ports of the other stay open all the time."""
        self.ensure(*TURN, BLOCK, Rule("udp", 49952, 50751))
        self.ufw.commands.clear()
        self.ensure(*TURN, BLOCK)
        changes = [command for command in self.ufw.commands if command.startswith(("delete", "allow"))]
        self.assertEqual(changes, ["delete allow 49952:50751/udp"])

    def test_closed_by_others(self) -> None:
        """What somebody has closed is not opened over his head: it is told."""
        for words, said in (
            (("deny", "5349/tcp"), "5349/tcp: somebody else has `ufw deny 5349/tcp`"),
            (("limit", "5349/tcp"), "5349/tcp: somebody else has `ufw limit 5349/tcp`"),
            (("deny", "5000:6000/tcp"), "5349/tcp: an earlier rule of somebody else closes it"),
            (("reject", "5349"), "5349/tcp: an earlier rule of somebody else closes it"),
        ):
            self.setUp()
            self.ufw.do(*words)
            before = dict(self.ufw.rules)
            self.assertEqual(self.ensure(*TURN), ("failed", said))
            self.assertEqual(self.firewall.report()["rules"], ["3478/tcp", "3478/udp"])
            self.assertEqual({key: self.ufw.rules[key] for key in before}, before)
            self.ufw.do("delete", *words)
            self.clock.advance(LOOK)
            self.assertEqual(self.ensure(*TURN), ("active", ""))

    def test_put_back(self) -> None:
        """A rule that somebody took away comes back, and one that only the kernel lost does too."""
        self.ensure(*TURN)
        for damage in (lambda: self.ufw.do("delete", "allow", "3478/udp"), lambda: self.ufw.lost.add("3478/udp")):
            damage()
            self.clock.advance(LOOK)
            self.assertEqual(self.ensure(*TURN), ("active", ""))
            self.assertEqual((self.ufw.rules["3478/udp"], self.ufw.lost), (("allow", COMMENT), set()))

    def test_lost_rule_of_others(self) -> None:
        """That the kernel lost somebody else's rule is told, not repaired."""
        self.ufw.do("allow", "3478/udp")
        self.ufw.lost.add("3478/udp")
        state, detail = self.ensure(*TURN)
        self.assertEqual(state, "failed")
        self.assertIn("`ufw reload` puts it there", detail)
        self.assertEqual(self.ufw.rules["3478/udp"], ("allow", ""))

    def test_seldom(self) -> None:
        """While nothing new is wanted ufw is asked now and then, and not at all while nothing is wanted."""
        self.ensure(*TURN)
        count = len(self.ufw.commands)
        for _ in range(14):
            self.clock.advance(1)
            self.ensure(*TURN)
        self.assertEqual(len(self.ufw.commands), count)
        self.clock.advance(1)
        self.ensure(*TURN)
        self.assertEqual(self.ufw.commands[count:], ["status", "show added", "show user-rules"])
        self.ensure()
        count = len(self.ufw.commands)
        self.clock.advance(1000)
        self.ensure()
        self.assertEqual(len(self.ufw.commands), count)

    def test_not_to_be_had(self) -> None:
        """Without ufw, without root, switched off: the state says so, and nothing is changed."""
        for attribute, detail in (
            ("installed", "ufw is not installed"),
            ("allowed", "`ufw status`: ERROR: You need to be root to run this script"),
            ("active", "ufw is not switched on; `ufw enable` does that"),
        ):
            for mode, state in (("auto", "unavailable"), ("require", "failed")):
                self.setUp()
                self.use(evolve(SETTINGS, firewall=FirewallSettings(ufw=mode)))
                setattr(self.ufw, attribute, False)
                self.assertEqual(self.ensure(*TURN), (state, detail))
                self.assertEqual((self.ufw.rules, self.firewall.report()["rules"]), ({}, []))
                setattr(self.ufw, attribute, True)
                self.clock.advance(LOOK)
                self.assertEqual(self.ensure(*TURN), ("active", ""))

    def test_off(self) -> None:
        """Switched off, or on a loopback address, ufw is not even asked."""
        for settings in (
            evolve(SETTINGS, firewall=FirewallSettings(ufw="off")),
            evolve(SETTINGS, public_ip="127.0.0.1"),
            evolve(SETTINGS, public_ip="::1", firewall=FirewallSettings(ufw="require")),
        ):
            self.use(settings)
            self.assertEqual(self.ensure(*TURN)[0], "off")
            self.assertEqual(self.ufw.commands, [])

    def test_failing_commands(self) -> None:
        """What a command of ufw says when it fails is told, what could be opened is open, and it is tried again."""
        self.ufw.broken = "3478/udp"
        state, detail = self.ensure(*TURN)
        self.assertEqual(state, "failed")
        self.assertIn("`ufw allow 3478/udp comment orama`: ERROR: Another app", detail)
        self.assertIn("3478/udp is not open", detail)
        self.assertEqual(set(self.ufw.rules), {"3478/tcp", "5349/tcp"})
        self.ufw.broken = "!"
        self.clock.advance(LOOK)
        self.assertEqual(self.ensure(*TURN), ("active", ""))
        self.ufw.broken = "delete"
        state, detail = self.ensure()
        self.assertEqual(state, "failed")
        self.assertIn("3478/udp is still open", detail)

    def test_public_ip_decides_the_family(self) -> None:
        """On an IPv6 address it is the IPv6 rules that have to be there."""
        self.use(evolve(SETTINGS, public_ip="2001:db8::1"))
        self.assertEqual(self.ensure(*TURN), ("active", ""))


class Histories(RuleBasedStateMachine):
    """Namespaces come and go, people change their rules, commands fail, the node is killed."""

    TARGETS: ClassVar = ("3478/udp", "5349/tcp", "22/tcp", "49152:65535/udp", "5000:6000/tcp", "3478")
    RULES: ClassVar = (*TURN, BLOCK, Rule("udp", 49952, 50751))

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.ufw = MemoryUfw()
        self.wanted: Collection[Rule] = ()
        self.theirs: dict[str, tuple[str, str]] = {}
        self.start()

    @rule()
    def start(self) -> None:
        self.firewall = Firewall(self.clock, SETTINGS, self.ufw.run)

    @rule(wanted=st.frozensets(st.sampled_from(RULES)))
    def want(self, wanted: frozenset[Rule]) -> None:
        self.wanted = wanted
        self.look()

    @rule()
    def look(self) -> None:
        Deferred.fromCoroutine(self.firewall.ensure(self.wanted))

    @rule(seconds=st.sampled_from((1, 20)))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(ports=st.sampled_from(TARGETS), action=st.sampled_from(("allow", "deny")), comment=st.sampled_from(("", "x")))
    def theirs_added(self, ports: str, action: str, comment: str) -> None:
        self.ufw.rules.pop(ports, None)
        self.ufw.rules[ports] = self.theirs[ports] = action, comment

    @rule(ports=st.sampled_from(TARGETS))
    def theirs_deleted(self, ports: str) -> None:
        if self.theirs.pop(ports, None):
            self.ufw.rules.pop(ports, None)

    @rule(ports=st.sampled_from(TARGETS))
    def ours_deleted(self, ports: str) -> None:
        if ports not in self.theirs:
            self.ufw.rules.pop(ports, None)

    @rule(word=st.sampled_from(("!", "allow", "delete", "status", "user-rules", "5349/tcp")))
    def breaks(self, word: str) -> None:
        self.ufw.broken = word

    @invariant()
    def others_stay(self) -> None:
        assert {target: self.ufw.rules.get(target) for target in self.theirs} == self.theirs
        ours = {target for target, (_, comment) in self.ufw.rules.items() if comment == COMMENT}
        assert ours | self.theirs.keys() == self.ufw.rules.keys()

    def teardown(self) -> None:
        """In the end nothing of ours is open that is not wanted, and what is wanted is open or spoken of."""
        self.ufw.broken = "!"
        self.start()
        self.look()
        ours = {target for target, (_, comment) in self.ufw.rules.items() if comment == COMMENT}
        assert ours <= {str(each) for each in self.wanted}
        verdicts = ufw.kernel(self.ufw.do("show", "user-rules"), ipv6=False)
        shut = [each for each in self.wanted if not ufw.is_open(verdicts, each)]
        assert (self.firewall.state == "failed") == bool(shut), (self.firewall.state, shut)
        assert all(str(each) in self.firewall.detail for each in shut)
        self.others_stay()


class HistoryTests(SynchronousTestCase):
    def test_histories(self) -> None:
        """Whatever happens, rules of others stay, and ours become what is wanted."""
        run_state_machine_as_test(
            Histories, settings=limits(max_examples=60, stateful_step_count=25, deadline=None, print_blob=True)
        )


class RealUfwTests(TestCase):
    """ufw from Debian in namespaces of its own, where its files are copies."""

    timeout = 120

    def setUp(self) -> None:
        if os.geteuid() != 0:
            raise SkipTest("namespaces need root")
        programs = {"/usr/sbin"}
        path = os.pathsep.join((os.environ.get("PATH", ""), *programs))
        for name in ("ufw", "iptables", "unshare", "nsenter"):
            if not shutil.which(name, path=path):
                raise SkipTest(f"{name} is not installed")
        top = Path(self.mktemp()).resolve()
        top.mkdir()
        # What waits in there holds the namespaces; closing its stdin ends it.
        self.holder = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-c", _JAIL, "jail", str(top)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.addCleanup(self.holder.communicate)
        assert self.holder.stdout is not None
        said = self.holder.stdout.readline()
        if said != b"ready\n":
            raise SkipTest(f"no namespaces here: {said.decode(errors='replace').strip()}")
        outside = processes(reactor, 60)
        jail = ["nsenter", "--target", str(self.holder.pid), "--mount", "--net", "--"]
        self.ufw: Run = lambda command: outside([*jail, *command])
        self.clock = Clock()
        self.firewall = Firewall(self.clock, SETTINGS, self.ufw)

    async def do(self, *words: str) -> str:
        status, output = await self.ufw(["ufw", *words])
        self.assertEqual(status, 0, output)
        return output.decode()

    async def ensure(self, *rules: Rule) -> tuple[str, str]:
        self.clock.advance(LOOK)
        await self.firewall.ensure(rules)
        return self.firewall.state, self.firewall.detail

    async def test_life(self) -> None:
        """Off, on, opened, repaired, hindered, closed: with ufw's own files and the kernel's own rules."""
        self.assertEqual((await self.ensure(*TURN))[0], "unavailable")
        await self.do("--force", "enable")
        await self.do("allow", "22/tcp", "comment", "ssh")
        self.assertEqual(await self.ensure(*TURN, BLOCK), ("active", ""))
        table = (await self.ufw(["iptables", "-S", "ufw-user-input"]))[1].decode()
        for part in ("-p udp -m udp --dport 3478 -j ACCEPT", "--dports 49152:49951 -j ACCEPT"):
            self.assertIn(part, table)
        await self.do("delete", "allow", "5349/tcp")
        await self.ufw(["iptables", "-D", "ufw-user-input", "-p", "udp", "--dport", "3478", "-j", "ACCEPT"])
        self.assertEqual(await self.ensure(*TURN, BLOCK), ("active", ""))
        table = (await self.ufw(["iptables", "-S", "ufw-user-input"]))[1].decode()
        self.assertIn("-p udp -m udp --dport 3478 -j ACCEPT", table)
        await self.do("delete", "allow", "5349/tcp")
        await self.do("deny", "5349/tcp")
        self.assertEqual(await self.ensure(*TURN), ("failed", "5349/tcp: somebody else has `ufw deny 5349/tcp`"))
        await self.do("delete", "deny", "5349/tcp")
        self.assertEqual(await self.ensure(*TURN), ("active", ""))
        self.assertEqual(await self.ensure(), ("active", ""))
        rules = ufw.added(await self.do("show", "added"))
        self.assertEqual([(rule.target, rule.comment) for rule in rules], [("22/tcp", "ssh")])

    async def test_memory_is_like_it(self) -> None:
        """The ufw in memory answers the same commands as the real one does, as far as we read it."""
        memory = MemoryUfw()
        await self.do("--force", "enable")
        for words in (
            ("allow", "3478/udp", "comment", "orama"),
            ("allow", "3478/udp", "comment", "orama"),
            ("allow", "3478", "comment", "it is mine"),
            ("deny", "3478/udp"),
            ("limit", "5349/tcp"),
            ("allow", "5000:6000/tcp"),
            ("reject", "80,443/tcp"),
            ("delete", "allow", "3478/udp"),
            ("delete", "limit", "5349/tcp"),
            ("allow", "49152:49951/udp", "comment", "orama"),
        ):
            await self.do(*words)
            memory.do(*words)
            real, ours = await self.do("show", "added"), memory.do("show", "added")
            self.assertEqual(ufw.added(real), ufw.added(ours), words)
            real, ours = await self.do("show", "user-rules"), memory.do("show", "user-rules")
            for ipv6 in (False, True):
                self.assertEqual(ufw.kernel(real, ipv6), ufw.kernel(ours, ipv6), words)


#: Copies of ufw's files over its own, then a word on stdout, then wait for the end of stdin.
_JAIL = """
set -e
mkdir "$1/etc" "$1/lib"
cp -a /etc/ufw/. "$1/etc"; cp -a /lib/ufw/. "$1/lib"; cp -a /etc/default/ufw "$1/default"
mount --make-rprivate /
mount --bind "$1/etc" /etc/ufw; mount --bind "$1/lib" /lib/ufw; mount --bind "$1/default" /etc/default/ufw
mount -t tmpfs none /run
ufw --force reset > /dev/null
echo ready
exec cat
"""

"""The checks: what is wanted against what is seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from orama.cli.asking import Answer
from orama.cli.environments import Address
from orama.cli.findings import Cluster, Finding, Status
from orama.cli.inspection import failed, inspect, planned, selected
from orama.cli.seen import CertificateProbe, Certified, DnsProbe, Probe, Reached, ReachProbe, Resolved, Seen
from tests.cli.clusters import (
    NODES,
    TURN,
    answer,
    certificate,
    cluster,
    healthy,
    report,
    served,
    silent,
)


class Case(SynchronousTestCase):
    def inspect(self, about: Cluster, changed: Iterable[Seen] = ()) -> tuple[Finding, ...]:
        """The findings where all is seen to be well but *changed*."""
        sight = healthy(planned(about))
        sight.update({each.probe: each for each in changed})
        return inspect(about, sight.values())

    def bad(self, about: Cluster, changed: Iterable[Seen] = ()) -> dict[tuple[str, str], Finding]:
        """What did not pass, by id and node; each says what to do."""
        found = {(each.id, each.node): each for each in self.inspect(about, changed) if each.status is not Status.PASS}
        for finding in found.values():
            self.assertTrue(finding.hint, finding)
        return found

    def statuses(self, about: Cluster, changed: Iterable[Seen] = ()) -> dict[tuple[str, str], str]:
        return {key: finding.status.value for key, finding in self.bad(about, changed).items()}

    def one(self, about: Cluster, changed: Iterable[Seen] = ()) -> Finding:
        """The only finding that did not pass."""
        [finding] = self.bad(about, changed).values()
        return finding

    def probe(self, about: Cluster, kind: type[Probe]) -> Any:
        return next(probe for probe in planned(about) if isinstance(probe, kind))


def three(**namespaces: dict[str, Any]) -> Cluster:
    """Three nodes, of which those named have that namespace instead."""
    return cluster(*(answer(report(node, namespaces.get(node, served(node)))) for node in NODES))


class HealthyTests(Case):
    def test_everything_passes(self) -> None:
        """Of a healthy cluster all checks of the contract are there, and pass."""
        found = self.inspect(cluster())
        self.assertEqual({each.status for each in found}, {Status.PASS})
        places = {(each.id, each.node) for each in found}
        for node in NODES:
            self.assertIn(("ns.alpha.sfu_up", node), places)
            self.assertIn((f"node.{node}.reachable", ""), places)
            self.assertIn((f"node.{node}.clock", ""), places)
            self.assertIn((f"node.{node}.prerequisite.rqlite", ""), places)
        for node in TURN:
            for check in ("turn_up", "certificate", "ports"):
                self.assertIn((f"ns.alpha.{check}", node), places)
        self.assertNotIn(("ns.alpha.turn_up", "n3"), places)
        for check in ("sfu_coverage", "turn_coverage", "secret", "dns"):
            self.assertIn((f"ns.alpha.{check}", ""), places)
        self.assertEqual(failed(found), 0)

    def test_not_enabled(self) -> None:
        """Nothing is wanted of a namespace without WebRTC, so nothing of it is checked."""
        off = {"enabled": False, "roles": [], "sfu_up": False, "turn_up": False, "secret": None}
        about = three(**{node: served(node, **off) for node in NODES})
        self.assertEqual([each for each in self.inspect(about) if each.namespace], [])
        self.assertEqual(planned(about), ())

    def test_probes_once(self) -> None:
        """Two namespaces on the same nodes share the look at ports, and have names and certificates of their own."""
        about = cluster(*(answer(report(node, served(node), served(node, "beta"))) for node in NODES))
        found = planned(about)
        self.assertEqual(len(found), len(set(found)))
        self.assertEqual(sum(isinstance(probe, ReachProbe) for probe in found), 2 * 3)
        self.assertEqual(sum(isinstance(probe, CertificateProbe) for probe in found), 2 * 2)
        self.assertEqual(sum(isinstance(probe, DnsProbe) for probe in found), 2 * 3)


class NodeTests(Case):
    def test_unreachable(self) -> None:
        """A node that does not answer fails, and so does what it may have to do."""
        about = cluster(answer(report("n1")), answer(report("n2")), silent("n3"))
        self.assertEqual(
            self.statuses(about),
            {
                ("node.n3:6002.reachable", ""): "fail",
                ("ns.alpha.sfu_up", "n3:6002"): "fail",
                ("ns.alpha.sfu_coverage", ""): "fail",
            },
        )
        self.assertIn("connection refused", self.bad(about)["node.n3:6002.reachable", ""].message)

    def test_named(self) -> None:
        """Whom the others know to have a role fails by its name, also where nobody thought of asking it."""
        said = {"sfu_nodes": list(NODES), "turn_nodes": ["n1", "n3"]}
        told = [answer(report("n1", served("n1", **said))), answer(report("n2", served("n2", roles=["sfu"], **said)))]
        for about in (cluster(*told, silent("n3")), cluster(*told)):
            found = self.statuses(about)
            self.assertEqual(found["ns.alpha.sfu_up", "n3"], "fail")
            self.assertEqual(found["ns.alpha.turn_up", "n3"], "fail")

    def test_replaced(self) -> None:
        """When others have taken over what a dead node did, only the node itself fails."""
        wanted = {"sfu_wanted": 2}
        about = cluster(*(answer(report(node, served(node, **wanted))) for node in TURN), silent("n3"))
        self.assertEqual(self.statuses(about), {("node.n3:6002.reachable", ""): "fail"})

    def test_nobody(self) -> None:
        """A cluster of which nobody answers fails."""
        self.assertEqual(failed(inspect(cluster(*map(silent, NODES)), ())), 3)

    def test_not_ready(self) -> None:
        """A node that is not ready fails with its reason."""
        about = cluster(answer(report("n1", ready="waits for RQLite")), *(answer(report(n)) for n in ("n2", "n3")))
        finding = self.one(about)
        self.assertEqual((finding.id, finding.status), ("node.n1.ready", Status.FAIL))
        self.assertEqual(finding.message, "waits for RQLite")

    def test_draining(self) -> None:
        """A node that was told to drain is a warning."""
        for state in ("draining", "drained"):
            value = report("n3", state=state, ready="the node is draining")
            about = cluster(answer(report("n1")), answer(report("n2")), answer(value))
            self.assertEqual(self.statuses(about), {("node.n3.ready", ""): "warn"})

    def test_clock(self) -> None:
        """A clock that is off by more than 2 s is a warning, by more than 10 s a failure, in either direction."""
        for skew, status in ((2.0, None), (2.1, "warn"), (-10.0, "warn"), (10.1, "fail"), (-11.0, "fail")):
            about = cluster(answer(report("n1"), skew), answer(report("n2")), answer(report("n3")))
            expected = {} if status is None else {("node.n1.clock", ""): status}
            self.assertEqual(self.statuses(about), expected, skew)

    def test_clock_of_who_refuses(self) -> None:
        """Of a node that refuses us because its clock is wrong, that is said."""
        about = cluster(*(answer(report(node)) for node in TURN), evolve(silent("n3"), skew=99.0))
        self.assertEqual(self.statuses(about)["node.n3:6002.clock", ""], "fail")

    def test_version(self) -> None:
        """A node with another version than most is a warning."""
        about = cluster(answer(report("n1", version="0.9")), answer(report("n2")), answer(report("n3")))
        self.assertEqual(self.statuses(about), {("node.n1.version", ""): "warn"})

    def test_prerequisites(self) -> None:
        """What is required and away fails, what is not required is a warning."""
        for required, status in ((True, "fail"), (False, "warn")):
            value = report("n1")
            value["prerequisites"] = [{"name": "olric", "ok": False, "required": required, "detail": "refused"}]
            about = cluster(answer(value), answer(report("n2")), answer(report("n3")))
            self.assertEqual(self.statuses(about), {("node.n1.prerequisite.olric", ""): status})

    def test_firewall(self) -> None:
        """A firewall that could not be written fails, one that is not there is a warning."""
        for state, status in (("failed", "fail"), ("unavailable", "warn"), ("off", None)):
            value = report("n1")
            value["firewall"] = {"state": state, "detail": "", "rules": []}
            about = cluster(answer(value), answer(report("n2")), answer(report("n3")))
            self.assertEqual(self.statuses(about), {} if status is None else {("node.n1.firewall", ""): status})

    def test_dns_server(self) -> None:
        """A DNS server that should listen and does not fails."""
        value = report("n1")
        value["dns"] = {"listening": False, "zone": "", "error": "port 53 is in use"}
        about = cluster(answer(value), answer(report("n2")), answer(report("n3")))
        self.assertEqual(self.statuses(about), {("node.n1.dns", ""): "fail"})

    def test_one_node_twice(self) -> None:
        """Two machines with one identity fail."""
        about = cluster(*(answer(report(node)) for node in ("n1", "n1", "n2", "n3")))
        self.assertEqual(self.statuses(about), {("node.n1.unique", ""): "fail"})


class ServiceTests(Case):
    def test_down(self) -> None:
        """A service that shall run and does not fails on that node, and in the coverage."""
        about = three(n1=served("n1", sfu_up=False, error="port 30000 is in use"))
        found = self.bad(about)
        self.assertEqual(set(found), {("ns.alpha.sfu_up", "n1"), ("ns.alpha.sfu_coverage", "")})
        self.assertEqual({each.status for each in found.values()}, {Status.FAIL})
        self.assertIn("port 30000 is in use", found["ns.alpha.sfu_up", "n1"].message)
        self.assertIn("2 of 3", found["ns.alpha.sfu_coverage", ""].message)

    def test_all_down(self) -> None:
        """A namespace of which nothing runs at all is not one that was not wanted."""
        about = three(**{node: served(node, sfu_up=False, turn_up=False) for node in NODES})
        found = self.statuses(about)
        self.assertEqual({found["ns.alpha.sfu_up", node] for node in NODES}, {"fail"})
        self.assertEqual({found["ns.alpha.turn_up", node] for node in TURN}, {"fail"})
        self.assertEqual(found["ns.alpha.sfu_coverage", ""], "fail")
        self.assertEqual(found["ns.alpha.turn_coverage", ""], "fail")

    def test_no_role(self) -> None:
        """Fewer nodes with a role than wanted fail the coverage although each of them is up."""
        about = three(n2=served("n2", roles=["sfu"], turn_up=False))
        self.assertEqual(self.statuses(about)["ns.alpha.turn_coverage", ""], "fail")

    def test_leftover(self) -> None:
        """What runs and is not wanted is a warning, and counts for nothing."""
        about = three(n3=served("n3", turn_up=True))
        self.assertEqual(self.statuses(about), {("ns.alpha.leftover", "n3"): "warn"})

    def test_going(self) -> None:
        """Where WebRTC is being disabled, what has not ended yet is a warning, and what has ended is none."""
        going = {"enabled": False, "sfu_wanted": 0, "turn_wanted": 0}
        about = three(
            n1=served("n1", **going),
            n2=served("n2", **going, sfu_up=False, turn_up=False),
            n3=served("n3", **going, sfu_up=False, roles=[]),
        )
        self.assertEqual(self.statuses(about), {("ns.alpha.leftover", "n1"): "warn"})

    def test_error_beside_it(self) -> None:
        """A trouble of a node whose services run is a warning."""
        about = three(n3=served("n3", error="the DNS row could not be written"))
        self.assertEqual(self.statuses(about), {("ns.alpha.error", "n3"): "warn"})

    def test_agreement(self) -> None:
        """Nodes that want different things of a namespace fail."""
        about = three(n3=served("n3", enabled=False, roles=[], sfu_up=False))
        self.assertEqual(self.statuses(about)["ns.alpha.agreement", ""], "fail")

    def test_secret(self) -> None:
        """Secrets that differ fail, and so does a TURN server without one."""
        for secret in ("ffffffff", None):
            self.assertEqual(
                self.statuses(three(n2=served("n2", secret=secret))), {("ns.alpha.secret", ""): "fail"}, secret
            )


class DnsTests(Case):
    def seen(self, *addresses: str, error: str = "") -> dict[tuple[str, str], Finding]:
        about = cluster()
        probe = self.probe(about, DnsProbe)
        return self.bad(about, [Resolved(probe, frozenset(addresses), error)])

    def test_missing_address(self) -> None:
        """A TURN node that is up and is not named fails."""
        finding = self.seen(NODES["n1"])["ns.alpha.dns", ""]
        self.assertEqual(finding.status, Status.FAIL)
        self.assertIn(f"does not name {NODES['n2']}", finding.message)

    def test_dead_address(self) -> None:
        """An address where no TURN runs fails."""
        finding = self.seen(NODES["n1"], NODES["n2"], "203.0.113.9")["ns.alpha.dns", ""]
        self.assertIn("names 203.0.113.9, where no TURN is known to run", finding.message)

    def test_no_answer(self) -> None:
        """A server that does not answer fails, also when others do."""
        self.assertIn("no answer", self.seen(error="no answer in time")["ns.alpha.dns", ""].message)

    def test_nothing_up(self) -> None:
        """Names of TURN nodes that are all down fail."""
        about = three(**{node: served(node, turn_up=False) for node in TURN})
        self.assertEqual(self.statuses(about)["ns.alpha.dns", ""], "fail")

    def test_draining(self) -> None:
        """A TURN node that drains may be named or not."""
        draining = answer(report("n2", state="draining"))
        about = cluster(answer(report("n1")), draining, answer(report("n3")))
        probe = self.probe(about, DnsProbe)
        for named in (["n1"], ["n1", "n2"]):
            seen = [Resolved(probe, frozenset(NODES[node] for node in named))]
            self.assertNotIn(("ns.alpha.dns", ""), self.statuses(about, seen))

    def test_named_servers(self) -> None:
        """Servers that were named to us are asked instead of those of the nodes, for the domain that was named."""
        about = evolve(cluster(), servers=(Address("192.0.2.53", 53),), base_domain="other.example")
        [probe] = [probe for probe in planned(about) if isinstance(probe, DnsProbe)]
        self.assertEqual((str(probe.server), probe.host), ("192.0.2.53:53", "turn.ns-alpha.other.example"))

    def test_nobody_serves(self) -> None:
        """A domain that nobody is known to serve is a warning; without a domain there is nothing to ask."""
        for zone, expected in (("orama.example", {("ns.alpha.dns", ""): "warn"}), ("", {})):
            values = [report(node) for node in NODES]
            for value in values:
                value["dns"] = {"listening": False, "zone": zone, "error": None}
            self.assertEqual(self.statuses(cluster(*map(answer, values))), expected)

    def test_spelling(self) -> None:
        """IPv6 addresses are the same in every spelling."""
        value = report("n1", public_ip="2001:DB8:0::1")
        about = cluster(answer(value), answer(report("n2")), answer(report("n3")))
        probes = [probe for probe in planned(about) if isinstance(probe, DnsProbe)]
        self.assertTrue(all(probe.ipv6 for probe in probes))
        seen = [Resolved(probe, frozenset({"2001:db8::1", NODES["n2"]})) for probe in probes]
        self.assertEqual(self.statuses(about, seen), {})


class CertificateTests(Case):
    def seen(self, **changes: Any) -> Finding:
        about = cluster()
        probe = self.probe(about, CertificateProbe)
        return self.one(about, [Certified(probe, **{"certificate": certificate(probe.host), **changes})])

    def test_dates(self) -> None:
        """Less than 21 days left is a warning that says how many; none left is a failure."""
        host = "turn.ns-alpha.orama.example"
        soon = self.seen(certificate=certificate(host, days=20))
        self.assertEqual(soon.status, Status.WARN)
        self.assertIn("20 days left", soon.message)
        over = self.seen(certificate=certificate(host, days=-1))
        self.assertEqual(over.status, Status.FAIL)
        self.assertIn("expired", over.message)

    def test_names(self) -> None:
        """A certificate for another name is a failure."""
        finding = self.seen(certificate=certificate("", names=["turn.ns-beta.orama.example"]))
        self.assertEqual(finding.status, Status.FAIL)
        self.assertIn("turn.ns-beta.orama.example", finding.message)

    def test_trust(self) -> None:
        """What browsers would refuse is a warning, with what the node has to say about it."""
        self.assertEqual(self.seen(self_signed=True, distrust="self-signed certificate").status, Status.WARN)
        self.assertEqual(self.seen(distrust="unable to get issuer").status, Status.WARN)
        value = report("n1")
        host = "turn.ns-alpha.orama.example"
        value["certificates"] = [{"host": host, "source": "self-signed", "error": "caddy does not answer"}]
        about = cluster(answer(value), answer(report("n2")), answer(report("n3")))
        probe = self.probe(about, CertificateProbe)
        finding = self.one(about, [Certified(probe, certificate(host), True)])
        self.assertIn("caddy does not answer", finding.message)

    def test_no_tls(self) -> None:
        """No handshake is a failure."""
        finding = self.seen(certificate=None, error="connection refused")
        self.assertEqual(finding.status, Status.FAIL)
        self.assertIn("connection refused", finding.message)

    def test_without_domain(self) -> None:
        """Without a domain the certificate is for the public address."""
        values = [report(node) for node in NODES]
        for value in values:
            value["dns"] = {}
        probe = self.probe(cluster(*map(answer, values)), CertificateProbe)
        self.assertEqual(probe.host, NODES["n1"])


class PortTests(Case):
    def test_closed(self) -> None:
        """A port that does not answer at the public address fails, by its number."""
        about = cluster()
        probe = next(each for each in planned(about) if isinstance(each, ReachProbe) and each.proto == "udp")
        finding = self.one(about, [Reached(probe, "no answer in time")])
        self.assertEqual((finding.id, finding.node, finding.status), ("ns.alpha.ports", "n1", Status.FAIL))
        self.assertIn("3478/udp", finding.message)

    def test_not_listening(self) -> None:
        """A listener that a TURN node does not have fails, with the certificate that nobody can be shown."""
        value = report("n1")
        value["listeners"] = [each for each in value["listeners"] if each["name"] != "turns"]
        about = cluster(answer(value), answer(report("n2")), answer(report("n3")))
        self.assertEqual(
            self.statuses(about), {("ns.alpha.ports", "n1"): "fail", ("ns.alpha.certificate", "n1"): "fail"}
        )

    def test_nobody_looked(self) -> None:
        """What was to be looked at and was not is a failure, never passed over."""
        found = inspect(cluster(), ())
        self.assertEqual(
            {each.id for each in found if each.status is Status.FAIL},
            {"ns.alpha.dns", "ns.alpha.certificate", "ns.alpha.ports"},
        )


class SelectionTests(Case):
    def test_namespace(self) -> None:
        """One namespace comes with whether the nodes answer, and nothing of others."""
        about = cluster(*(answer(report(node, served(node), served(node, "beta"))) for node in TURN), silent("n3"))
        found = inspect(about, healthy(planned(about, "beta")).values(), "beta")
        self.assertEqual({each.namespace for each in found}, {"", "beta"})
        self.assertEqual({each.id.rpartition(".")[2] for each in found if not each.namespace}, {"reachable"})
        self.assertEqual(sum(each.id.endswith(".reachable") for each in found), 3)

    def test_patterns(self) -> None:
        """Checks are chosen by id, exactly or by pattern."""
        found = self.inspect(cluster())
        self.assertEqual({each.id for each in selected(found, ["ns.alpha.sfu_up"])}, {"ns.alpha.sfu_up"})
        self.assertEqual(
            {each.id for each in selected(found, ["*.secret", "ns.*.dns"])}, {"ns.alpha.secret", "ns.alpha.dns"}
        )
        self.assertEqual(selected(found, ["sfu_up"]), ())
        self.assertEqual(selected(found, []), found)


# -- nothing that is wanted and missing passes ------------------------------------------------------

#: What can be wrong with one node of a namespace.
_WRONGS = st.sampled_from(["silent", "sfu_down", "turn_down", "not_ready", "prerequisite", "secret", "no_role", "fine"])


@st.composite
def troubled(draw: st.DrawFn) -> tuple[Cluster, bool]:
    """A cluster of one to three nodes, and whether anything that is wanted of it is missing."""
    nodes = draw(st.lists(st.sampled_from(list(NODES)), min_size=1, unique=True))
    sfu_wanted, turn_wanted = draw(st.integers(0, 3)), draw(st.integers(0, 2))
    answers: list[Answer] = []
    up = {"sfu": 0, "turn": 0}
    wrong = False
    secrets: set[str] = set()
    for node in nodes:
        fate = draw(_WRONGS)
        if fate == "silent":
            answers.append(silent(node))
            wrong = True
            continue
        roles = [] if fate == "no_role" else [role for role in ("sfu", "turn") if draw(st.booleans())]
        running = {role: role in roles and fate != f"{role}_down" for role in up}
        secret = "ffffffff" if fate == "secret" else "0123abcd"
        one = served(
            node,
            roles=roles,
            sfu_wanted=sfu_wanted,
            turn_wanted=turn_wanted,
            sfu_up=running["sfu"],
            turn_up=running["turn"],
            secret=secret,
        )
        secrets.add(secret)
        value = report(node, one, ready="starting" if fate == "not_ready" else "")
        value["prerequisites"][0]["ok"] = fate != "prerequisite"
        wrong |= fate in ("not_ready", "prerequisite") or any(not running[role] for role in roles)
        for role in roles:
            up[role] += running[role]
        answers.append(answer(value))
    if len(answers) > sum(each.report is None for each in answers):
        wrong |= up["sfu"] < sfu_wanted or up["turn"] < turn_wanted or len(secrets) > 1
    return cluster(*answers), wrong


@st.composite
def seen_of(draw: st.DrawFn, about: Cluster) -> tuple[list[Seen], bool]:
    """What is seen of a cluster, and whether anything that is wanted is missing in it."""
    up = frozenset(r.public_ip for r, s in about.holders("alpha", "turn") if s.turn_up)
    seen: list[Seen] = []
    wrong = False
    for probe in planned(about):
        bad = draw(st.booleans()) and draw(st.booleans())
        wrong |= bad
        if isinstance(probe, DnsProbe):
            other = draw(st.sampled_from([up | {"203.0.113.1"}, *(up - {ip} for ip in sorted(up))]))
            seen.append(Resolved(probe, other if bad else up))
        elif isinstance(probe, CertificateProbe):
            made = draw(st.sampled_from([None, certificate(probe.host, -1), certificate("x.example")])) if bad else None
            seen.append(Certified(probe, made if bad else certificate(probe.host)))
        elif not bad:
            seen.append(Reached(probe))
        elif draw(st.booleans()):
            seen.append(Reached(probe, "connection refused"))
    return seen, wrong


class NothingIsSkippedTests(SynchronousTestCase):
    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_wanted_and_missing(self, data: st.DataObject) -> None:
        """No cluster in which something is wanted and missing comes out well, and one in which nothing is does."""
        about, wrong = data.draw(troubled())
        seen, unseen = data.draw(seen_of(about))
        self.assertEqual(failed(inspect(about, seen)) > 0, wrong or unseen)

"""What a node can be told: one frozen tree of values, each with its default.

``tap`` reads it from the command line and a TOML file through :func:`load`; every other part gets
the branch it needs as an argument. ``etc/orama.toml`` documents each key; a test holds the two
against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from attrs import evolve, field, fields, frozen, has

from orama import configuration


@frozen
class NamespaceTurnSettings:
    """``[turn.namespaces.NAME]``: what is different for one namespace.

    The peers are in addition to those of ``[turn]``; a number of None is the one of ``[turn]``.
    """

    allowed_peers: tuple[str, ...] = ()
    denied_peers: tuple[str, ...] = ()
    allocations_per_user: int | None = None
    allocations_per_namespace: int | None = None
    bandwidth_per_user: int | None = None
    bandwidth_per_namespace: int | None = None


@frozen
class TurnSettings:
    """``[turn]``: the TURN server. Times are in seconds, rates in bytes per second."""

    #: Address that relays are allocated on; empty means the node's internal address.
    relay_ip: str = ""
    #: An IPv6 address for relays beside an IPv4 one, for clients that ask for both or for that; empty is none.
    relay_ip6: str = ""
    relay_ports: tuple[int, int] = (49152, 65535)
    relay_block: int = 800
    #: Lifetime of the credentials that REST and signalling give out.
    credential_ttl: int = 600
    #: Longest lifetime one Allocate or Refresh can get (RFC 8656, 7.2 allows any maximum).
    max_lifetime: int = 3600
    #: Total age up to which the same user may refresh an allocation after its credential expired.
    max_age: int = 86400
    #: CIDRs that relays may reach beside the SFU addresses of their own namespace.
    allowed_peers: tuple[str, ...] = ()
    #: CIDRs that no relay may reach, whatever else is allowed; SFU addresses too.
    denied_peers: tuple[str, ...] = ()
    #: What is different for single namespaces.
    namespaces: Mapping[str, NamespaceTurnSettings] = field(factory=dict)
    #: Make TCP allocations (RFC 6062): relays then open TCP connections to their peers, and take theirs.
    tcp_relays: bool = False
    #: Let an allocation follow its client to another address (RFC 8016).
    mobility: bool = True
    #: Namespace of user names that are an expiry alone; empty refuses them.
    default_namespace: str = "default"
    allocations_per_user: int = 32
    allocations_per_namespace: int = 800
    #: 0 means no limit.
    bandwidth_per_user: int = 0
    bandwidth_per_namespace: int = 0
    #: Unauthenticated answers a second to one source address, and how many may come at once.
    unauthenticated_rate: int = 100
    unauthenticated_burst: int = 400
    #: The same for the sources of one /24 of IPv4 or one /48 of IPv6 together.
    unauthenticated_prefix_rate: int = 1000
    unauthenticated_prefix_burst: int = 4000
    #: A challenge over UDP offers keys of SHA-256 when it is fewer than so many times as long as its request.
    unauthenticated_amplification: float = 2.0
    nonce_lifetime: int = 3600
    #: CIDRs of proxies whose TCP and TLS connections begin with a header of the PROXY protocol.
    proxy_protocol_from: tuple[str, ...] = ()
    #: TURN servers ("192.0.2.7:3478") that clients are sent to while this node drains, beside those of the cluster.
    alternate_servers: tuple[str, ...] = ()
    #: PEM files for the TLS listener; empty means a self-signed certificate in the data directory.
    certificate: str = ""
    private_key: str = ""
    #: Use UDP_GRO and UDP_SEGMENT where the kernel has them.
    offload: bool = True
    #: Seconds that packets may wait for others while they come by the thousand; 0 waits for none.
    coalescing: float = 0.00025
    #: Processes that serve TURN, the node's own among them; 0 is one for each core.
    workers: int = 1


@frozen
class SfuSettings:
    """``[sfu]``: forwarding and rooms."""

    media_ports: tuple[int, int] = (20000, 29999)
    media_block: int = 500
    #: Relay addresses of TURN servers in other processes that may reach the SFU ("10.0.0.2").
    relay_addresses: tuple[str, ...] = ()
    max_participants: int = 100
    #: Seconds that an empty room stays, and that a peer without a signalling socket keeps its media.
    empty_room_timeout: float = 60.0
    resume_timeout: float = 15.0
    #: Seconds without a valid connectivity check after which a peer is gone.
    media_timeout: float = 30.0
    #: Seconds to wait for the answer to an offer of ours before offering again.
    offer_timeout: float = 5.0
    #: Highest video bitrate asked of a publisher, bits per second (b=AS and REMB cap); 0 means none.
    max_bitrate: int = 0
    #: Let what a client receives follow an estimate of what its link takes; the highest such estimate, bits per second
    #: on the wire, 0 for no limit but the usual one.
    estimate: bool = True
    max_estimate: int = 0
    #: Microphones of a room whose sound is forwarded where more are there: the loudest; 0 means all.
    loudest: int = 4
    #: Tracks that one client may publish.
    max_tracks: int = 32
    #: Processes that share the rooms of each namespace on a node; 0 is one for each core.
    workers: int = 1


@frozen
class SignalingSettings:
    """``[signaling]``: the WebSocket."""

    ports: tuple[int, int] = (30000, 30099)
    max_frame: int = 65536
    #: Messages a second from one client, and how many may come at once.
    message_rate: int = 50
    message_burst: int = 200
    join_timeout: float = 10.0
    ping_interval: float = 20.0
    ping_timeout: float = 10.0
    #: Bytes that may wait for a slow reader before it is dropped.
    send_queue: int = 1048576
    #: Seconds that peers get to leave when the node drains.
    drain_deadline: float = 30.0


@frozen
class LimitSettings:
    """``[limits]``: what HTTP takes and from whom."""

    #: Origins (scheme://host[:port]) that may call from a browser, beside our own; "*" is any.
    origins: tuple[str, ...] = ()
    max_body: int = 65536
    #: Requests a second from one address, and how many may come at once.
    request_rate: int = 50
    request_burst: int = 200


@frozen
class AuthSettings:
    """``[auth]``: whose tokens are good, beside the node's own."""

    #: PEM files with public keys (Ed25519, P-256 or RSA).
    jwt_keys: tuple[str, ...] = ()
    jwks_file: str = ""
    #: Longest life of a token from ``orama token issue``, seconds.
    max_token_ttl: int = 86400


@frozen
class WebSettings:
    """``[web]``: the room page."""

    room_page: bool = True
    #: Give a browser on this very machine a member token for ``default`` without a key.
    local_guests: bool = True


@frozen
class ClusterSettings:
    """``[cluster]``: this node among others. Times are in seconds."""

    #: Node-to-node HTTP on the internal address; 0 is 6002 when that is free, else any free port.
    port: int = 0
    #: Where browsers reach this node's gateway ("https://n1.example"); empty derives it from the HTTP endpoints.
    url: str = ""
    #: A node is dead before the second heartbeat without one is over.
    heartbeat: float = 1.5
    #: Silence after which the roles of a dead node move.
    replace_after: float = 15.0
    #: Nodes per namespace that forward media, and that relay it; never more than there are.
    sfu_nodes: int = 3
    turn_nodes: int = 2
    #: "inline"; "processes": the SFU of each namespace as a child; or "systemd": namespaces as units.
    runner: str = "inline"
    #: What must be there before WebRTC is: "http://10.0.0.1:4001", "10.0.0.1:3320", "http://10.0.0.1:6001".
    rqlite: str = ""
    olric: str = ""
    gateway: str = ""


@frozen
class DnsSettings:
    """``[dns]``: the authoritative server for the base domain."""

    #: Address and port for UDP and TCP ("0.0.0.0:53"); empty is no DNS server.
    listen: str = ""
    #: Names of the NS records; empty is ns1.BASE, ns2.BASE, one a node.
    nameservers: tuple[str, ...] = ()
    #: RNAME of the SOA record as a domain name; empty is hostmaster.BASE.
    contact: str = ""


@frozen
class CertificateSettings:
    """``[certificates]``: where those of the TURN hosts come from, beside ``turn.certificate``."""

    #: NAME.crt and NAME.key, as lego leaves them, are taken from here.
    directory: str = ""
    #: A block per TURN host is kept in this file; empty is no Caddy.
    caddyfile: str = ""
    caddy_storage: str = "/var/lib/caddy/.local/share/caddy"
    #: What stands inside ``tls { }`` of such a block.
    caddy_tls: str = ""
    caddy_reload: tuple[str, ...] = ("caddy", "reload", "--config", "{caddyfile}")
    #: Seconds that Caddy gets to obtain a certificate before the status says that it has none.
    caddy_timeout: float = 120.0


@frozen
class FirewallSettings:
    """``[firewall]``"""

    #: "auto", "off" or "require".
    ufw: str = "auto"


@frozen
class NamespaceWebhookSettings:
    """``[webhooks.namespaces.NAME]``: what is different for one namespace; None is as in ``[webhooks]``."""

    #: Empty tells nobody of this namespace.
    url: str | None = None
    secret: str | None = None
    events: tuple[str, ...] | None = None


@frozen
class WebhookSettings:
    """``[webhooks]``: who is told what happens in rooms. Times are in seconds."""

    #: Where events are posted to; empty is nowhere.
    url: str = ""
    #: Key of the signature that every event carries.
    secret: str = ""
    #: Names of the events that are told; none named is all of them.
    events: tuple[str, ...] = ()
    #: For a whole answer.
    timeout: float = 10.0
    #: Until an event that nobody took is tried again the first time; it doubles from there to five minutes.
    retry: float = 1.0
    #: How long such an event is tried again.
    keep: float = 86400.0
    #: What is different for single namespaces.
    namespaces: Mapping[str, NamespaceWebhookSettings] = field(factory=dict)


@frozen
class Settings:
    """Everything. The top-level keys are the command-line options."""

    data_dir: Path = Path("orama-data")
    #: SQLAlchemy URL; empty means SQLite in the data directory.
    database: str = ""
    #: Twisted endpoint strings.
    http: tuple[str, ...] = ("tcp:6001:interface=127.0.0.1",)
    public_ip: str = "127.0.0.1"
    internal_ip: str = "127.0.0.1"
    turn_port: int = 3478
    turns_port: int = 5349
    base_domain: str = ""
    #: "text" or "json".
    log_format: str = "text"
    turn: TurnSettings = field(factory=TurnSettings)
    sfu: SfuSettings = field(factory=SfuSettings)
    signaling: SignalingSettings = field(factory=SignalingSettings)
    limits: LimitSettings = field(factory=LimitSettings)
    auth: AuthSettings = field(factory=AuthSettings)
    web: WebSettings = field(factory=WebSettings)
    cluster: ClusterSettings = field(factory=ClusterSettings)
    dns: DnsSettings = field(factory=DnsSettings)
    certificates: CertificateSettings = field(factory=CertificateSettings)
    firewall: FirewallSettings = field(factory=FirewallSettings)
    webhooks: WebhookSettings = field(factory=WebhookSettings)

    @property
    def realm(self) -> str:
        """The TURN realm: the base domain, or ``orama`` without one."""
        return self.base_domain or "orama"

    @property
    def is_alone(self) -> bool:
        """Whether there can be no other nodes: nothing is shared with them, and nobody told them of a port."""
        return not (self.database or self.base_domain or self.cluster.port)

    @property
    def relay_ip(self) -> str:
        return self.turn.relay_ip or self.internal_ip


def load(config: Path | None = None, options: Mapping[str, Any] | None = None) -> Settings:
    """Read the settings of a node.

    :param config: TOML file, None for the defaults alone.
    :param options: top-level keys that were given on the command line; they win over the file.
    :raises ConfigurationError: one line that names the file or option, the key and why.
    """
    settings = configuration.read(Settings, config, options or {})
    return evolve(
        settings,
        data_dir=settings.data_dir.absolute(),
        public_ip=_canonical(settings.public_ip),
        internal_ip=_canonical(settings.internal_ip),
        turn=evolve(
            settings.turn,
            relay_ip=_canonical(settings.turn.relay_ip),
            relay_ip6=_canonical(settings.turn.relay_ip6),
        ),
        sfu=evolve(settings.sfu, relay_addresses=tuple(map(_canonical, settings.sfu.relay_addresses))),
    )


def _canonical(ip: str) -> str:
    """The spelling that :data:`orama.net.fabric.Address` uses."""
    return str(ip_address(ip)) if ip else ""


#: What a running node takes over when its configuration is read again; a name with ``*`` is a whole table.
LIVE = frozenset(
    {
        "auth.*",
        "limits.*",
        "web.*",
        "webhooks.*",
        "turn.allowed_peers",
        "turn.denied_peers",
        "turn.namespaces",
        "turn.allocations_per_user",
        "turn.allocations_per_namespace",
        "turn.bandwidth_per_user",
        "turn.bandwidth_per_namespace",
        "turn.unauthenticated_rate",
        "turn.unauthenticated_burst",
        "turn.unauthenticated_prefix_rate",
        "turn.unauthenticated_prefix_burst",
        "turn.proxy_protocol_from",
        "turn.alternate_servers",
        "signaling.message_rate",
        "signaling.message_burst",
        "signaling.join_timeout",
        "signaling.ping_interval",
        "signaling.ping_timeout",
        "signaling.send_queue",
        "signaling.drain_deadline",
    }
)


def reloaded(running: Settings, read: Settings) -> tuple[Settings, tuple[str, ...]]:
    """*running* with what can be taken over from *read*, and the changed keys that wait for the next start."""
    waiting: list[str] = []
    tables: dict[str, Any] = {}
    for top in fields(Settings):
        old, new = getattr(running, top.name), getattr(read, top.name)
        if not has(type(old)):
            waiting += [top.name] if old != new else []
            continue
        taken = {}
        for each in fields(type(old)):
            key, value = f"{top.name}.{each.name}", getattr(new, each.name)
            if value != getattr(old, each.name):
                if key in LIVE or f"{top.name}.*" in LIVE:
                    taken[each.name] = value
                else:
                    waiting.append(key)
        tables[top.name] = evolve(old, **taken)
    return evolve(running, **tables), tuple(waiting)

"""Secrets stay where they belong: a whole run, every secret that it knows, and all that it has written."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from threading import Thread
from typing import Any

from aiortc import RTCPeerConnection
from twisted.trial.unittest import SynchronousTestCase
from websocket import WebSocket, create_connection

from orama.cli.control import Control
from orama.wire import stun
from orama.wire.stun import Class, Message, Method
from tests.node import PATIENCE, NodeProcess

WEBHOOK_SECRET = "9f" * 20
#: Events go where nobody listens, which is worth a line in the log.
CONFIG = f"""
[turn]
credential_ttl = 20
[webhooks]
url = "http://127.0.0.1:9/hook?key=hidden-in-the-address"
secret = "{WEBHOOK_SECRET}"
"""


class SecretsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.secrets = {"webhook secret": WEBHOOK_SECRET, "key of the webhook": "hidden-in-the-address"}
        directory = Path(mkdtemp(prefix="orama-"))
        self.addCleanup(rmtree, directory)
        self.node = NodeProcess(directory, "--log-format", "json", config=CONFIG).start()
        self.addCleanup(self.node.stop)

    def test_whole_run(self) -> None:
        """No key, token, secret, password or session description is in any log, on stderr, or in /metrics;
        the database holds neither keys nor TURN secrets in the clear."""
        self.use_control()
        self.use_rest()
        self.use_signalling()
        self.use_turn()
        metrics = self.node.request("GET", "/metrics")[1].decode()
        self.node.signal(1)
        self.node.wait_for("read again")
        self.assertEqual(self.node.stop(), 0)
        self.assertGreater(len(self.secrets), 12)
        for place, text in (("log", "\n".join(self.node.output)), ("stderr", self.node.errors), ("metrics", metrics)):
            self.assertEqual([name for name, secret in self.secrets.items() if secret in text], [], place)
        stored = b"".join(file.read_bytes() for file in self.node.data.glob("orama.db*"))
        names = ("owner key", "member key", "token", "TURN secret")
        self.assertEqual([name for name in names if self.secrets[name].encode() in stored], [])

    def use_control(self) -> None:
        control = Control(self.node.data)
        self.secrets["owner key"] = self.node.key
        self.secrets["member key"] = control.post("keys", {"namespace": "default", "role": "member"})["api_key"]
        issued = control.post("tokens", {"namespace": "default", "user_id": "ada", "role": "owner"})
        self.secrets["token"] = issued["token"]
        self.secrets["TURN secret"] = control.get("turn/secret", {"namespace": "default"})["secret"]
        granted = control.post("turn/credentials", {"namespace": "default"})
        self.secrets["TURN password from the control socket"] = granted["password"]
        control.post("namespaces", {"name": "passing"})
        control.delete("namespaces", {"name": "passing"})
        for name, line in (("cluster.key", 0), ("token.key", 1), ("certificates/self-signed.key", 1)):
            self.secrets[name] = (self.node.data / name).read_text().splitlines()[line]

    def use_rest(self) -> None:
        for name in ("owner key", "member key"):
            self.node.request("GET", "/v1/webrtc/rooms", headers={"X-API-Key": self.secrets[name]})
            self.node.request("GET", "/v1/webrtc/rooms", headers={"Authorization": f"ApiKey {self.secrets[name]}"})
            self.node.request("POST", "/v1/namespace/webrtc/enable", headers={"X-API-Key": self.secrets[name]})
        token = self.secrets["token"]
        self.node.request("GET", "/v1/webrtc/rooms", headers={"Authorization": f"Bearer {token}"})
        self.secrets["wrong key"] = f"ak_{'wrong' * 8}:default"
        self.secrets["wrong token"] = token[:-9] + "wrongwron"
        answers = [
            self.node.request("GET", "/v1/webrtc/rooms", headers={"X-API-Key": self.secrets["wrong key"]}),
            self.node.request(
                "GET", "/v1/webrtc/rooms", headers={"Authorization": f"Bearer {self.secrets['wrong token']}"}
            ),
            self.node.request("GET", f"/v1/webrtc/rooms?api_key={self.secrets['owner key']}", headers={}),
            self.node.request("GET", f"/nothing?token={token}", headers={"Authorization": f"Odd {token}"}),
            self.node.request("POST", "/v1/webrtc/rooms", {"room_id": self.secrets["owner key"] + "/"}),
        ]
        self.assertEqual([status for status, _ in answers], [401, 401, 401, 404, 400])
        for _, body in answers:
            self.assertEqual([name for name, secret in self.secrets.items() if secret in body.decode()], [])
        self.secrets["TURN password"] = self.node.credentials()["password"]

    def use_signalling(self) -> None:
        address = f"ws://{self.node.authority}/v1/webrtc/signal?room=r"
        for query, headers, protocols in (
            (f"&api_key={self.secrets['owner key']}", [], []),
            (f"&token={self.secrets['token']}", [], []),
            ("", [], ["orama", f"auth.{self.secrets['token']}"]),
            ("", [f"X-API-Key: {self.secrets['member key']}"], []),
        ):
            client = create_connection(address + query, header=headers, subprotocols=protocols, timeout=PATIENCE)
            self.talk(client, f"{query} {headers} {protocols}"[:20])
            client.close()
        for query in (f"&api_key={self.secrets['wrong key']}", f"&token={self.secrets['wrong token']}"):
            client = create_connection(address + query, timeout=PATIENCE)
            self.assertEqual(client.recv_data()[1][:2], (4401).to_bytes(2, "big"))
            client.close()

    def talk(self, client: WebSocket, name: str) -> None:
        """A client that publishes, goes wrong, and comes back."""
        client.send(json.dumps({"type": "join", "metadata": {"name": "ada"}, "userId": "ada"}))
        welcome = self.heard(client, "welcome")
        self.secrets[f"resume {name}"] = welcome["resume"]
        self.secrets[f"TURN password over {name}"] = self.heard(client, "turn-credentials")["password"]
        sdp = _offer()
        self.secrets[f"ICE password of {name}"] = _line(sdp, "a=ice-pwd:")
        client.send(json.dumps({"type": "offer", "sdp": sdp}))
        answer = self.heard(client, "answer")
        self.secrets[f"our ICE password for {name}"] = _line(answer["sdp"], "a=ice-pwd:")
        client.send(json.dumps({"type": "offer", "sdp": sdp[:200]}))
        self.heard(client, "error")
        client.send(json.dumps({"type": "join", "resume": welcome["resume"]}))
        self.heard(client, "error")
        client.send('{"type": "' + self.secrets["owner key"] + '"}')
        error = self.heard(client, "error")
        self.assertNotIn(self.secrets["owner key"], json.dumps(error))

    def heard(self, client: WebSocket, kind: str) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = json.loads(client.recv())
            if message["type"] == kind:
                return message

    def use_turn(self) -> None:
        granted = self.node.credentials()
        username, password = granted["username"], granted["password"]
        port = int(granted["uris"][0].split("?")[0].rpartition(":")[2])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.connect(("127.0.0.1", port))
            for secret, expected in ((password, Class.SUCCESS), ("wrong" + password[5:], Class.ERROR)):
                self.secrets[f"TURN password {expected.name}"] = secret
                answer = _allocate(client, username, secret)
                self.assertEqual(answer.cls, expected)


def _allocate(client: socket.socket, username: str, password: str) -> Message:
    def ask(*attributes: Any, key: bytes | None = None) -> Message:
        request = (stun.REQUESTED_TRANSPORT, 17), *attributes
        client.send(stun.build(Method.ALLOCATE, Class.REQUEST, os.urandom(12), request, key=key))
        return stun.parse(client.recv(2048))

    challenge = ask()
    realm, nonce = challenge.get(stun.REALM) or "", challenge.get(stun.NONCE)
    key = stun.long_term_key(username, realm, password)
    return ask((stun.USERNAME, username), (stun.REALM, realm), (stun.NONCE, nonce), key=key)


def _offer() -> str:
    """A real offer, of aiortc on a loop of its own."""

    async def make() -> None:
        connection = RTCPeerConnection()
        connection.addTransceiver("audio")
        connection.createDataChannel("chat")
        await connection.setLocalDescription(await connection.createOffer())
        offers.append(connection.localDescription.sdp)
        await connection.close()

    offers: list[str] = []
    thread = Thread(target=lambda: asyncio.run(make()))
    thread.start()
    thread.join(PATIENCE)
    return offers[0]


def _line(sdp: str, start: str) -> str:
    lines: Iterator[str] = (line.removeprefix(start) for line in sdp.splitlines() if line.startswith(start))
    return next(lines).strip()

/**
 * The room page: where it begins, which screen it shows, and what lets the person in.
 *
 * Address: `?room=` `&name=` `&join=1` (no lobby) `&transport=udp|tcp|tls`, and `#key=` or `#token=`, which
 * leave the address bar at once. Without a key or token the server is asked for a guest's.
 * @module room
 */

import { Call } from "./call.js";
import { captureBoth, choice } from "./devices.js";
import { Lobby } from "./lobby.js";
import { explain, toast } from "./notices.js";
import { Room } from "./orama-webrtc.js";

const query = new URLSearchParams(location.search);
const page = { room: query.get("room") ?? "", name: query.get("name") ?? choice.get("name") };
const lobby = new Lobby((entry) => enter(entry));
const call = new Call(() => room?.leave());
let access = takeAccess();
let room = null;

/** The key or token of the address, or what this tab was given before. */
function takeAccess() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const given = { apiKey: fragment.get("key"), token: fragment.get("token") };
  if (given.apiKey || given.token) {
    history.replaceState(null, "", location.pathname + location.search);
    sessionStorage.setItem("orama.access", JSON.stringify(given));
    return given;
  }
  return JSON.parse(sessionStorage.getItem("orama.access") ?? "null");
}

/** A member's token for a browser on the server's own machine; null where guests are not taken. */
async function guestToken() {
  const response = await fetch("/v1/webrtc/guest", { method: "POST" }).catch(() => null);
  return response?.ok ? (await response.json()).token : null;
}

async function findAccess(key) {
  if (key) {
    access = key.startsWith("ak_") ? { apiKey: key } : { token: key };
    sessionStorage.setItem("orama.access", JSON.stringify(access));
  }
  if (access) return access;
  let first = await guestToken();
  if (!first) return null;
  access = {
    token: async () => {
      const token = first ?? (await guestToken());
      first = null;
      return token;
    },
  };
  return access;
}

function show(screen) {
  for (const id of ["lobby", "call", "ended"]) document.getElementById(id).hidden = id !== screen;
  document.body.dataset.screen = screen;
}

async function openLobby(problem = "", refused = false) {
  show("lobby");
  document.title = page.room ? `${page.room} · Orama` : "Orama room";
  const needsKey = refused || !(await findAccess());
  await lobby.show({ ...page, problem, needsKey });
}

/** Joins; the devices follow when the browser has asked for them. */
async function enter({ room: roomId, name, key = "", media = null }) {
  Object.assign(page, { room: roomId, name });
  if (!(await findAccess(key))) {
    await openLobby("This server wants a key or a token.", true);
    return;
  }
  const transport = query.get("transport") ?? undefined;
  const mine = new Room({ room: roomId, ...access, metadata: { name }, transport });
  const end = {};
  mine.addEventListener("kicked", () => (end.title = "You were removed from the room"));
  mine.addEventListener("room-closed", () => (end.title = "The room was closed"));
  mine.addEventListener("error", ({ detail: { error } }) => (end.error = error));
  room = mine;
  window.room = mine; // for the console
  show("call");
  call.open(mine, name);
  try {
    await mine.join();
  } catch (error) {
    room = null;
    call.close();
    media?.then(({ video, audio }) => [video, audio].forEach((track) => track?.stop()));
    const refused = error.code === "not_authenticated";
    if (refused) forgetAccess();
    await openLobby(explain(error), refused);
    return;
  }
  mine.addEventListener("state", ({ detail }) => detail.state === "closed" && ended(mine, end));
  document.title = `${roomId} · Orama`;
  history.replaceState(null, "", `?${new URLSearchParams({ ...Object.fromEntries(query), room: roomId })}`);
  const { problem, ...tracks } = await (media ?? lobby.hand());
  if (mine.state === "closed") Object.values(tracks).forEach((track) => track?.stop());
  else call.publish(tracks);
  if (problem) toast(problem);
}

function forgetAccess() {
  access = null;
  sessionStorage.removeItem("orama.access");
}

function ended(which, { title = "You left the room", error }) {
  if (room !== which) return;
  room = null;
  call.close();
  show("ended");
  const fatal = error?.fatal && title === "You left the room";
  document.getElementById("ended-title").textContent = fatal ? "The call has ended" : title;
  document.getElementById("ended-text").textContent = fatal ? explain(error) : `Room ${page.room}`;
  document.getElementById("ended-title").focus();
}

document.getElementById("again").addEventListener("click", () => enter({ ...page, media: captureBoth() }));
document.getElementById("back").addEventListener("click", () => openLobby());
window.addEventListener("pagehide", () => room?.leave());
const height = query.get("height");
if (height) choice.set("height", height);
if (query.get("join") === "1" && page.room) enter({ ...page, name: page.name || "Guest", media: captureBoth() });
else openLobby();

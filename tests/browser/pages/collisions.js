/**
 * A WebSocket that makes offers collide: it holds the SFU's next offer until the client's has gone, or the
 * client's until the SFU's has come.
 */
export class Collisions {
  /** How many offers have met so far. */
  count = 0;
  #hold = null;
  #waiting = [];
  #told = null;

  /** The next WebSocket is one of these. */
  install() {
    const collisions = this;
    const Plain = globalThis.WebSocket;
    globalThis.WebSocket = class extends Plain {
      constructor(...how) {
        super(...how);
        globalThis.WebSocket = Plain;
      }

      set onmessage(listener) {
        super.onmessage = (event) => collisions.#incoming(event, listener);
      }

      send(text) {
        collisions.#outgoing(text, () => super.send(text));
      }
    };
    return this;
  }

  /**
   * Holds the next `incoming` or `outgoing` offer, and what comes after it that way, until one goes the
   * other way. Settles once it is held.
   */
  arm(way) {
    this.#hold = way;
    return new Promise((resolve) => (this.#told = resolve));
  }

  #passes(way, text, go) {
    const offer = JSON.parse(text).type === "offer";
    if (this.#hold === way && (offer || this.#waiting.length)) {
      this.#waiting.push(go);
      this.#told();
      return;
    }
    go();
    if (offer && this.#waiting.length) {
      this.#hold = null;
      this.count += 1;
      for (const next of this.#waiting.splice(0)) next();
    }
  }

  #incoming(event, listener) {
    this.#passes("incoming", event.data, () => listener(event));
  }

  #outgoing(text, send) {
    this.#passes("outgoing", text, send);
  }
}

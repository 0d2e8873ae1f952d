/**
 * headkv-server as a child process of this program. Node 18 or later; Electron's main process too. No packages.
 *
 * The server watches its standard input, which this process holds open. So it ends with this process, whether
 * that returns, throws, or is killed, and there is nothing to clean up.
 */

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { EventEmitter, once } from "node:events";
import http from "node:http";
import { createInterface } from "node:readline";
import { json } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * Events: "log" (line) for each line of the server's standard error, "exit" (code, signal) when it has ended,
 * asked to or not. After that, start() may be called again.
 */
export class HeadkvServer extends EventEmitter {
  /** Address and key, for other clients: the openai package with baseURL `${url}/v1`, or a page. */
  url = null;
  apiKey = randomBytes(24).toString("hex"); // no other program on this machine may use the server

  #settings;
  #child = null;
  #ended; // promise of the Error that says why the child has ended; it never rejects

  /**
   * @param {string[]} args of headkv-server: the model's file, which may be left out, and options
   * @param {{command?: string, env?: object}} options command: the program's path, if it is not on the PATH;
   *   env: more of the server's environment
   */
  constructor(args = [], { command = "headkv-server", env = {} } = {}) {
    super();
    this.#settings = { args, command, env };
  }

  /** Resolves with /health's answer once the model is loaded. Rejects with the server's own words if it ends. */
  async start() {
    if (this.#child) throw new Error("the server runs already");
    const { args, command, env } = this.#settings;
    const child = spawn(command, [...args, "--port", "0", "--stop-with-stdin"], {
      env: { ...process.env, ...env, HEADKV_SERVER_API_KEY: this.apiKey }, // others can see a command line
      windowsHide: true,
    });
    this.#child = child;
    let lastLine = "";
    this.#ended = new Promise((resolve) => {
      const end = (reason) => {
        if (this.#child === child) this.#child = this.url = null; // before anybody is told, who may start it again
        resolve(reason);
      };
      child.once("error", end); // there is no such program
      child.once("close", (code, signal) => {
        const killed = signal && `headkv-server was ended by ${signal}`; // which its last line does not tell
        const said = [killed, lastLine].filter(Boolean).join("; its last line: ");
        end(new Error(said || `headkv-server has ended: ${code}`));
        this.emit("exit", code, signal);
      });
    });
    await once(child, "spawn");
    child.stdin.on("error", () => {}); // it has ended before its input was closed
    createInterface({ input: child.stderr }).on("line", (line) => this.emit("log", (lastLine = line)));
    const output = createInterface({ input: child.stdout });
    const [line] = await this.#unlessEnded(once(output, "line"));
    this.url = line.split(" ").at(-1);
    try {
      for (;;) {
        const health = await this.#unlessEnded(this.health().catch((error) => this.#unlessClosed(error)));
        if (health?.status === "ok") return health;
        await sleep(100);
      }
    } catch (error) {
      if (this.#child === child) await this.stop();
      throw error;
    }
  }

  /** {status: "loading", "ok" or "stopping", version, model}. */
  async health() {
    return json(await this.#request("GET", "/health"));
  }

  /**
   * The chunks of an answer, as OpenAI's API has them; the last one has no choices, and `usage`. Leave the loop,
   * or abort `signal`, and the server stops at once, also while it reads the prompt.
   *
   * @param {object[]} messages the whole conversation: what the server has read before is not read again
   * @param {object} fields of the request: max_tokens, budget, ...; and signal, an AbortSignal
   */
  async *chat(messages, { signal, ...fields } = {}) {
    const body = { messages, stream: true, stream_options: { include_usage: true }, ...fields };
    try {
      const response = await this.#request("POST", "/v1/chat/completions", { body, signal });
      if (response.statusCode !== 200) throw refusal((await json(response)).error);
      let rest = "";
      for await (const piece of response.setEncoding("utf8")) {
        const lines = (rest + piece).split("\n");
        rest = lines.pop();
        for (const line of lines.filter((line) => line.startsWith("data: "))) {
          if (line === "data: [DONE]") return;
          const chunk = JSON.parse(line.slice("data: ".length));
          if (chunk.error) throw refusal(chunk.error);
          yield chunk;
        }
      }
    } catch (error) {
      signal?.throwIfAborted(); // rather than the connection's error
      throw error;
    }
    throw new Error("the answer has no end: the server has stopped");
  }

  /** Resolves when the server has saved its conversation and ended. It is killed if that takes too long. */
  async stop(milliseconds = 30_000) {
    const child = this.#child;
    if (!child) return;
    child.stdin?.end();
    const timer = setTimeout(() => child.kill("SIGKILL"), milliseconds);
    await this.#ended;
    clearTimeout(timer);
  }

  #unlessEnded(promise) {
    const end = this.#ended.then((reason) => {
      throw reason;
    });
    return Promise.race([promise, end]);
  }

  /** Where a connection is closed the server is about to end, and says why. */
  #unlessClosed(error) {
    if (this.url && !["ECONNREFUSED", "ECONNRESET", "EPIPE"].includes(error.code)) throw error;
  }

  /** node:http and not fetch, which gives up on a request that waits for five minutes. */
  #request(method, path, { body, signal } = {}) {
    if (!this.url) return Promise.reject(new Error("the server does not run"));
    const headers = { Authorization: `Bearer ${this.apiKey}`, "Content-Type": "application/json" };
    return new Promise((resolve, reject) => {
      http
        .request(this.url + path, { method, headers, signal, agent: false }, resolve)
        .on("error", reject)
        .end(body && JSON.stringify(body));
    });
  }
}

/** An Error with OpenAI's fields: message, type, param, code. */
function refusal(fields) {
  return Object.assign(new Error(fields.message), fields);
}

// Stops answers in each way that there is; what test_node.py expects of it is printed.

import { HeadkvServer } from "../../examples/node/server.mjs";

const server = new HeadkvServer([process.env.MODEL, "--ctx", "8192", "--threads", "1"]);
const messages = [{ role: "user", content: "hello" }];
const endless = { max_tokens: 8000, logit_bias: { 97: 100 }, logit_bias_type: "tokens" };
await server.start();

async function metric(name) {
  const headers = { Authorization: `Bearer ${server.apiKey}` };
  const text = await (await fetch(`${server.url}/metrics`, { headers })).text();
  return Number(text.match(new RegExp(`^${name} (\\S+)$`, "m"))[1]);
}

async function until_idle() {
  while ((await metric("headkv_requests_running")) > 0);
}

if ((await fetch(`${server.url}/v1/models`)).status === 401) console.log("a key is needed");

let chunks = 0;
for await (const _ of server.chat(messages, endless)) if (++chunks === 10) break;
await until_idle();
console.log("the loop is left");

const abort = new AbortController();
try {
  for await (const _ of server.chat(messages, { ...endless, signal: abort.signal })) abort.abort();
} catch (error) {
  await until_idle();
  console.log(error.name);
}
console.log("generated", await metric('headkv_tokens_total{kind="generated"}'));

const long = [{ role: "user", content: "hello ".repeat(10_000) }];
await server.chat(long).next().catch((error) => console.log(error.code));

const answer = server.chat(messages, endless);
await answer.next();
const stopped = server.stop();
try {
  for await (const _ of answer);
} catch (error) {
  console.log("stopped:", error.message);
}
await stopped;
await server.chat(messages).next().catch((error) => console.log(error.message));

console.log((await server.start()).status); // a second time
await server.stop();

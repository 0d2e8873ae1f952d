/**
 * Start a server, ask about a document, ask again, stop an answer in the middle, stop the server.
 *
 *     node examples/node/main.mjs [MODEL.gguf]
 *
 * headkv-server has to be on the PATH (PATH="$PWD/.venv/bin:$PATH" after make install).
 */

import { readFileSync } from "node:fs";
import { HeadkvServer } from "./server.mjs";

const document = new URL("../../python/headkv_local/demo/document.txt", import.meta.url);
const text = readFileSync(document, "utf8").slice(0, 4000);
const messages = [];

const server = new HeadkvServer([...process.argv.slice(2), "--ctx", "8192"]);
server.on("log", (line) => console.error(line));
server.on("exit", (code) => console.log(`the server has ended with ${code}`));

async function ask(question) {
  messages.push({ role: "user", content: question });
  let content = "";
  let usage;
  for await (const chunk of server.chat(messages, { max_tokens: 60, temperature: 0 })) {
    const piece = chunk.choices[0]?.delta.content ?? "";
    process.stdout.write(piece);
    content += piece;
    usage = chunk.usage ?? usage;
  }
  messages.push({ role: "assistant", content });
  const held = usage.prompt_tokens_details.cached_tokens;
  console.log(`\n[${usage.prompt_tokens} tokens, ${held} of them not read again]`);
}

async function askForAMoment(question) {
  let content = "";
  for await (const chunk of server.chat([...messages, { role: "user", content: question }])) {
    content += chunk.choices[0]?.delta.content ?? "";
    if (content.length > 40) break; // or abort the signal of chat(): the server stops
  }
  console.log(`stopped after '${content}'`);
}

const { model } = await server.start().catch((error) => {
  console.error(error.code === "ENOENT" ? "headkv-server is not on the PATH" : `no server: ${error.message}`);
  process.exit(1);
});
console.log(`${model} at ${server.url}`);
try {
  await ask([
    { type: "text", text, document: true },
    { type: "text", text: "What is the name of the harbour master?" },
  ]);
  await ask("In which year was the lamp of the lighthouse first lit?");
  await askForAMoment("Describe the harbour.");
} finally {
  await server.stop(); // without this, node waits for the server; if node ends, so does the server
}

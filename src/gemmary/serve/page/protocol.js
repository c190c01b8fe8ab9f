// SPDX-License-Identifier: Apache-2.0
/** What the page asks the server: JSON, and OpenAI's chat protocol as a stream of chunks; with a key if need be. */

import { phrase } from "./words.js";

const KEY = "gemmary.key";
let asking = null; // the promise of a key that is being typed

/** Ask the server. Throws an Error whose message is for the reader; what was aborted throws what `fetch` throws. */
export async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw options.signal?.aborted ? error : new Error(phrase("The server cannot be reached: is it running?"));
  });
  if (response.status === 401) {
    if (sessionStorage.getItem(KEY) === key) await (asking ??= askForKey(key).finally(() => (asking = null)));
    return call(path, options);
  }
  if (!response.ok) throw new Error(await reason(response));
  return response;
}

/** Ask for JSON; send some, or files, where there is a body. */
export async function json(path, body) {
  return (await call(path, body === undefined ? {} : posted(body))).json();
}

/** The chunks of a streamed chat completion, one after the other. */
export async function* chat(body, signal) {
  const response = await call("v1/chat/completions", { ...posted(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new Error(phrase("The connection ended before the reply did: try again."));
    const events = (rest + value).split(/\r?\n\r?\n/);
    rest = events.pop();
    for (const data of events.flatMap((event) => event.match(/^data: ?(.*)/m)?.[1] ?? [])) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

function posted(body) {
  if (body instanceof FormData) return { method: "POST", body };
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
}

async function reason(response) {
  if (response.status === 429) {
    const seconds = response.headers.get("Retry-After") ?? "1";
    return phrase("The server is busy: try again in {seconds} s.", { seconds });
  }
  const said = await response.json().catch(() => null); // a proxy's error is no JSON
  const status = `${response.status}`;
  return said?.error?.message ?? phrase("The server answered with {status}: try again.", { status });
}

/** Let the reader type a key, which this tab keeps. */
async function askForKey(refused) {
  const dialog = document.getElementById("key");
  document.getElementById("key-refused").hidden = refused === null;
  dialog.querySelector("form").reset();
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  if (dialog.returnValue !== "given") throw new Error(phrase("An API key is needed to go on."));
  sessionStorage.setItem(KEY, document.getElementById("key-text").value.trim());
}

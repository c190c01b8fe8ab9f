// SPDX-License-Identifier: Apache-2.0
/** The chat page: a conversation, its list, and the keys.
 *
 *     page.js ─┬─► reply.js ────────┬─► protocol.js ─► the server
 *              ├─► panel.js ────────┘
 *              └─► conversations.js ─► the browser's storage        words.js: phrases, for all
 *
 * The address says which conversation is shown: #id, or nothing for a new one.
 */

import { all, begun, find, keep, remove, settings, store, title } from "./conversations.js";
import { fields, openPanel, showDocuments } from "./panel.js";
import { chat, json } from "./protocol.js";
import { hideAlternatives, Reply } from "./reply.js";
import { language, made, phrase, say, speak } from "./words.js";

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 56rem)");
const page = {
  conversation: begun(),
  follows: true, // whether the end of the conversation stays in sight
  running: null, // the AbortController of the reply that is being written
  edited: null, // which message is being written again
  model: null, // as the server describes it
};

/** Send what is in the box and write the reply. */
async function send() {
  const content = $("message").value.trim();
  if (!content || page.running) return;
  const { messages } = page.conversation;
  messages.splice(page.edited ?? messages.length, Infinity, { role: "user", content });
  showFrom(messages.length - 1);
  edit(null);
  await answer();
}

/** Stop the reply that is being written; what there is of it stays. */
function stop() {
  page.running?.abort();
  page.running = null;
}

/** Write the last reply again. */
async function retry() {
  const { messages } = page.conversation;
  messages.pop();
  showFrom(messages.length);
  await answer();
}

/** Have the model reply to the conversation. */
async function answer() {
  const { conversation } = page;
  const { messages } = conversation;
  const request = { messages: spoken(messages), ...fields() };
  const message = { role: "assistant", content: "", tokens: [], seed: request.seed };
  messages.push(message);
  history.replaceState(null, "", `#${conversation.id}`);
  showFrom(messages.length - 1);
  const { reply } = page;
  const running = (page.running = new AbortController());
  drawState();
  save(conversation, reply);
  await write(reply, request, running.signal);
  if (page.running === running) page.running = null;
  reply.isBusy = false;
  drawState();
  save(conversation, reply);
}

/** Let a reply grow by what the server sends. */
async function write(reply, request, signal) {
  const asked = { stream: true, stream_options: { include_usage: true }, logprobs: true, top_logprobs: 5 };
  reply.isBusy = true;
  try {
    const { id } = await model();
    for await (const chunk of chat({ model: id, ...request, ...asked }, signal)) {
      reply.take(chunk);
    }
    say($("announcer"), "The reply is complete: {text}", { text: reply.message.content });
  } catch (error) {
    if (signal.aborted) reply.message.end = "stopped";
    else reply.fail(error.message);
  }
}

/** The messages as the protocol has them: the system text first, empty replies left out. */
function spoken(messages) {
  const system = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  return [...system, ...messages.filter(({ content }) => content).map(({ role, content }) => ({ role, content }))];
}

/** The model that the server offers. */
async function model() {
  page.model ??= (await json("v1/models")).data[0];
  $("model").textContent = page.model.id;
  return page.model;
}

/** Store a conversation, unless it was deleted while its reply was written. */
function save(conversation, reply) {
  if (conversation.isDeleted) return;
  if (!store(conversation)) reply.fail(phrase("The browser's storage is full: delete conversations to keep new ones."));
  drawList();
}

/** Show the conversation's messages anew from the one at an index. */
function showFrom(index) {
  const views = page.conversation.messages.map((message, at) =>
    at < index ? $("list").children[at] : message.role === "user" ? question(message, at) : replyView(message),
  );
  $("list").replaceChildren(...views);
  drawState();
  goToEnd();
}

function question(message, index) {
  const element = made("question-template");
  element.querySelector(".content").textContent = message.content;
  element.querySelector(".edit").addEventListener("click", () => edit(index));
  return element;
}

function replyView(message) {
  const reply = new Reply(message, Boolean(settings.tokens));
  page.reply = reply; // the last one is the one that grows
  const on = (name, act) => reply.element.querySelector(name).addEventListener("click", act);
  on(".show-tokens", ({ target }) => {
    keep({ tokens: target.ariaPressed !== "true" });
    reply.showTokens(settings.tokens);
  });
  on(".retry", retry);
  reply.element.querySelector(".copy").hidden = !navigator.clipboard; // which is for https and loopback
  on(".copy", async ({ target }) => {
    await navigator.clipboard.writeText(message.content);
    say(target, "Copied");
    setTimeout(() => say(target, "Copy"), 1500);
  });
  return reply.element;
}

/** Put a message back into the box, or with null empty the box. */
function edit(index) {
  page.edited = index;
  $("editing").hidden = index === null;
  $("message").value = index === null ? "" : page.conversation.messages[index].content;
  fit();
  $("message").focus();
}

/** Show the conversation that the address names. */
function navigate() {
  stop();
  page.conversation = find(location.hash.slice(1)) ?? begun();
  showFrom(0);
  drawList();
  edit(null);
}

function drawState() {
  const { messages } = page.conversation;
  const usage = messages.findLast((message) => message.usage)?.usage;
  document.body.dataset.state = page.running ? "busy" : "idle";
  say($("send"), page.running ? "Stop" : "Send", {}, "aria-label");
  $("welcome").hidden = messages.length > 0;
  $("context").hidden = !usage || !page.model?.max_length;
  if ($("context").hidden) return;
  const used = usage.prompt_tokens + usage.completion_tokens;
  $("context-meter").max = page.model.max_length;
  $("context-meter").value = used;
  say($("context-text"), "Context {used} / {length}", { used, length: page.model.max_length });
}

function drawList() {
  $("conversations").replaceChildren(...all().map((conversation) => {
    const item = document.createElement("li");
    const [link, button] = ["a", "button"].map((tag) => item.appendChild(document.createElement(tag)));
    link.href = `#${conversation.id}`;
    link.textContent = link.title = title(conversation);
    if (conversation.id === page.conversation.id) link.ariaCurrent = "page";
    button.className = "remove";
    button.textContent = "×";
    say(button, "Delete {title}", { title: title(conversation) }, "aria-label");
    button.addEventListener("click", () => forget(conversation));
    return item;
  }));
}

function forget({ id }) {
  if (!confirm(phrase("Delete this conversation?"))) return;
  remove(id);
  if (id === page.conversation.id) {
    page.conversation.isDeleted = true;
    location.hash = "";
  }
  drawList();
  $("message").focus();
}

function goToEnd() {
  page.follows = true;
  $("messages").scrollTop = $("messages").scrollHeight;
}

/** After the reader has scrolled, new text keeps the end in sight only where it was in sight. */
function onScroll({ target }) {
  page.follows = target.scrollHeight - target.scrollTop - target.clientHeight < 80;
  hideAlternatives();
}

/** Make the box as high as its text. */
function fit() {
  $("message").style.height = "auto";
  $("message").style.height = `${$("message").scrollHeight}px`;
}

/** Fold a side away or bring it out; where there is little room it lies over the conversation. */
function fold(id, folded) {
  const had = $(id).contains(document.activeElement);
  $(id).hidden = folded;
  $(`${id}-button`).ariaExpanded = !folded;
  if (narrow.matches && !folded) $(id).querySelector("a, input").focus();
  else if (had) $(`${id}-button`).focus();
}

/** Fold both sides away, but for the list of conversations where there is room. */
function foldAll() {
  fold("history", narrow.matches);
  fold("panel", true);
}

function applyTheme() {
  const preferred = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  document.documentElement.dataset.theme = settings.theme || preferred;
}

function switchTheme() {
  keep({ theme: document.documentElement.dataset.theme === "dark" ? "light" : "dark" });
  applyTheme();
}

function applyLanguage() {
  speak(settings.language || (navigator.language.startsWith("zh") ? "zh" : "en"));
  $("language").textContent = language() === "zh" ? "English" : "中文";
}

function switchLanguage() {
  keep({ language: language() === "zh" ? "en" : "zh" });
  applyLanguage();
}

function onKey(event) {
  const composes = event.isComposing || event.keyCode === 229; // Enter ends a word of an input method; Safari's is 229
  if (event.key === "Enter" && event.target === $("message") && !event.shiftKey && !composes) {
    event.preventDefault();
    send();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    hideAlternatives();
    if (page.running) stop();
    else if (page.edited !== null) edit(null);
    else if (narrow.matches) foldAll();
  }
}

async function start() {
  applyTheme();
  applyLanguage();
  openPanel();
  foldAll();
  $("theme").addEventListener("click", switchTheme);
  $("language").addEventListener("click", switchLanguage);
  $("keep").addEventListener("click", () => edit(null));
  $("message").addEventListener("input", fit);
  $("messages").addEventListener("scroll", onScroll);
  const observer = new ResizeObserver(() => page.follows && goToEnd());
  for (const id of ["list", "messages"]) observer.observe($(id));
  $("backdrop").addEventListener("click", foldAll);
  $("history").addEventListener("click", ({ target }) => narrow.matches && target.closest("a") && foldAll());
  narrow.addEventListener("change", foldAll);
  for (const id of ["history", "panel"]) $(`${id}-button`).addEventListener("click", () => fold(id, !$(id).hidden));
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (page.running) stop();
    else send();
  });
  document.addEventListener("keydown", onKey);
  addEventListener("hashchange", navigate);
  addEventListener("pagehide", () => page.running && store(page.conversation));
  addEventListener("storage", drawList);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
  navigate();
  try {
    await model();
    await showDocuments();
  } catch (error) {
    say($("model"), error.message);
  }
  drawState();
}

start();

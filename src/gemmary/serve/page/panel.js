// SPDX-License-Identifier: Apache-2.0
/** The panel at the side: how replies are sampled, and the documents they may be answered from. */

import { DEFAULTS, keep, settings } from "./conversations.js";
import { call, json } from "./protocol.js";
import { say } from "./words.js";

const $ = (id) => document.getElementById(id);

/** Connect the panel's controls with the settings. */
export function openPanel() {
  const form = $("sampling");
  form.addEventListener("input", ({ target }) => {
    if (target.validity.valid) keep({ [target.name]: target.type === "range" ? Number(target.value) : target.value });
    drawValues(form);
  });
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    keep(DEFAULTS);
    fill(form);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  fill(form);
  $("answer-from-documents").addEventListener("change", ({ target }) => {
    keep({ documents: target.checked });
    drawSwitch();
  });
  $("files").addEventListener("change", ({ target }) => add(target));
}

/** Show the documents, unless the server has none to offer. */
export async function showDocuments() {
  $("documents").hidden = !(await draw(json("documents")));
  drawSwitch();
}

/** The settings as fields of a request; without a seed of the reader's own, one is drawn. */
export function fields() {
  const numbers = Object.keys(DEFAULTS).filter((name) => !["system", "seed"].includes(name));
  const [drawn] = crypto.getRandomValues(new Uint32Array(1));
  return {
    ...Object.fromEntries(numbers.map((name) => [name, Number(settings[name])])),
    seed: settings.seed === "" ? drawn : Number(settings.seed),
    documents: asksDocuments(),
  };
}

function fill(form) {
  for (const name of Object.keys(DEFAULTS)) form.elements[name].value = settings[name];
  drawValues(form);
}

function drawValues(form) {
  for (const value of form.querySelectorAll(".value")) value.textContent = value.nextElementSibling.value;
}

const asksDocuments = () => Boolean(settings.documents) && !$("documents").hidden;

function drawSwitch() {
  $("answer-from-documents").checked = asksDocuments();
  $("from-documents").hidden = !asksDocuments();
}

/** Send the files that were chosen. */
async function add(input) {
  const body = new FormData();
  for (const file of input.files) body.append("files", file);
  say($("document-news"), "Reading the files …");
  input.disabled = true;
  await draw(json("documents", body));
  input.disabled = false;
  input.value = "";
}

async function remove(id) {
  await draw(call(`documents/${encodeURIComponent(id)}`, { method: "DELETE" }).then((response) => response.json()));
  $("files").focus();
}

/** Show the documents that an answer lists, and what it or its failure says. @returns {Promise<boolean>} success */
async function draw(answer) {
  try {
    const { documents, refused = [] } = await answer;
    $("document-list").replaceChildren(...(documents.length ? documents.map(entry) : [nothing()]));
    say($("document-news"), refused.map(({ name, reason }) => `${name}: ${reason}`).join("\n"));
    return true;
  } catch (error) {
    say($("document-news"), error.message);
    return false;
  }
}

function nothing() {
  const item = document.createElement("li");
  say(item, "No documents yet: text, Markdown or PDF");
  item.className = "nothing";
  return item;
}

function entry({ id, name, passages, bytes }) {
  const item = document.createElement("li");
  const [title, size, button] = ["span", "small", "button"].map((tag) => item.appendChild(document.createElement(tag)));
  title.textContent = title.title = name;
  say(size, "{passages} passages, {size} KB", { passages, size: Math.ceil(bytes / 1024) });
  button.type = "button";
  button.className = "remove";
  button.textContent = "×";
  say(button, "Remove {name}", { name }, "aria-label");
  button.addEventListener("click", () => remove(id));
  return item;
}

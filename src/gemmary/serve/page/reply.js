// SPDX-License-Identifier: Apache-2.0
/** One reply on the page, growing by chunks: shown as HTML, which the server makes of Markdown, or as its tokens. */

import { json } from "./protocol.js";
import { phrase, say, made } from "./words.js";

const PAUSE = 200; // milliseconds between two renderings of a reply that grows

/** A message of the assistant and its element. `message` is changed as chunks come. */
export class Reply {
  #rendered = null; // the text whose HTML is shown; null before there is any
  #rendering = null; // the promise of a rendering
  #first = 0; // when the first token came
  #count = 0; // tokens so far
  #showsTokens;

  /** @param {import("./conversations.js").Message} message */
  constructor(message, showsTokens) {
    this.message = message;
    this.#showsTokens = showsTokens;
    this.element = made("reply-template");
    this.#part("tokens").addEventListener("keydown", (event) => this.#walk(event));
    for (const token of message.tokens ?? []) this.#addToken(token);
    this.#draw();
  }

  /** Take in what a chunk of the protocol says. */
  take(chunk) {
    const { message } = this;
    const [choice] = chunk.choices ?? [];
    const tokens = (choice?.logprobs?.content ?? []).map(compact);
    message.content += choice?.delta?.content ?? "";
    message.tokens.push(...tokens);
    tokens.forEach((token) => this.#addToken(token));
    if (tokens.length || choice?.delta?.content) {
      this.#first ||= performance.now();
      this.#count += tokens.length || 1;
    }
    if (chunk.citations) message.citations = chunk.citations;
    if (choice?.finish_reason === "length") message.end = "length";
    if (chunk.usage) message.usage = chunk.usage;
    const seconds = chunk.timings?.decode_seconds || (performance.now() - this.#first) / 1000;
    message.rate = this.#count > 1 && seconds > 0 ? (this.#count - 1) / seconds : undefined;
    this.#draw();
  }

  /** Show what went wrong. */
  fail(reason) {
    this.message.error = reason;
    this.#draw();
  }

  /** Show that the reply is being written, or is not any more. */
  set isBusy(busy) {
    this.element.setAttribute("aria-busy", busy);
    this.#draw();
  }

  /** Show the reply as tokens, where it has some, or as text. */
  showTokens(shows) {
    this.#showsTokens = shows;
    this.#draw();
  }

  #part(name) {
    return this.element.querySelector(`.${name}`);
  }

  #draw() {
    const { message } = this;
    const hasTokens = message.tokens?.length > 0;
    this.#rendering ??= this.#render().finally(() => (this.#rendering = null));
    this.#part("tokens").hidden = !(hasTokens && this.#showsTokens);
    this.#part("content").hidden = hasTokens && this.#showsTokens;
    this.#part("show-tokens").hidden = !hasTokens;
    this.#part("show-tokens").ariaPressed = this.#showsTokens;
    this.#part("error").hidden = !message.error;
    this.#part("error").textContent = message.error ?? "";
    this.#drawCitations(message.citations ?? []);
    this.#drawCost();
  }

  /** Show the content: at first as plain text, then as the server's HTML, again and again until nothing is new. */
  async #render() {
    const place = this.#part("content");
    while (this.#rendered !== this.message.content) {
      const text = this.message.content;
      if (this.#rendered === null) place.textContent = text;
      try {
        place.innerHTML = (await json("page/markup", { text })).html;
        linkCitations(place, this.message.citations ?? []);
      } catch {
        place.textContent = text; // readable without the server's help too
      }
      this.#rendered = text;
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }

  #drawCitations(citations) {
    const list = this.#part("citations");
    if (list.children.length === citations.length) return;
    list.hidden = !citations.length;
    list.replaceChildren(...citations.map((citation) => {
      const item = document.createElement("li");
      const place = document.createElement("small");
      say(place, ...lines(citation));
      item.append(citationButton(citation, `[${citation.number}] ${citation.document}`), place);
      return item;
    }));
  }

  #drawCost() {
    const { usage, rate, seed, end, tokens } = this.message;
    const count = usage?.completion_tokens ?? tokens?.length;
    const parts = [
      rate && ["{rate} tokens/s", { rate: Number(rate.toPrecision(3)) }],
      count && ["{count} tokens", { count }],
      count && seed !== undefined && ["seed {seed}", { seed: `${seed}` }],
      end === "length" && ["cut at the most tokens", {}],
      end === "stopped" && ["stopped", {}],
    ];
    this.#part("cost").replaceChildren(...parts.filter(Boolean).map(([english, values]) => {
      const element = document.createElement("span");
      say(element, english, values);
      return element;
    }));
  }

  #addToken([text, probability, alternatives]) {
    const list = this.#part("tokens");
    const token = document.createElement("span");
    token.className = "token";
    token.textContent = text.replaceAll("\n", "↵\n");
    token.tabIndex = list.children.length ? -1 : 0;
    token.role = "option";
    token.ariaLabel = `${text}, ${percent(probability)}`;
    token.style.setProperty("--doubt", 1 - probability);
    const show = () => showAlternatives(token, text, probability, alternatives);
    token.addEventListener("pointerenter", show);
    token.addEventListener("focus", show);
    token.addEventListener("pointerleave", hideAlternatives);
    token.addEventListener("blur", hideAlternatives);
    list.append(token);
  }

  /** Arrow keys, Home and End go from token to token: the list is one stop of Tab. */
  #walk(event) {
    const all = [...this.#part("tokens").children];
    const at = all.indexOf(document.activeElement);
    const goals = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 };
    const next = all[goals[event.key]];
    if (!next) return;
    event.preventDefault();
    all[at].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }
}

/** Let go of the list of alternatives. */
export const hideAlternatives = () => document.getElementById("alternatives").hidePopover();

/** A token of the protocol as text, probability and alternatives of both. */
function compact({ token, logprob, top_logprobs }) {
  const probability = (value) => Number(Math.exp(value).toPrecision(3));
  return [token, probability(logprob), top_logprobs.map((other) => [other.token, probability(other.logprob)])];
}

const percent = (probability) => `${Number((probability * 100).toPrecision(probability < 0.1 ? 2 : 3))}%`;

/** Where a passage stands: a phrase and its values. */
function lines({ first_line: first, last_line: last, page }) {
  const values = { first: `${first}`, last: `${last}`, page: `${page}` };
  if (page) return ["page {page}, lines {first}–{last}", values];
  return [first === last ? "line {first}" : "lines {first}–{last}", values];
}

function showAlternatives(token, text, probability, alternatives) {
  const panel = document.getElementById("alternatives");
  const rows = alternatives.some(([other]) => other === text) ? alternatives : [[text, probability], ...alternatives];
  panel.replaceChildren(...rows.map(([other, share]) => {
    const row = document.createElement("div");
    const [name, bar, value] = ["code", "span", "span"].map((tag) => row.appendChild(document.createElement(tag)));
    row.className = other === text ? "chosen" : "";
    name.textContent = other.replaceAll("\n", "↵").replaceAll(" ", "␣");
    bar.className = "bar";
    bar.style.setProperty("--share", share);
    value.textContent = percent(share);
    return row;
  }));
  panel.showPopover();
  token.setAttribute("aria-describedby", panel.id);
  const at = token.getBoundingClientRect();
  const below = at.bottom + panel.offsetHeight + 12 < innerHeight;
  panel.style.top = `${below ? at.bottom + 6 : at.top - panel.offsetHeight - 6}px`;
  panel.style.left = `${Math.max(8, Math.min(at.left, innerWidth - panel.offsetWidth - 8))}px`;
}

/** Make the marks [1], [2] of a rendered reply open what they cite; those in code stay code. */
function linkCitations(place, citations) {
  const walker = document.createTreeWalker(place, NodeFilter.SHOW_TEXT);
  const nodes = [];
  while (walker.nextNode()) nodes.push(walker.currentNode);
  for (const node of nodes.filter((each) => !each.parentElement.closest("code, a"))) {
    const parts = node.data.split(/(\[\d+\])/).map((part) => {
      const citation = citations.find(({ number }) => part === `[${number}]`);
      return citation ? citationButton(citation, part) : part;
    });
    if (parts.some((part) => part instanceof Element)) node.replaceWith(...parts);
  }
}

function citationButton(citation, label) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "citation";
  button.textContent = label;
  button.addEventListener("click", () => showPassage(citation));
  return button;
}

function showPassage(citation) {
  const { document: name, heading, text } = citation;
  document.getElementById("passage-title").textContent = name;
  const place = phrase(...lines(citation));
  document.getElementById("passage-place").textContent = heading ? `${place} · ${heading}` : place;
  document.getElementById("passage-text").textContent = text;
  document.getElementById("passage").showModal();
}

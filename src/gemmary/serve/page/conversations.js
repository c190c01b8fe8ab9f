// SPDX-License-Identifier: Apache-2.0
/** Conversations in this browser's storage, an entry each, so that tabs do not overwrite each other's; and settings.
 *
 * @typedef {{id: string, changed: number, messages: Message[]}} Conversation
 * @typedef {{role: "user" | "assistant", content: string, tokens?: Array, citations?: Array, usage?: Object,
 *   rate?: number, seed?: number, end?: string, error?: string}} Message
 */

const PREFIX = "gemmary.conversation.";
const SETTINGS = "gemmary.settings";

/** What is sampled how; temperature and repetition penalty are those the chat adapter was chosen with. */
export const DEFAULTS = {
  temperature: 0.7,
  top_p: 0.95,
  top_k: 64,
  min_p: 0,
  repetition_penalty: 1.1,
  max_tokens: 1024,
  seed: "", // another for each reply
  system: "",
};
/** The settings, the page's own ones among them: theme, language, documents, tokens. */
export const settings = { ...DEFAULTS, ...read(SETTINGS) };

/** Keep some settings. */
export function keep(changes) {
  localStorage.setItem(SETTINGS, JSON.stringify(Object.assign(settings, changes)));
}

/** @returns {Conversation} one without messages; it is stored when it has some */
export function begun() {
  const [number] = crypto.getRandomValues(new Uint32Array(1));
  return { id: `${Date.now().toString(36)}-${number.toString(36)}`, changed: 0, messages: [] };
}

/** @returns {Conversation[]} all conversations, the newest first */
export function all() {
  const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX));
  const found = keys.map(read).filter((each) => Array.isArray(each?.messages) && each.messages.length);
  return found.sort((one, other) => other.changed - one.changed);
}

/** What a conversation is called: how it begins. */
export const title = (conversation) => conversation.messages[0].content.slice(0, 80);

/** @returns {?Conversation} the one with this id, if it is here */
export const find = (id) => read(PREFIX + id);

/** Delete a conversation. */
export const remove = (id) => localStorage.removeItem(PREFIX + id);

/** Store a conversation; without room the tokens of the oldest go, then its own. @returns {boolean} success */
export function store(conversation) {
  conversation.changed = Date.now();
  if (put(conversation)) return true;
  for (const other of all().reverse()) {
    if (other.id !== conversation.id && put(withoutTokens(other)) && put(conversation)) return true;
  }
  return put(withoutTokens(conversation));
}

function put(conversation) {
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  } catch (error) {
    if (error.name !== "QuotaExceededError") throw error;
    return false;
  }
}

function withoutTokens({ messages, ...rest }) {
  return { ...rest, messages: messages.map(({ tokens, ...message }) => message) };
}

/** A value from storage; null if it is not there or was damaged. */
function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch (error) {
    console.warn(`expected JSON in ${key}, got something else: it is left out`, error);
    return null;
  }
}

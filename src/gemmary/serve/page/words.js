// SPDX-License-Identifier: Apache-2.0
/** The page's phrases: English ones are their own keys, Chinese ones are looked up; what is shown can be switched. */

const CHINESE = {
  "Add files": "添加文件",
  "An API key is needed to go on.": "需要 API 密钥才能继续。",
  "Answer from documents": "根据文档回答",
  "Answers come from the documents": "回答来自文档",
  "API key": "API 密钥",
  "any": "随机",
  "Back to the defaults": "恢复默认",
  "Cancel": "取消",
  "Close": "关闭",
  "Context {used} / {length}": "上下文 {used} / {length}",
  "Continue": "继续",
  "Conversation": "对话",
  "Conversations": "对话列表",
  "Copied": "已复制",
  "Copy": "复制",
  "cut at the most tokens": "已达到词元上限",
  "Dark or light": "深色或浅色",
  "Delete {title}": "删除 {title}",
  "Delete this conversation?": "删除这个对话？",
  "Documents": "文档",
  "Edit": "编辑",
  "Enter sends, Shift+Enter begins a line, Esc stops": "Enter 发送，Shift+Enter 换行，Esc 停止",
  "History": "历史",
  "Language: English. Switch to Chinese": "语言：中文。切换到英文",
  "line {first}": "第 {first} 行",
  "lines {first}–{last}": "第 {first}–{last} 行",
  "Max tokens": "最多词元",
  "Message": "消息",
  "Min-p": "Min-p",
  "New conversation": "新对话",
  "No documents yet: text, Markdown or PDF": "还没有文档：文本、Markdown 或 PDF",
  "page {page}, lines {first}–{last}": "第 {page} 页，第 {first}–{last} 行",
  "{passages} passages, {size} KB": "{passages} 段，{size} KB",
  "Reading the files …": "正在读取文件……",
  "Remove {name}": "移除 {name}",
  "Repetition penalty": "重复惩罚",
  "Reply": "回复",
  "Retry": "重试",
  "Sampling": "采样",
  "Seed": "种子",
  "seed {seed}": "种子 {seed}",
  "Send": "发送",
  "Settings and documents": "设置和文档",
  "Sources": "来源",
  "Stop": "停止",
  "stopped": "已停止",
  "System text": "系统提示",
  "Temperature": "温度",
  "The browser's storage is full: delete conversations to keep new ones.":
    "浏览器存储已满：请删除旧对话以保存新对话。",
  "The connection ended before the reply did: try again.": "连接在回复结束前中断：请重试。",
  "The key was not accepted.": "密钥未被接受。",
  "The reply is complete: {text}": "回复完成：{text}",
  "The server answered with {status}: try again.": "服务器返回 {status}：请重试。",
  "The server cannot be reached: is it running?": "无法连接服务器：它在运行吗？",
  "The server is busy: try again in {seconds} s.": "服务器繁忙：请在 {seconds} 秒后重试。",
  "This server asks for an API key": "此服务器需要 API 密钥",
  "Tokens": "词元",
  "{count} tokens": "{count} 个词元",
  "Tokens, coloured by probability": "按概率着色的词元",
  "{rate} tokens/s": "{rate} 词元/秒",
  "Top-k": "Top-k",
  "Top-p": "Top-p",
  "What would you like to know?": "想了解什么？",
  "You": "你",
  "You are editing a message; what followed it will be replaced.":
    "正在编辑消息；其后的内容将被替换。",
};

/** What each element shows: of `text` or an attribute, the phrase and its values. @type {WeakMap<Element, Object>} */
const shown = new WeakMap();

/** @returns {"en" | "zh"} the page's language */
export const language = () => (document.documentElement.lang.startsWith("zh") ? "zh" : "en");

/** A phrase in the page's language; `{name}` in it is replaced by the value of that name. */
export function phrase(english, values = {}) {
  const text = language() === "zh" ? (CHINESE[english] ?? english) : english;
  const written = (value) => (typeof value === "number" ? value.toLocaleString(language()) : value);
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? written(values[name]) : whole));
}

/** Show a phrase in an element, now and after the language has changed; `where` is `text` or an attribute. */
export function say(element, english, values = {}, where = "text") {
  shown.set(element, { ...shown.get(element), [where]: [english, values] });
  const places = new Set((element.dataset.say ?? "").split(" ").filter(Boolean));
  element.dataset.say = [...places.add(where)].join(" ");
  const text = phrase(english, values);
  if (where === "text") element.textContent = text;
  else element.setAttribute(where, text);
}

/** Show again, in the page's language, all phrases in `root`; those that stand in the HTML are English. */
export function translate(root) {
  for (const element of root.querySelectorAll("[data-say]")) {
    for (const where of element.dataset.say.split(" ")) {
      const known = shown.get(element)?.[where];
      const english = where === "text" ? element.textContent.trim() : element.getAttribute(where);
      say(element, ...(known ?? [english, {}]), where);
    }
  }
}

/** Switch the page to a language. @param {"en" | "zh"} wanted */
export function speak(wanted) {
  document.documentElement.lang = wanted === "zh" ? "zh-CN" : "en";
  translate(document);
}

/** A copy of a template's element in the page's language. */
export function made(template) {
  const copy = document.getElementById(template).content.cloneNode(true);
  translate(copy);
  return copy.firstElementChild;
}

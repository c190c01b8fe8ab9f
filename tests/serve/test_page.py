# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, before a real server whose model is scripted.

Whatever a test does, at its end nothing has been asked of another machine and the browser's console is empty.
"""

import math
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from gemmary.generate.generator import Stream
from gemmary.generate.request import Request, Token
from gemmary.generate.scripted import ScriptedGenerator
from gemmary.serve.documents import Library
from gemmary.serve.doorway import Rules

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "src" / "gemmary" / "serve" / "page"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ALONE = ("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "disable-quic")
ATTACK = '<script>alert(1)</script><img src="https://evil.example/x.png" onerror=alert(1)> [x](javascript:alert(1))'
CODE = "```python\nreturn 1\n```"
REPLIES = {
    "Greet": "Hello **world**, this takes a while.",
    "Code": f"Look:\n\n{CODE}\n\n| a | b |\n|---|---|\n| {'long ' * 40} | 2 |\n\n{'endless' * 60}",
    "Attack": ATTACK,
    "Doubt": "Yes.",
    "river": "It is the Seine [1].",
}
SENTENCE = "The river of Paris is the Seine, which flows into the English Channel at Le Havre."


class Model(ScriptedGenerator):
    """Scripted; gives `free` tokens of a reply at once, the others when `may_go_on` is set. It doubts every token."""

    def __init__(self, free: int = 12) -> None:
        super().__init__(REPLIES)
        self.free = free
        self.may_go_on, self.closed = threading.Event(), threading.Event()
        self.may_go_on.set()

    def stream(self, request: Request) -> Stream:
        self.closed.clear()
        return Reply(self, super().stream(request), request)


class Reply:
    """A stream that waits for its model, and ends when it is closed."""

    def __init__(self, model: Model, tokens: Stream, request: Request) -> None:
        self.model, self.tokens, self.request, self.count = model, tokens, request, 0

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        self.count += 1
        while self.count > self.model.free and not self.model.may_go_on.wait(0.01):
            if self.model.closed.is_set():
                raise StopIteration
        token = next(self.tokens)
        if self.request.alternatives is None:
            return token
        others = ((ord("?") + 6, math.log(0.5)), (token.id, math.log(0.25)))
        return replace(token, log_prob=math.log(0.25), alternatives=others)

    def close(self) -> None:
        self.model.closed.set()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"needs a browser, one of {', '.join(PROGRAMS)}")
    arguments = ["--no-sandbox", "--disable-gpu", *(f"--{each}" for each in ALONE)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def url(model: Model, serving: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with Library(tmp_path_factory.mktemp("library") / "documents.db") as library:
        yield serving(model, num_active=1, max_waiting=0, library=library)


@pytest.fixture
def page(browser: Browser, url: str, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A new visitor's page; a test may say what is different about the visitor: `@visitor(locale="zh-CN")`."""
    marked = request.node.get_closest_marker("parametrize")
    settings = request.node.callspec.params.get("visitor", {}) if marked else {}
    context = browser.new_context(**{"locale": "en-GB", "viewport": {"width": 1200, "height": 800}, **settings})
    context.set_default_timeout(10_000)
    page, asked, said = context.new_page(), list[str](), list[str]()
    context.on("request", lambda each: asked.append(each.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.goto(url)
    expect(page.locator("#model")).to_have_text("gemma")
    yield page
    context.close()
    assert [each for each in asked if not each.startswith("http://127.0.0.1:")] == []
    assert [each for each in said if "status of 4" not in each] == []  # 401 and 429 are for the reader


def send(page: Page, text: str) -> Locator:
    """Send a message; the reply that comes."""
    page.get_by_role("textbox", name="Message").fill(text)
    page.keyboard.press("Enter")
    return page.locator(".reply").last


def said(page: Page, text: str) -> Locator:
    """Send a message; its whole reply."""
    reply = send(page, text)
    expect(reply).to_have_attribute("aria-busy", "false")
    return reply


def panel(page: Page) -> Locator:
    page.get_by_role("button", name="Settings and documents").click()
    return page.get_by_role("complementary", name="Settings and documents")


def test_a_reply_comes_piece_by_piece_and_is_shown_as_markdown(page: Page, model: Model) -> None:
    model.may_go_on.clear()
    reply = send(page, "Greet me")
    expect(reply.locator(".content")).to_have_text("Hello **worl")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    model.may_go_on.set()
    expect(reply.locator(".content strong")).to_have_text("world")
    expect(reply.locator(".content")).to_have_text("Hello world, this takes a while.")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="The reply is complete")).to_contain_text("takes a while.")
    expect(reply.locator(".cost")).to_contain_text("tokens/s")
    usage = len(model.requests[-1].prompt) + len(REPLIES["Greet"]) + 1
    expect(page.locator("#context")).to_have_text(f"Context {usage} / 8,192")


def test_escape_stops_a_reply_and_keeps_what_there_is(page: Page, model: Model) -> None:
    model.may_go_on.clear()
    reply = send(page, "Greet me")
    expect(reply.locator(".content")).to_have_text("Hello **worl")
    page.keyboard.press("Escape")
    expect(reply).to_have_attribute("aria-busy", "false")
    assert model.closed.wait(10), "the model goes on writing"
    model.may_go_on.set()
    expect(reply.locator(".cost")).to_contain_text("stopped")
    expect(reply.locator(".content")).to_have_text("Hello **worl")


def test_retry_writes_the_last_reply_again_with_another_seed(page: Page, model: Model) -> None:
    said(page, "Greet me").get_by_role("button", name="Retry").click()
    expect(page.locator(".reply")).to_have_count(1)
    expect(page.locator(".reply")).to_have_attribute("aria-busy", "false")
    first, second = model.requests[-2:]
    assert first.prompt == second.prompt
    assert first.sampling.seed != second.sampling.seed


def test_an_edited_message_replaces_what_followed_it(page: Page, model: Model) -> None:
    said(page, "Greet me")
    said(page, "Doubt this")
    page.locator(".question").first.hover()
    page.get_by_role("button", name="Edit").first.click()
    expect(page.get_by_role("textbox", name="Message")).to_have_value("Greet me")
    said(page, "Greet them")
    expect(page.locator(".question .content")).to_have_text(["Greet them"])
    assert "Greet me" not in model.tokenizer.decode(model.requests[-1].prompt)


def test_what_is_set_in_the_panel_is_what_the_model_is_asked_with(page: Page, model: Model) -> None:
    form = panel(page)
    for name, value in {"Temperature": "0.35", "Top-p": "0.5", "Min-p": "0.02", "Repetition penalty": "1.25"}.items():
        form.get_by_role("slider", name=name).fill(value)
    for name, value in {"Top-k": "7", "Max tokens": "5", "Seed": "11"}.items():
        form.get_by_role("spinbutton", name=name).fill(value)
    form.get_by_role("textbox", name="System text").fill("Be kind.")
    page.reload()  # settings stay
    reply = said(page, "Greet me")
    expect(reply.locator(".content")).to_have_text("Hello")
    expect(reply.locator(".cost")).to_contain_text("cut at the most tokens")
    request = model.requests[-1]
    assert request.max_tokens == 5
    assert "Be kind." in model.tokenizer.decode(request.prompt)
    found = request.sampling
    assert (found.temperature, found.top_p, found.min_p, found.repetition_penalty) == (0.35, 0.5, 0.02, 1.25)
    assert (found.top_k, found.seed) == (7, 11)
    panel(page).get_by_role("button", name="Back to the defaults").click()
    said(page, "Greet me")
    assert model.requests[-1].max_tokens == 1024


def test_tokens_are_coloured_and_name_their_alternatives_to_mouse_and_keyboard(page: Page) -> None:
    reply = said(page, "Doubt this")
    reply.get_by_role("button", name="Tokens").click()
    tokens = reply.get_by_role("option")
    expect(tokens).to_have_text(list("Yes."))
    assert tokens.first.evaluate("token => token.style.getPropertyValue('--doubt')") == "0.75"
    assert tokens.first.evaluate("token => getComputedStyle(token).backgroundColor") != "rgba(0, 0, 0, 0)"
    alternatives = page.get_by_role("tooltip")
    tokens.first.hover()
    expect(alternatives.locator("div")).to_have_text(["?50%", "Y25%"])
    page.mouse.move(0, 0)
    expect(alternatives).to_be_hidden()
    reply.get_by_role("button", name="Tokens").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1)).to_have_accessible_name("e, 25%")
    expect(alternatives.locator(".chosen")).to_have_text("e25%")
    page.keyboard.press("Escape")
    expect(alternatives).to_be_hidden()


def test_answers_from_documents_cite_passages_that_can_be_read(page: Page, model: Model) -> None:
    side = panel(page)
    river = {"name": "river.txt", "mimeType": "text/plain", "buffer": SENTENCE.encode()}
    side.get_by_label("Add files").set_input_files([river, {**river, "name": "x.bin", "buffer": b"\x00\xff" * 99}])
    expect(side.locator("#document-news")).to_contain_text("x.bin: expected")
    expect(side.locator("#document-list li")).to_contain_text(["river.txt"])
    side.get_by_role("switch", name="Answer from documents").check()
    reply = said(page, "Which river flows through Paris?")
    assert SENTENCE in model.tokenizer.decode(model.requests[-1].prompt)
    reply.locator(".content").get_by_role("button", name="[1]").click()
    passage = page.get_by_role("dialog", name=re.compile(r"river\.txt$"))
    expect(passage).to_contain_text(SENTENCE)
    page.keyboard.press("Escape")
    expect(passage).to_be_hidden()
    page.reload()
    page.locator(".citations").get_by_role("button", name=re.compile(r"^\[1\] .*river\.txt$")).click()
    expect(passage).to_contain_text(SENTENCE)
    passage.get_by_role("button", name="Close").click()
    panel(page).get_by_role("button", name=re.compile(r"^Remove .*river\.txt$")).click()
    expect(side.locator("#document-list")).to_contain_text("No documents yet")
    expect(said(page, "Which river is it?").locator(".content")).to_have_text("The documents hold no answer to this.")
    expect(page.locator(".reply").last.locator(".citations")).to_be_hidden()


def test_conversations_stay_in_the_browser_until_they_are_deleted(page: Page) -> None:
    said(page, "Greet me")
    page.reload()
    expect(page.locator(".question .content")).to_have_text("Greet me")
    expect(page.locator(".reply .content")).to_have_text("Hello world, this takes a while.")
    page.get_by_role("link", name="New conversation").click()
    expect(page.locator("article")).to_have_count(0)
    said(page, "Doubt this")
    expect(page.locator("#conversations a")).to_have_text(["Doubt this", "Greet me"])
    page.get_by_role("link", name="Greet me").click()
    expect(page.locator(".question .content")).to_have_text("Greet me")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete Greet me").click()
    expect(page.locator("#conversations a")).to_have_text(["Doubt this"])
    expect(page.locator("article")).to_have_count(0)
    page.go_back()
    expect(page.locator("article")).to_have_count(0)


def test_a_deleted_conversation_does_not_come_back_with_the_reply_it_was_waiting_for(page: Page, model: Model) -> None:
    model.may_go_on.clear()
    send(page, "Greet me")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete Greet me").click()
    assert model.closed.wait(10), "the model goes on writing"
    model.may_go_on.set()
    said(page, "Doubt this")
    expect(page.locator("#conversations a")).to_have_text(["Doubt this"])


def test_where_storage_is_short_the_oldest_tokens_go_first(page: Page) -> None:
    def stored(name: str) -> str:
        return str(page.evaluate("name => Object.values(localStorage).find((each) => each.includes(name))", name))

    said(page, "Code please")
    assert '"tokens":[[' in stored("Code please")
    page.get_by_role("link", name="New conversation").click()
    used = page.evaluate("Object.entries(localStorage).flat().join('').length")
    page.evaluate("count => localStorage.setItem('other', 'x'.repeat(count))", 5 * 2**20 - used - 500)
    reply = said(page, "Greet me")
    assert '"tokens":[[' in stored("Greet me")
    assert '"tokens":' not in stored("Code please")
    expect(reply.get_by_role("alert")).to_be_hidden()


def test_a_full_storage_is_said_and_the_reply_is_there_all_the_same(page: Page) -> None:
    page.evaluate("localStorage.setItem('other', 'x'.repeat(5 * 2 ** 20 - 50))")
    reply = said(page, "Code please")
    expect(reply.get_by_role("alert")).to_contain_text("storage is full")
    expect(reply.locator("pre")).to_have_text("return 1\n")


def test_what_a_model_writes_runs_nothing(page: Page) -> None:
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    reply = said(page, ATTACK.replace("x.png", "Attack"))
    expect(reply.locator(".content")).to_contain_text("<script>alert(1)</script><img")
    reply.get_by_role("button", name="Tokens").click()
    expect(reply.locator(".tokens")).to_contain_text("<script>alert(1)</script><img")
    page.reload()
    expect(page.locator("#conversations a")).to_contain_text("<script>alert(1)</script>")
    assert page.locator("body script, main img, [onerror], a[href^=javascript]").count() == 0


@pytest.mark.parametrize("visitor", [{"viewport": {"width": 360, "height": 640}, "has_touch": True}])
def test_nothing_is_wider_than_a_phone(page: Page, visitor: dict[str, object]) -> None:
    reply = said(page, "Code please, and " + "x" * 200)
    expect(reply.locator("table")).to_be_visible()
    reply.get_by_role("button", name="Tokens").click()
    for name in ("Conversations", "Settings and documents"):
        page.get_by_role("button", name=name).click()
        side = page.get_by_role("complementary", name=name)
        assert side.evaluate(
            "side => side.scrollWidth <= side.clientWidth && side.getBoundingClientRect().right <= 360"
        )
        page.keyboard.press("Escape")
        expect(side).to_be_hidden()
        expect(page.get_by_role("button", name=name)).to_be_focused()
    for selector in ("html", "#messages", "#composer"):
        assert page.locator(selector).evaluate("element => element.scrollWidth <= element.clientWidth"), selector


@pytest.mark.parametrize("visitor", [{"viewport": {"width": 900, "height": 400}}])
def test_the_end_stays_in_sight_unless_the_reader_scrolls(page: Page, model: Model, visitor: dict[str, object]) -> None:
    messages = page.locator("#messages")
    below = "messages => messages.scrollHeight - messages.scrollTop - messages.clientHeight"
    expect(said(page, "Code please").locator("table")).to_be_attached()
    assert messages.evaluate("messages => messages.scrollTop") > 0
    assert messages.evaluate(below) < 2
    model.may_go_on.clear()
    reply = send(page, "Code please")
    expect(reply.locator(".content")).to_have_text("Look:")
    messages.hover()
    page.mouse.wheel(0, -250)
    expect(reply).not_to_be_in_viewport()
    model.may_go_on.set()
    expect(reply.locator("table")).to_be_attached()
    expect(reply).to_have_attribute("aria-busy", "false")
    assert messages.evaluate(below) > 250


def test_everything_can_be_done_with_keys_and_has_a_name(page: Page) -> None:
    said(page, "Doubt this")
    panel(page)
    box = page.get_by_role("textbox", name="Message")
    box.fill("one")
    box.press("Shift+Enter")
    page.keyboard.type("two")
    expect(box).to_have_value("one\ntwo")
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    properties = [(node, {each["name"] for each in node.get("properties", ())}) for node in tree]
    nameless = [
        node["role"]["value"]
        for node, names in properties
        if "focusable" in names and not node.get("name", {}).get("value") and node["role"]["value"] != "RootWebArea"
    ]
    assert nameless == []


@pytest.mark.parametrize("visitor", [{"locale": "zh-CN"}])
def test_a_chinese_reader_finds_chinese_and_can_switch(page: Page, visitor: dict[str, object]) -> None:
    expect(page.get_by_role("button", name="发送")).to_be_visible()
    page.get_by_role("textbox", name="消息").fill("Greet me")
    page.keyboard.press("Enter")
    expect(page.locator(".reply .cost")).to_contain_text("词元/秒")
    page.get_by_role("button", name="语言").click()
    expect(page.locator(".reply .cost")).to_contain_text("tokens/s")
    page.reload()
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_every_phrase_has_its_translation() -> None:
    html, words = (FOLDER / "index.html").read_text("utf-8"), (FOLDER / "words.js").read_text("utf-8")
    code = "".join(path.read_text("utf-8") for path in FOLDER.glob("*.js") if path.name != "words.js")
    used = set(re.findall(r'data-say="text"[^>]*>([^<]+)<', html))
    for tag, places in re.findall(r'(<[^>]*data-say="([^"]*)"[^>]*>)', html):
        used |= {re.findall(rf'\b{place}="([^"]*)"', tag)[0] for place in places.split() if place != "text"}
    used |= set(re.findall(r'(?:phrase\(|say\((?:\$\("[-\w]+"\)|\w+), |(?:&&|return) \[)"([^"]+)"', code))
    used |= {"Stop", "Send", "line {first}", "lines {first}–{last}"}  # chosen between in the code
    assert used == set(re.findall(r'^  "(.+)":\s+"[^"]+",$', words, re.MULTILINE))


@pytest.mark.parametrize("visitor", [{"color_scheme": "dark"}, {"color_scheme": "light"}])
def test_dark_and_light_follow_the_system_until_they_are_switched(page: Page, visitor: dict[str, str]) -> None:
    def looks() -> str:
        colour = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
        return "light" if colour == "rgb(255, 255, 255)" else "dark"

    assert looks() == visitor["color_scheme"]
    page.get_by_role("button", name="Dark or light").click()
    assert looks() != visitor["color_scheme"]
    page.reload()
    assert looks() != visitor["color_scheme"]


def test_a_busy_server_is_said_and_retried_when_the_reader_wants(page: Page, model: Model, url: str) -> None:
    other = page.context.new_page()
    other.goto(url)
    model.may_go_on.clear()
    send(other, "Greet me")
    expect(other.locator(".reply .content")).to_have_text("Hello **worl")
    reply = said(page, "Doubt this")
    expect(reply.get_by_role("alert")).to_contain_text("The server is busy: try again in")
    model.may_go_on.set()
    expect(other.locator(".reply")).to_have_attribute("aria-busy", "false")
    reply.get_by_role("button", name="Retry").click()
    expect(page.locator(".reply .content")).to_have_text("Yes.")


def test_a_key_is_asked_for_until_it_is_right_and_then_kept(page: Page, serving: Callable[..., str]) -> None:
    page.goto(serving(Model(), rules=Rules(api_key="open sesame")))
    dialog = page.get_by_role("dialog", name="This server asks for an API key")
    for key in ("wrong", "open sesame"):
        dialog.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        if key == "wrong":
            expect(dialog.get_by_role("alert")).to_have_text("The key was not accepted.")
    expect(dialog).to_be_hidden()
    expect(said(page, "Greet me").locator(".content strong")).to_have_text("world")
    page.reload()
    expect(page.locator(".reply .content strong")).to_have_text("world")
    expect(page.locator("#model")).to_have_text("gemma")
    panel(page)
    expect(page.get_by_role("heading", name="Documents")).to_be_hidden()  # this server has none

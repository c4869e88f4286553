# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The web page in a browser: press, look, move, search, save; bad uploads; phone width; nothing from elsewhere."""

import json
import os
import shutil
import time
import traceback
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from cavmae_sync_hf import load_model
from cavmae_sync_hf.app import demo_clips
from cavmae_sync_hf.app.workspace import Limits
from helpers.clips import clicks, write_audio_tracks, write_clip
from helpers.little_app import decode_here, write_tone
from helpers.lm import lm_model
from helpers.words import save as save_words
from helpers.words import text_model

pytest.importorskip("gradio")
pytest.importorskip("lancedb")
playwright = pytest.importorskip("playwright.sync_api")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the path; Debian and Ubuntu have it as `apt-get install chromium`"
)
# Without a sandbox, which containers do not allow; and without calls home.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-quic",
]  # fmt: skip
PATIENCE = 120_000  # milliseconds; a busy machine is no error
DRAWN = """selector => {
    const canvas = document.querySelector(selector);
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.some((value, place) => place % 4 === 3 && value > 0);
}"""

# What can be seen and is smaller than a phone's reader wants.
SMALL_TEXTS = """[...document.querySelectorAll('.gradio-container *')].filter(one => one.checkVisibility()
    && [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())
    && parseFloat(getComputedStyle(one).fontSize) < 13 && one.getBoundingClientRect().height > 1)
    .map(one => one.textContent.trim().slice(0, 60))"""


@pytest.fixture(scope="module")
def app(serve):
    with serve(decode_here, limits=Limits(megabytes=1.0, seconds=20.0)) as page:
        yield page


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page that a visitor has opened, and what went wrong on it."""

    def __init__(self, browser, app, **options):
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._note)
        self.app = app
        self.page.goto(app.local_url)
        self.page.wait_for_selector("[data-clip]")

    def _hear(self, message):
        # Gradio's uploader asks how far a file is before the server has heard of it, and logs that answer twice.
        early = "upload_progress" in message.location.get("url", "") or message.text == "Response"
        if message.type == "error" and not early:
            self.errors.append(f"{message.text} {message.location}")

    def _note(self, request):
        if not request.url.startswith((self.app.local_url, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def choose(self, number: int):
        before = self.page.evaluate("cavmaeSync.turn()")
        self.page.click(f"[data-clip='{number}']")
        self.page.wait_for_function(f"cavmaeSync.turn() > {before}")
        self.page.wait_for_selector(".cs-verdict:not(.cs-pending)")
        self.page.wait_for_function("cavmaeSync.state.places && cavmaeSync.state.frames")
        self.page.wait_for_function("document.querySelector('.cs-stage video').readyState >= 2")

    def tab(self, name: str):
        self.page.get_by_role("tab", name=name, exact=True).click()

    def send(self, path: Path):
        self.page.locator(".cs-upload input[type=file]").set_input_files(path)

    def unfold(self):
        """Bring the chooser back, where a clip that an earlier test chose has folded it away."""
        self.page.wait_for_selector("[data-clip='0']", state="attached")
        again = self.page.get_by_role("button", name="Choose another clip")
        if again.is_visible():
            again.click()
        self.page.wait_for_selector("[data-clip='0']")

    def time(self) -> float:
        return self.page.evaluate("document.querySelector('.cs-stage video').currentTime")


def kept_uploads(app) -> list[Path]:
    """Uploads that are still there. Gradio leaves an empty file for each, which is removed with the rest later."""
    return [path for path in app.workspace.uploads.rglob("*") if path.is_file() and path.stat().st_size]


@pytest.fixture(scope="module")
def visit(browser, app):
    visit = Visit(browser, app, viewport={"width": 1440, "height": 900})
    yield visit
    visit.context.close()


@pytest.fixture(autouse=True)
def nothing_breaks(caplog):
    """A request that fails on the server is told on the page, where the next test would find it."""
    yield
    broken = [record for record in caplog.get_records("call") if record.message == "A request failed."]
    assert not broken, "".join(traceback.format_exception(*broken[0].exc_info))


def test_first_screen__says_what_it_does_and_offers_clips(visit):
    text = visit.page.inner_text("body")

    assert "Does the sound belong to the picture?" in text and "Pick a clip" in text and "drawn clips" in text
    assert visit.page.locator("[data-clip]").count() == 4
    loaded = "[...document.querySelectorAll('[data-clip] img')].every(image => image.naturalWidth > 0)"
    visit.page.wait_for_function(loaded)
    assert not visit.page.is_visible(".cs-results") and not visit.page.is_visible(".cs-bar")
    # Nothing of the pictures is cut off, and they differ.
    sizes = "[...document.querySelectorAll('[data-clip] img')].map(one => [one.clientWidth, one.clientHeight])"
    assert all(width == pytest.approx(height, abs=2) for width, height in visit.page.evaluate(sizes))
    posters = [
        page_get(visit, link)
        for link in visit.page.evaluate("[...document.querySelectorAll('[data-clip] img')].map(one => one.src)")
    ]
    assert len(set(posters)) == 4
    links = {link.inner_text(): link.get_attribute("href") for link in visit.page.locator(".cs-links a").all()}
    assert links.keys() == {"Paper", "Code of its authors", "Model card"}
    assert b"syncworld" in page_get(visit, visit.app.local_url + links["Model card"]).lower()


def page_get(visit, url: str) -> bytes:
    return fetch(url)[2]


def test_clip__folds_the_chooser_away_and_says_the_verdict_above_the_player(visit):
    page = visit.page
    page.focus("[data-clip='1']")
    page.keyboard.press("Enter")
    page.wait_for_selector(".cs-late")

    assert not page.is_visible("[data-clip='0']") and not page.is_visible(".cs-long")
    assert page.evaluate("document.activeElement.className") == "cs-name"
    place = {name: page.locator(name).bounding_box() for name in (".cs-verdict", ".cs-stage", "#cs-status")}
    assert place["#cs-status"]["y"] + place["#cs-status"]["height"] <= place[".cs-verdict"]["y"]
    assert place[".cs-verdict"]["y"] + place[".cs-verdict"]["height"] <= place[".cs-stage"]["y"]
    # The note of what is being done lies within the part above, wherever the page is scrolled to.
    note = page.locator("#cs-status [data-testid=status-tracker]").first
    assert note.evaluate("note => getComputedStyle(note).position") == "absolute"
    visit.unfold()
    assert page.evaluate("document.activeElement.dataset.clip") == "1"
    page.get_by_role("button", name="Keep this clip").click()
    assert not page.is_visible("[data-clip='0']")
    visit.unfold()


def test_clip__shows_results_that_follow_the_player(visit):
    page = visit.page
    visit.choose(1)

    assert page.inner_text(".cs-headline").startswith("Audio late by 0.")
    assert "earlier would mend it" in page.inner_text(".cs-advice") and "nats" not in page.inner_text("body")
    for canvas in (".cs-timeline", ".cs-at-matrix canvas", ".cs-at-offset canvas"):
        assert page.evaluate(DRAWN, canvas), canvas

    box = page.locator(".cs-timeline").bounding_box()
    page.locator(".cs-timeline").click(position={"x": box["width"] * 0.55, "y": 40})
    page.wait_for_function("cavmaeSync.time() > 4")
    assert 4 < visit.time() < 6.5
    assert page.inner_text(".cs-moment").startswith(f"0:0{visit.time():.1f}")
    assert f"frame at 0:0{visit.time():.1f}" in page.inner_text(".cs-readout")

    box = page.locator(".cs-at-matrix canvas").bounding_box()
    page.locator(".cs-at-matrix canvas").click(position={"x": box["width"] * 0.8, "y": box["height"] * 0.5})
    page.wait_for_function("cavmaeSync.time() > 7")
    assert visit.time() == pytest.approx(page.evaluate("cavmaeSync.time()"), abs=0.05)

    page.focus(".cs-timeline")
    before = visit.time()
    page.keyboard.press("ArrowLeft")
    assert visit.time() == pytest.approx(before - 0.1, abs=0.03)

    page.evaluate("document.querySelector('.cs-stage video').muted = true")
    page.evaluate("document.querySelector('.cs-stage video').play()")
    page.wait_for_function(f"cavmaeSync.time() > {before + 0.3}")
    page.evaluate("document.querySelector('.cs-stage video').pause()")


def test_clip__source_of_the_audio_lights_up_on_request(visit):
    page = visit.page
    lit = f"({DRAWN})('.cs-heat')"

    page.evaluate("document.querySelector('.cs-stage video').currentTime = 2")
    page.wait_for_function(lit)
    page.uncheck(".cs-show-heat")
    page.wait_for_function(f"!{lit}")
    page.check(".cs-show-heat")
    page.wait_for_function(lit)

    visit.tab("Where?")
    frames = page.locator(".cs-frame")
    page.wait_for_function("[...document.querySelectorAll('.cs-frame img')].every(image => image.naturalWidth > 0)")
    time = page.evaluate("cavmaeSync.state.frames[7].time")
    frames.nth(7).press("Enter")
    page.wait_for_function(f"Math.abs(cavmaeSync.time() - {time}) < 0.05")
    assert frames.count() == 12 and frames.nth(7).get_attribute("class") == "cs-frame cs-now"
    assert float(frames.nth(7).locator("span").evaluate("text => parseFloat(getComputedStyle(text).fontSize)")) >= 13
    assert page.evaluate(DRAWN, ".cs-spectrogram")
    box = page.locator(".cs-spectrogram").bounding_box()
    page.locator(".cs-spectrogram").click(position={"x": box["width"] * 0.25, "y": 60})
    page.wait_for_function("cavmaeSync.time() > 1 && cavmaeSync.time() < 3.5")


def test_search__finds_moments_that_play(visit):
    page = visit.page
    page.evaluate("document.querySelector('.cs-stage video').currentTime = 5")
    visit.tab("Similar")
    page.get_by_label("Moments that look the same").check()
    page.get_by_role("button", name="Search with the moment").click()
    page.wait_for_selector(".cs-hits li")

    assert page.inner_text(".cs-hits li:first-child .cs-hit-name") == "before-it-was-moved.mp4"
    video = "document.querySelector('.cs-hits video')"
    page.wait_for_function(f"{video}.readyState >= 1")
    assert page.evaluate(f"{video}.currentTime") == pytest.approx(4.0, abs=0.6)
    assert page.evaluate(f"{video}.src").split("#t=")[1].startswith("4")
    width, height = page.evaluate(f"[{video}.clientWidth, {video}.clientHeight]")
    assert width == pytest.approx(height, abs=2)  # as the clip is: no bars
    page.evaluate(f"{video}.muted = true")
    page.locator(".cs-play").first.press("Enter")
    page.wait_for_function(f"!{video}.paused")
    page.locator(".cs-play").first.press("Enter")
    page.wait_for_function(f"{video}.paused")


def test_results__are_saved_under_their_names(visit, tmp_path):
    page = visit.page
    visit.tab("Where?")
    page.get_by_role("button", name="Make a video of it").click()
    page.wait_for_function("[...cavmaeSync.state.downloads.keys()].includes('audio-late-sources.mp4')")
    page.wait_for_function("document.querySelector('.cs-video').readyState >= 1")
    visit.tab("Save")

    names = page.locator(".cs-downloads a").all_inner_texts()
    assert {Path(name).suffix for name in names} == {".json", ".npz", ".png", ".mp4"} and len(names) >= 9
    with page.expect_download() as download:
        page.get_by_role("link", name="audio-late-sync.json").click()
    download.value.save_as(tmp_path / "saved.json")
    assert download.value.suggested_filename == "audio-late-sync.json"
    saved = json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))
    assert saved["sync"]["offset"] == pytest.approx(demo_clips.LATE_SECONDS, abs=0.1)


def test_sounds__for_the_silent_clip_play_and_are_exchanged(visit):
    page, film = visit.page, "document.querySelector('.cs-scored video')"
    visit.unfold()
    visit.choose(1)
    visit.tab("Sounds")
    assert page.locator(".cs-scored").count() == 0
    page.get_by_role("button", name="Find sounds for the silent clip").click()
    page.wait_for_selector(".cs-scored li")
    page.wait_for_function(f"{film}.readyState >= 1")
    before = page.evaluate("[cavmaeSync.state.scored.url, cavmaeSync.state.scored.sounds]")

    page.evaluate(f"{film}.muted = true")
    page.locator(".cs-scored li button").last.press("Enter")
    page.wait_for_function(f"!{film}.paused && {film}.currentTime >= {before[1][-1]['time']}")
    page.evaluate(f"{film}.pause()")

    page.locator(".cs-scored select").first.select_option(index=1)
    page.wait_for_function(f"cavmaeSync.state.scored.url !== {before[0]!r}")
    first, *others = page.evaluate("cavmaeSync.state.scored.sounds")
    assert first["name"] == before[1][0]["choices"][0] and others == before[1][1:]
    assert page.locator(".cs-scored select").first.input_value() == "-1"
    page.wait_for_function(f"{film}.readyState >= 1")
    assert visit.errors == []


def test_labels__without_a_head_are_explained(visit):
    visit.tab("Labels")

    assert "no classification head" in visit.page.inner_text(".tabitem:visible")
    assert visit.page.locator("textarea").count() == 0  # nor are there fields for words


def test_upload__bad_ones_are_refused_with_a_reason_and_removed(visit, app, tmp_path, monkeypatch):
    visit.unfold()
    (tmp_path / "video.mp4").write_text("#EXTM3U\n/etc/passwd\n", encoding="utf-8")
    visit.send(tmp_path / "video.mp4")
    visit.page.wait_for_selector(".cs-error")
    assert "video.mp4: is a playlist that points at other files" in visit.page.inner_text(".cs-error")
    assert kept_uploads(app) == []
    assert visit.page.inner_text(".cs-title") == "Audio late"  # the clip from before is still there
    visit.page.get_by_role("button", name="Close").click()
    assert visit.page.locator(".cs-error").count() == 0

    (tmp_path / "<img src=x onerror=window.harmed=1>.txt").write_text("hello", encoding="utf-8")
    visit.send(tmp_path / "<img src=x onerror=window.harmed=1>.txt")
    visit.page.wait_for_selector("text=<img src=x onerror=window.harmed=1>.txt: is text")
    assert visit.page.evaluate("window.harmed") is None
    visit.page.click(".cs-upload button")
    assert "video/*" in visit.page.get_attribute(".cs-upload input[type=file]", "accept")

    (tmp_path / "large.mp4").write_bytes(bytes(1_100_000))
    visit.send(tmp_path / "large.mp4")
    visit.page.wait_for_selector("text=large.mp4: is 1.1 MB large, and at most 1 MB are taken here.")

    # What the server says, where it does not take a file; the box goes on as if nothing had been.
    with monkeypatch.context() as patch:
        patch.setattr(type(app.workspace), "_free", lambda self: 10)
        write_tone(tmp_path / "tone.wav")
        visit.send(tmp_path / "tone.wav")
        visit.page.wait_for_selector("text=There is no room for more files here just now")
    assert visit.page.locator(".cs-upload .error:visible").count() == 0
    visit.errors.clear()  # the browser notes the answer as an error, which it is


def test_upload__a_good_one_is_shown_under_its_name_as_text(visit, app, tmp_path):
    video = tmp_path / "a<img src=x onerror=window.harmed=1>b.mp4"
    write_clip(video, seconds=4.0, audio=clicks([0.5, 1.2, 2.9], 4.0))

    visit.send(video)
    visit.page.wait_for_function("cavmaeSync.state.sync && cavmaeSync.state.clip.number === undefined")
    assert "small example" in visit.page.inner_text(".cs-warning")

    assert "a" in visit.page.inner_text(".cs-title") and ".mp4" in visit.page.inner_text(".cs-title")
    assert visit.page.evaluate("window.harmed") is None
    assert visit.page.locator(".cs-title img").count() == 0
    assert kept_uploads(app) == []


def test_upload__audio_goes_to_the_frames_of_a_clip_or_searches_alone(visit, app, tmp_path):
    page, tone = visit.page, write_tone(tmp_path / "Ton 日本.wav")
    page.get_by_role("button", name="Try other audio with this video").click()
    page.locator(".cs-dub input[type=file]").set_input_files(tone)
    page.wait_for_function("cavmaeSync.state.clip.title.includes('with the audio of Ton 日本.wav')")
    page.wait_for_selector(".cs-verdict:not(.cs-pending)")
    visit.unfold()
    visit.send(tone)
    page.wait_for_function("cavmaeSync.state.clip.sound")

    assert page.inner_text(".cs-headline") == "Audio alone" and not page.is_visible(".cs-dub")
    page.get_by_label("Frames that fit this audio").check()  # the tab is open
    page.get_by_role("button", name="Search with the moment").click()
    page.wait_for_selector(".cs-hits li")
    visit.tab("In sync?")
    assert "no video to compare" in page.inner_text(".cs-at-matrix")
    visit.tab("Save")
    assert page.locator(".cs-downloads a").first.inner_text() == "Ton_日本.wav"
    assert kept_uploads(app) == []


def test_upload__its_audio_track_can_be_chosen(visit, tmp_path):
    visit.unfold()
    clip = write_audio_tracks(tmp_path / "tracks.mkv", [{"language": "deu"}, {"language": "eng"}], seconds=4.0)

    visit.send(clip)
    visit.page.wait_for_selector("text=It has 2 audio tracks, and number 1 is heard. Choose “Audio track 2” at")
    visit.unfold()
    visit.page.get_by_label("Audio of your file").click()
    visit.page.get_by_role("option", name="Audio track 2").click()
    visit.send(clip)
    visit.page.wait_for_function("cavmaeSync.state.clip && !cavmaeSync.state.clip.note.includes('audio tracks')")

    assert visit.page.locator("text=It has 2 audio tracks").count() == 0 and visit.errors == []


def test_page__had_no_errors_and_loaded_nothing_from_elsewhere(visit):
    assert visit.errors == [] and visit.elsewhere == []


def test_page__fits_a_phone(browser, app):
    visit = Visit(browser, app, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    fits = "document.documentElement.scrollWidth <= 390 && window.innerWidth === 390"
    try:
        assert visit.page.evaluate(fits) and visit.page.evaluate(SMALL_TEXTS) == []
        visit.choose(0)
        for name in ("In sync?", "Where?", "Similar", "Sounds", "Labels", "Save"):
            visit.tab(name)
            visit.page.wait_for_timeout(100)
            assert visit.page.evaluate(fits), name
            assert visit.page.evaluate(SMALL_TEXTS) == [], name
        assert visit.errors == [] and visit.elsewhere == []
    finally:
        visit.context.close()


def test_words__search_look_and_name(browser, serve, tmp_path):
    """On a phone, by the keyboard, with words that would be HTML."""
    model, processor = text_model(load_model("example")[0])
    folder = save_words(model, processor, tmp_path / "model")
    with serve(decode_here, model=folder) as app:
        visit = Visit(browser, app, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
        page, fits = visit.page, "document.documentElement.scrollWidth <= 390"
        try:
            visit.choose(0)
            assert page.inner_text(".cs-lights") == "Light up where the audio comes from"
            visit.tab("Similar")
            assert page.evaluate(SMALL_TEXTS) == []
            page.get_by_label("Or search by words").fill("the dog barks")
            page.get_by_label("Or search by words").press("Enter")
            page.wait_for_selector(".cs-hits li")
            alone = page.evaluate("cavmaeSync.state.hits.map(hit => hit.score)")
            page.get_by_label("Moments that look the same").check()
            page.get_by_role("spinbutton", name="Share of the words").fill("0.25")
            page.get_by_role("spinbutton", name="Share of the words").press("Tab")
            page.get_by_role("button", name="Search by words").click()
            page.wait_for_function(f"cavmaeSync.state.hits[0].score > {max(alone) + 0.1}")
            assert page.evaluate("cavmaeSync.state.hits[0].score") > 0.6  # three quarters are the frame itself

            visit.tab("Labels")
            page.get_by_label("Labels in words").fill("a dog, <img src=x onerror=window.harmed=1>")
            page.get_by_role("button", name="Name what is there").click()
            page.wait_for_selector(".cs-when")
            assert page.locator(".cs-label-name").all_inner_texts().count("<img src=x onerror=window.harmed=1>") == 1
            surest = page.locator(".cs-label-when").last.inner_text()
            page.locator(".cs-when").last.press("Enter")
            page.wait_for_function("cavmaeSync.time() > 0 || " + str(surest.endswith("0:00.0")).lower())
            assert page.inner_text(".cs-moment").startswith(surest.removeprefix("surest at "))
            assert page.evaluate(fits) and page.evaluate(SMALL_TEXTS) == []

            visit.tab("Where?")
            page.get_by_label("Or look for words").fill("the <b>bell</b>")
            page.get_by_role("button", name="Look for the words").click()
            page.wait_for_function("cavmaeSync.state.places.asked")
            assert "Where in the frame is “the <b>bell</b>”?" in page.inner_text(".cs-at-images")
            assert page.inner_text(".cs-lights") == "Light up where “the <b>bell</b>” is seen"
            assert page.evaluate(fits) and page.evaluate(SMALL_TEXTS) == []
            page.get_by_label("Or look for words").fill("")
            page.get_by_role("button", name="Look for the words").click()
            page.wait_for_function("!cavmaeSync.state.places.asked")
            assert page.evaluate("window.harmed") is None and visit.errors == [] and visit.elsewhere == []
        finally:
            visit.context.close()


def test_ask__answers_with_moments_to_press(browser, serve, tmp_path, monkeypatch):
    """On a desktop and on a phone, with a question that would be HTML."""
    folder = save_words(*lm_model(av={"num_frames": 10}), tmp_path / "lm")
    scores = torch.tensor([0.02, 0.02, 0.04, 0.6, 0.2, 0.02, 0.02, 0.02, 0.04, 0.02]).log()
    monkeypatch.setattr("cavmae_sync_hf.inference.ask.answer_scores", lambda *_: scores)
    with serve(decode_here, model=folder) as app:
        for options in (
            {"viewport": {"width": 1440, "height": 900}},
            {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
        ):
            visit = Visit(browser, app, **options)
            page, width = visit.page, options["viewport"]["width"]
            try:
                visit.choose(0)
                visit.tab("Ask")
                for question in ("When does <b>it</b> ring?", "What rings?"):
                    page.get_by_label("Question about this clip").fill(question)
                    page.get_by_label("Question about this clip").press("Enter")
                    page.wait_for_function(f"cavmaeSync.state.answers?.[0].question === {question!r}")
                assert page.locator(".cs-question").all_inner_texts() == ["What rings?", "When does <b>it</b> ring?"]
                buttons = page.locator(".cs-answers li").first.locator(".cs-likely button")
                assert buttons.all_inner_texts() == ["0:03.5, 60 %", "0:04.5, 20 %"]
                buttons.first.click()
                page.wait_for_function("Math.abs(cavmaeSync.time() - 3.5) < 0.1")
                assert page.evaluate(f"document.documentElement.scrollWidth <= {width}")
                assert page.evaluate(SMALL_TEXTS) == [] and visit.errors == [] and visit.elsewhere == []
            finally:
                visit.context.close()


def test_page__files_go_when_the_visitor_leaves(browser, app):
    visit = Visit(browser, app)
    visit.choose(0)
    folders = {path.name for path in app.workspace.root.iterdir()}
    token = visit.page.evaluate("cavmaeSync.state.clip.url").split("/")[1]
    assert token in folders

    visit.context.close()

    for _ in range(100):
        if not (app.workspace.root / token).exists():
            break
        visit.app.workspace.session("another")  # time passes
        time.sleep(0.2)
    assert not (app.workspace.root / token).exists()


def fetch(url: str, **headers: str):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def test_server__hands_out_nothing_but_what_it_should(app, tmp_path):
    base = app.local_url
    (tmp_path / "secret.txt").write_text("hush", encoding="utf-8")

    status, headers, _ = fetch(base)
    assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
    for path in (
        f"gradio_api/file={tmp_path}/secret.txt",
        "gradio_api/file=/etc/passwd",
        f"gradio_api/file={app.workspace.root}/.in-use",
        "cavmae-files/shared/..%2f.in-use",
        "cavmae-files/wrong/in-sync.jpg",
        "docs",
        "openapi.json",
    ):
        status, _, content = fetch(base + path)
        assert status in (403, 404), path
        assert b"hush" not in content and b"root:" not in content
    status, headers, content = fetch(base + "cavmae-files/shared/in-sync.jpg", Range="bytes=0-9")
    assert status == 206 and len(content) == 10 and headers["x-content-type-options"] == "nosniff"


def test_server__listens_at_this_machine_alone(app):
    assert app.server_name == "127.0.0.1" and os.environ.get("GRADIO_SERVER_NAME") is None

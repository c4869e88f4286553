/* Shows what the server found, beside a player, and lets drawings and player follow each other.
 *
 * `cavmaeSync.show(view)` takes the views that `views.py` and `handlers.py` make. Their texts are put in as text, never
 * as HTML. `cavmaeSync.mount(element, part, trigger)` is called for each place on the page once it is there.
 */
(() => {
  "use strict";
  if (window.cavmaeSync) return;

  const draw = window.cavmaeDraw, { clock, signed, nearest } = draw;
  const state = { turn: -1, clip: null, time: 0, hover: null, failed: {}, downloads: new Map() };
  const FOUND = ["sync", "places", "frames", "sound", "hits", "labels", "video", "answers", "scored"];
  const parts = {};

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") element.className = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }
  const caption = (title, text) => make("div", { class: "cs-caption" }, make("b", {}, title), " ", make("span", {}, text));
  const waiting = (text) => make("p", { class: "cs-waiting" }, text);
  const scale = (colours, low, high) => {
    const bar = make("i", { "aria-hidden": "true" });
    bar.style.background = draw.scales[colours];
    return make("div", { class: "cs-scale" }, make("span", {}, low), bar, make("span", {}, high));
  };
  const within = (part, selector) => (parts[part] ? parts[part].querySelector(selector) : null);
  /* For those who listen to the page instead of looking at it. */
  const tell = (text) => { const place = within("status", ".cs-live"); if (place) place.textContent = text; };

  const video = () => within("player", "video");
  const duration = () => {
    const element = video();
    if (element && Number.isFinite(element.duration) && element.duration > 0) return element.duration;
    const times = state.sync ? state.sync.times : null;
    return times && times.length ? times[times.length - 1] + state.sync.hop : 1;
  };

  function seek(time) {
    const element = video();
    if (!element) return;
    const to = Math.min(Math.max(0, time), Math.max(0, duration() - 0.02));
    element.currentTime = to;
    state.time = to;
    follow();
  }

  // --- what follows the player --------------------------------------------------------------------------------

  function nameHeat() {
    const lights = within("player", ".cs-lights"), asked = state.places && state.places.asked;
    if (lights) lights.textContent = asked ? `Light up where “${asked}” is seen` : "Light up where the audio comes from";
  }

  function drawHeat() {
    const canvas = within("player", ".cs-heat"), element = video();
    if (canvas && element) draw.heat(canvas, within("player", ".cs-show-heat").checked ? state.places : null, element, state.time);
  }

  function follow() {
    const { sync, places, sound, time } = state;
    drawHeat();
    if (sync && parts.player) {
      const line = within("player", ".cs-timeline");
      draw.timeline(line, sync, time, duration(), state.answers ? state.answers[0].moments : []);
      line.setAttribute("aria-valuenow", time.toFixed(1));
      line.setAttribute("aria-valuemax", duration().toFixed(1));
    }
    if (sync && parts.matrix) { draw.matrix(within("matrix", "canvas"), sync, time); tellCell(); }
    if (sound && within("images", ".cs-spectrogram")) draw.spectrogram(within("images", ".cs-spectrogram"), sound, time);
    const words = within("player", ".cs-moment");
    if (!words) return;
    let said = clock(time);
    if (sync) {
      const k = nearest(sync.times, time), fit = sync.contrast[k];
      said += sync.scores[k] === null ? "   nothing to compare here" : `   fit ${fit === null ? "–" : signed(fit)}`;
    }
    if (places && !places.source[nearest(places.times, time)]) said += `, ${places.none}`;
    words.textContent = said;
    within("player", ".cs-timeline").setAttribute("aria-valuetext", said);
    const current = places && state.frames ? nearest(state.frames.map((frame) => frame.time), time) : -1;
    if (parts.images) parts.images.querySelectorAll(".cs-frame").forEach((frame, k) => frame.classList.toggle("cs-now", k === current));
  }

  function drawAll() {
    follow();
    if (state.sync && parts.offset) draw.offset(within("offset", "canvas"), state.sync);
  }

  function tellCell() {
    const { sync, hover } = state;
    const image = hover ? hover.image : state.time, audio = hover ? hover.audio : state.time;
    const row = nearest(sync.matrix_times, audio), column = nearest(sync.matrix_times, image);
    const value = draw.valueOf(sync.cells, row * sync.cells.shape[1] + column);
    within("matrix", ".cs-readout").textContent =
      `Audio at ${clock(sync.matrix_times[row])}, frame at ${clock(sync.matrix_times[column])}: ` +
      (value === null ? "nothing to compare" : `similarity ${value.toFixed(2)}`);
  }

  // --- building the parts -------------------------------------------------------------------------------------

  function watch(place) {
    new ResizeObserver(() => drawAll()).observe(place);
  }

  function buildStatus(place) {
    place.replaceChildren(
      make("div", { class: "cs-bar" },
        make("button", { type: "button", class: "cs-button cs-fold", onclick: () => fold(!document.body.classList.contains("cs-folded")) }),
        make("div", { class: "cs-name", tabindex: "-1" }, make("strong", { class: "cs-title" }), " ", make("span", { class: "cs-note" }))),
      make("div", { class: "cs-alerts" }),
      make("div", { class: "cs-live cs-unseen", "aria-live": "polite" }));
  }

  function buildVerdict(place) {
    place.replaceChildren(make("div", { class: "cs-verdict", role: "status" },
      make("div", { class: "cs-headline" }), make("p", { class: "cs-detail" }), make("p", { class: "cs-advice" }), make("p", { class: "cs-warning" })));
    fillVerdict();
  }

  function buildPlayer(place) {
    const element = make("video", { playsinline: true, controls: true, preload: "auto", "aria-label": "The chosen clip" });
    const timeline = make("canvas", { class: "cs-timeline", role: "slider", tabindex: "0", "aria-valuemin": "0", "aria-valuenow": "0",
      "aria-label": "Fit of audio and video at every moment; arrow keys move the player" });
    place.replaceChildren(
      make("div", { class: "cs-stage" }, element, make("canvas", { class: "cs-heat", "aria-hidden": "true" })),
      make("div", { class: "cs-under" },
        make("label", { class: "cs-check" }, make("input", { type: "checkbox", class: "cs-show-heat", checked: true,
          onchange: drawHeat }), " ", make("span", { class: "cs-lights" })),
        make("span", { class: "cs-moment" })),
      make("div", { class: "cs-line" },
        caption("Fit of every moment.", "Above 0 (green), the audio of this moment fits its frame better than the audio around it; "
          + "at 0 no better, below worse. Click to go there."),
        timeline));
    const moved = () => { state.time = element.currentTime; follow(); };
    for (const name of ["timeupdate", "seeking", "seeked", "loadeddata"]) element.addEventListener(name, moved);
    // `timeupdate` comes four times a second; while it plays, follow every frame.
    const play = () => { if (!element.paused && !element.ended) { moved(); requestAnimationFrame(play); } };
    element.addEventListener("play", () => { pauseOthers(element); requestAnimationFrame(play); });
    element.addEventListener("loadedmetadata", () => {
      if (element.videoWidth) element.parentElement.style.aspectRatio = `${element.videoWidth} / ${element.videoHeight}`;
      drawAll();
    });
    element.addEventListener("error", () => { if (element.getAttribute("src")) complain("The browser cannot play this clip; choose it again."); });
    seekable(timeline, () => state.sync && state.sync.line, () => state.sync.hop);
    nameHeat();
    watch(place);
  }

  /* Pressing, moving and arrow keys move the player; the page may still be scrolled up and down over it. */
  function seekable(canvas, line, step) {
    let pressed = false;
    const go = (event) => { const at = line(); if (at) seek(((event.offsetX - at.left) / at.room) * at.length); };
    canvas.addEventListener("pointerdown", (event) => { pressed = true; go(event); });
    canvas.addEventListener("pointermove", (event) => { if (pressed) go(event); });
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) canvas.addEventListener(name, () => { pressed = false; });
    canvas.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (way && line()) { event.preventDefault(); seek(state.time + way * step()); }
    });
  }

  function buildMatrix(place) {
    const canvas = make("canvas", { role: "img", "aria-label": "Similarity of the audio of every moment with every frame" });
    place.replaceChildren(
      make("div", { class: "cs-none" }),
      caption("All audio against all frames.", "A row is the audio of a moment, a column a frame; bright where the model finds the two alike. "
        + "If the clip is in sync, bright spots lie on the dotted line; if it is not, on the orange one. Click to go there."),
      canvas, scale("ramp", "", ""), make("div", { class: "cs-readout" }));
    const cell = (event) => {
      const box = state.sync && state.sync.box;
      if (!box) return null;
      const across = (event.offsetX - box.x) / box.side, up = (box.y + box.side - event.offsetY) / box.side;
      if (across < 0 || across > 1 || up < 0 || up > 1) return null;
      return { image: box.first + across * box.span, audio: box.first + up * box.span };
    };
    canvas.addEventListener("click", (event) => { const found = cell(event); if (found) seek(found.image); });
    canvas.addEventListener("pointermove", (event) => { state.hover = cell(event); if (state.sync) tellCell(); });
    canvas.addEventListener("pointerleave", () => { state.hover = null; if (state.sync) tellCell(); });
    watch(place);
  }

  function buildOffset(place) {
    place.replaceChildren(
      caption("If the audio were moved.", "How well audio and video fit at each offset; 0 is chance, and the highest place is the best offset."),
      make("canvas", { role: "img", "aria-label": "Fit at each offset of the audio" }),
      make("dl", { class: "cs-facts" }), make("ul", { class: "cs-remarks" }));
    watch(place);
    fillSync();
  }

  // --- filling them -------------------------------------------------------------------------------------------

  function fillVerdict() {
    const place = within("verdict", ".cs-verdict");
    if (!place) return;
    const { sync, clip, failed } = state;
    let [kind, headline, detail, advice] = ["pending", "Measuring …", "Comparing the audio of every moment with every frame.", ""];
    if (clip && clip.sound) {
      [kind, headline, detail] = ["cannot-tell", "Audio alone", "This file has no video, so there is nothing to compare its audio with. "
        + "Search for moments that fit it, or choose a clip and give it this audio."];
    } else if (failed.sync) [kind, headline, detail] = ["cannot-tell", "Not measured", failed.sync];
    else if (sync) ({ kind, headline, detail, advice } = sync.verdict);
    place.className = `cs-verdict cs-${kind}`;
    const warning = clip && sync ? clip.warning : "";
    for (const [name, text] of [["headline", headline], ["detail", detail], ["advice", advice], ["warning", warning]]) {
      const line = place.querySelector(`.cs-${name}`);
      if (line.textContent !== text) line.textContent = text; // what is the same is not read out again
    }
  }

  function fillSync() {
    const { sync, clip } = state;
    const none = within("matrix", ".cs-none");
    if (none) none.replaceChildren(...(sync ? [] : [waiting(clip && clip.sound ? "This file has no video to compare its audio with."
      : state.failed.sync ? "There is nothing to show: this clip was not measured." : "Measuring …")]));
    for (const part of ["matrix", "offset"]) if (parts[part]) parts[part].classList.toggle("cs-empty", !sync);
    if (parts.matrix && sync) {
      const [low, high] = parts.matrix.querySelectorAll(".cs-scale span");
      low.textContent = `similarity ${signed(sync.cells.low)}`;
      high.textContent = `${signed(sync.cells.high)}, most alike`;
    }
    if (!parts.offset) return;
    within("offset", ".cs-facts").replaceChildren(...(sync ? sync.facts : []).map(([name, value, meaning]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, make("b", {}, value), " ", meaning))));
    within("offset", ".cs-remarks").replaceChildren(...(sync ? sync.remarks : []).map((text) => make("li", {}, text)));
  }

  /* Nothing that fits: no strong colours. What words say is none of the audio's. */
  const doubtful = () => Boolean(state.sync && !state.sync.clear && !(state.places && state.places.asked));

  function fillImages() {
    if (!parts.images) return;
    const { frames, sound, places, sync, clip, failed } = state, asked = places && places.asked ? `“${places.asked}”` : "";
    if (!frames) {
      parts.images.replaceChildren(waiting(clip && clip.sound ? "This file has no video to look at." : failed.places ||
        "Looking for the source of the audio, after the synchrony …"));
      return;
    }
    const spectrogram = make("canvas", { class: "cs-spectrogram", tabindex: "0", role: "img",
      "aria-label": "Spectrogram; the part that fits the frames is coloured" });
    seekable(spectrogram, () => state.sound.line, () => 0.1);
    parts.images.replaceChildren(
      make("ul", { class: "cs-remarks" }, ...(doubtful()
        ? ["Audio and video of this clip do not clearly fit, so these places may mean nothing."] : []).concat(places.remarks)
        .map((text) => make("li", {}, text))),
      caption(asked ? `Where in the frame is ${asked}?` : "Where in the frame does the audio come from?", "The warmer the colour, the surer the model. "
        + (asked ? "A frame without colour does not show it. Press one to go there." : "A frame without colour has no source of the audio in it. Press one to go there.")),
      scale("heat", "not here", "here"),
      make("div", { class: "cs-frames" + (doubtful() ? " cs-dim" : "") }, ...frames.map((frame) =>
        make("button", { type: "button", class: "cs-frame", onclick: () => { seek(frame.time); if (parts.player) parts.player.scrollIntoView({ block: "nearest" }); } },
          make("img", { src: frame.url, alt: "", loading: "lazy" }),
          make("span", {}, make("b", {}, clock(frame.time)), frame.source ? "" : ` ${places.none}`)))),
      asked ? caption(`When and at which pitch is ${asked} heard?`, "Time runs to the right, pitch upwards, loud is white; coloured is what fits the words.")
        : caption("Which part of the audio belongs to the frames?", "The other way round: time runs to the right, pitch upwards, loud is white; "
          + "coloured is what fits the frame of that moment."),
      spectrogram,
      ...(state.video ? [make("video", { class: "cs-video", src: state.video, controls: true, playsinline: true, preload: "metadata",
        "aria-label": "The clip with the source of the audio drawn in" })] : []));
    watch(spectrogram);
  }

  const players = () => [video(), ...document.querySelectorAll(".cs-hits video, .cs-scored video")];
  function pauseOthers(but) {
    for (const other of players()) if (other && other !== but) other.pause();
  }

  /* A pause before the first frame is there is no error. */
  const play = element => element.play().catch(() => {});

  function hit(found) {
    const facts = [make("span", { class: "cs-hit-name" }, found.title),
      make("span", { class: "cs-hit-facts" }, `${clock(found.start)} – ${clock(found.end)}, similarity ${found.score.toFixed(2)}`)];
    if (!found.url) return make("li", {}, make("div", { class: "cs-gone" }, "The file of this moment is not there any more."), ...facts);
    const element = make("video", { src: `${found.url}#t=${found.from.toFixed(2)},${found.to.toFixed(2)}`, playsinline: true, preload: "metadata" });
    const button = make("button", { type: "button", class: "cs-play", "aria-label": `Play ${found.title}, ${clock(found.start)} to ${clock(found.end)}` }, element);
    button.addEventListener("click", () => {
      if (!element.paused) { element.pause(); return; }
      pauseOthers(element);
      if (element.currentTime < found.from - 0.05 || element.currentTime > found.to - 0.05) element.currentTime = found.from;
      play(element);
    });
    for (const name of ["play", "pause"]) element.addEventListener(name, () => button.classList.toggle("cs-playing", !element.paused));
    element.addEventListener("timeupdate", () => { if (element.currentTime > found.to) element.pause(); });
    element.addEventListener("loadedmetadata", () => {
      if (element.videoWidth) element.style.aspectRatio = `${element.videoWidth} / ${element.videoHeight}`;
    });
    return make("li", {}, button, ...facts);
  }

  function fillHits() {
    if (!parts.hits) return;
    const { hits } = state;
    parts.hits.replaceChildren(...(hits
      ? [caption(`${hits.length} moments found, best first.`, "Similarity is how alike the model finds the two: 1 is the same, 0 has nothing in common. Press one to play it."),
        make("ol", { class: "cs-hits" }, ...hits.map(hit))]
      : [waiting("Move the player to a moment, choose what to look for, and press the button" + (parts.labels && parts.labels.dataset.words ? "; or write words." : "."))]));
  }

  /* When a label is true: a strip of moments, the darker the surer. */
  function moments(name, starts, scores) {
    if (starts.length < 2) return [];
    const best = scores.indexOf(Math.max(...scores)), when = clock(starts[best]);
    const strip = make("button", { type: "button", class: "cs-when", "aria-label": `${name}: surest at ${when}, ${scores[best].toFixed(2)}; go there` },
      ...scores.map((score) => {
        const cell = make("i");
        cell.style.opacity = Math.min(1, Math.max(0.05, score));
        return cell;
      }));
    strip.addEventListener("click", (event) => {
      const cell = event.detail ? [...strip.children].indexOf(event.target) : -1; // by the keyboard: to the surest
      seek(starts[cell < 0 ? best : cell]);
    });
    return [make("span", { class: "cs-label-when" }, `surest at ${when}`), strip];
  }

  function fillLabels() {
    if (!parts.labels) return;
    const { labels } = state;
    parts.labels.replaceChildren(...(labels
      ? [caption("What the model hears and sees.", `Scores from 0 to 1, for the clip with its ${labels.moments} moments, and below for each of them. Press a strip to go there.`),
        make("ul", { class: "cs-labels" }, ...labels.labels.map(([name, score], place) => {
          const bar = make("span", { class: "cs-filled" });
          bar.style.width = `${Math.round(100 * Math.min(1, Math.max(0, score)))}%`;
          return make("li", {}, make("span", { class: "cs-label-name" }, name),
            make("span", { class: "cs-track", "aria-hidden": "true" }, bar), make("span", { class: "cs-label-score" }, score.toFixed(3)),
            ...moments(name, labels.when.starts, labels.when.scores[place]));
        }))]
      : [waiting(state.failed.labels || (parts.labels.dataset.words ? "Write labels, and press the button: each is scored for the clip and for every moment of it."
        : "Labels come last, after the places."))]));
  }

  /* Answers, the last first; its moments are marked on the timeline, too. */
  function fillAnswers() {
    if (!parts.answers) return;
    const { answers } = state;
    parts.answers.replaceChildren(...(answers
      ? [make("ol", { class: "cs-answers" }, ...answers.map(({ question, text, moments: likely, times, scores }) =>
        make("li", {}, make("p", { class: "cs-question" }, question), make("p", { class: "cs-answer" }, text || "(no words)"),
          make("div", { class: "cs-likely" }, ...likely.map(([time, share]) =>
            make("button", { type: "button", class: "cs-button", onclick: () => seek(time) }, `${clock(time)}, ${Math.round(100 * share)} %`))),
          ...(likely.length ? moments("The answer", times, scores) : [])))),
      caption("Moments", "are those that the model finds likeliest as an answer, if that is a time. Press one to go there; those of the last answer are marked under the player.")]
      : [waiting("Write a question, and press the button. The answer comes in words, with the moments that it may mean.")]));
  }

  function fillDownloads() {
    if (!parts.downloads) return;
    const size = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
    const entries = [...state.downloads.values()];
    parts.downloads.replaceChildren(entries.length
      ? make("ul", { class: "cs-downloads" }, ...entries.map((entry) => make("li", {},
        make("a", { href: `${entry.url}?save`, download: entry.name }, entry.name),
        make("span", {}, ` ${entry.what}, ${size(entry.bytes)}`))))
      : waiting("Results can be saved here as soon as they are there."));
  }

  function complain(text) {
    const place = within("status", ".cs-alerts");
    if (!place) return;
    place.replaceChildren(text
      ? make("div", { class: "cs-error", role: "alert" }, make("span", {}, text),
        make("button", { type: "button", "aria-label": "Close", onclick: () => complain("") }, "×"))
      : "");
    if (text) place.scrollIntoView({ block: "nearest" });
  }

  /* The chooser makes room for the results, and comes back. */
  function fold(away) {
    document.body.classList.toggle("cs-folded", away);
    const button = within("status", ".cs-fold");
    if (button) button.textContent = away ? "Choose another clip" : "Keep this clip";
    if (away) {
      const title = within("status", ".cs-name");
      if (title) title.focus({ preventScroll: true });
      window.scrollTo({ top: 0 });
      return;
    }
    const card = within("cards", "[aria-pressed='true']") || within("cards", "[data-clip]");
    if (card) card.focus();
  }

  function press(number) {
    for (const card of document.querySelectorAll("[data-clip]")) card.setAttribute("aria-pressed", String(Number(card.dataset.clip) === number));
  }

  /* Cards are buttons; a press tells the server which. */
  function buildCards(place, trigger) {
    place.addEventListener("click", (event) => {
      const card = event.target.closest("[data-clip]");
      if (!card) return;
      press(Number(card.dataset.clip));
      trigger("click", { clip: Number(card.dataset.clip) });
    });
  }

  /* The clip with the sounds that were found, and for each what else there is. */
  let exchange = () => {};
  function fillScored(place, trigger) {
    if (trigger) exchange = trigger;
    if (!parts.scored) return;
    const { scored } = state;
    if (!scored) { parts.scored.replaceChildren(waiting("Each sound is a file of the index, placed where the picture asks for it.")); return; }
    const player = make("video", { class: "cs-video", src: scored.url, controls: true, playsinline: true, preload: "metadata", "aria-label": "The clip with the sounds that were found" });
    player.addEventListener("play", () => pauseOthers(player));
    parts.scored.replaceChildren(make("div", { class: "cs-scored" },
      caption(`${scored.sounds.length} sounds placed.`, "Fit is how much likelier than silence the picture finds it, in nats. Choose another in its place."),
      player,
      make("ol", { class: "cs-answers" }, ...scored.sounds.map(({ time, end, name, fit, choices }, sound) => {
        const select = make("select", { "aria-label": `Sound at ${clock(time)}` },
          ...[name, ...choices].map((title, number) => make("option", { value: number - 1 }, title)));
        select.addEventListener("change", () => {
          if (Number(select.value) >= 0) exchange("click", { turn: state.turn, sound, choice: Number(select.value) });
        });
        return make("li", {},
          make("button", { type: "button", class: "cs-button", onclick: () => { player.currentTime = time; play(player); } }, `${clock(time)} – ${clock(end)}`),
          " ", select, make("span", { class: "cs-hit-facts" }, ` fit ${fit.toFixed(1)}`));
      }))));
  }

  const builders = { status: buildStatus, cards: buildCards, verdict: buildVerdict, player: buildPlayer, matrix: buildMatrix,
    offset: buildOffset, images: fillImages, hits: fillHits, labels: fillLabels, answers: fillAnswers, scored: fillScored, downloads: fillDownloads };

  // --- what the page calls ------------------------------------------------------------------------------------

  function begin(view) {
    const { clip } = view, alone = Boolean(state.clip && state.clip.sound);
    Object.assign(state, { turn: view.turn, clip: clip || null, time: 0, hover: null, failed: {} });
    for (const name of FOUND) state[name] = null;
    state.downloads.clear();
    complain("");
    if (!clip) return;
    document.body.classList.add("cs-has-clip");
    document.body.classList.toggle("cs-sound", Boolean(clip.sound));
    state.downloads.set("clip", { url: clip.url, name: clip.name, what: "The clip as the model saw and heard it", bytes: clip.bytes });
    const element = video();
    if (!element) return;
    element.src = clip.url;
    element.parentElement.style.aspectRatio = "";
    within("status", ".cs-title").textContent = clip.title;
    within("status", ".cs-note").textContent = clip.note;
    press(clip.number);
    fold(true);
    tell(`${clip.title} is chosen and being measured.`);
    if (clip.sound) openTab("Similar");
    else if (alone) openTab("In sync?");
  }

  function openTab(name) {
    const tab = [...document.querySelectorAll("[role=tab]")].find((one) => one.textContent.trim() === name);
    if (tab) tab.click();
  }

  function show(view) {
    if (!view || typeof view !== "object") return;
    if (view.turn !== undefined && view.turn < state.turn) return; // of a clip that is not looked at any more
    if (view.turn !== undefined && view.turn > state.turn) begin(view);
    if (view.error && view.step) state.failed[view.step] = view.error;
    if (view.error && view.step !== "sync") complain(view.error);
    if (view.sync) {
      const { sync } = view, times = sync.matrix_times;
      sync.cells = draw.unpack(sync.matrix);
      sync.step = times.length > 1 ? (times[times.length - 1] - times[0]) / (times.length - 1) : sync.hop;
    }
    if (view.places) view.places.cells = draw.unpack(view.places.maps);
    if (view.sound) Object.assign(view.sound, { levels: draw.unpack(view.sound.levels), fits: draw.unpack(view.sound.fits) });
    for (const name of FOUND) if (view[name]) state[name] = view[name];
    for (const entry of view.downloads || []) state.downloads.set(entry.name, entry);
    const stage = within("player", ".cs-stage");
    if (stage) stage.classList.toggle("cs-dim", doubtful());
    fillVerdict(); fillSync(); fillDownloads(); nameHeat();
    if (view.clip || view.sync || view.frames || view.video || view.error) fillImages();
    if (view.clip || view.hits) fillHits();
    if (view.clip || view.labels || view.error) fillLabels();
    if (view.clip || view.answers) fillAnswers();
    if (view.clip || view.scored) fillScored();
    if (view.scored) tell(`${view.scored.sounds.length} sounds are placed.`);
    if (view.answers) tell(`The answer: ${view.answers[0].text || "no words"}`);
    if (view.frames) tell(view.places && view.places.asked ? "The words were looked for." : "The source of the audio is found.");
    if (view.labels) tell("The labels are there.");
    if (view.hits) tell(`${view.hits.length} moments are found.`);
    drawAll();
  }

  function mount(element, part, trigger) {
    const place = element.querySelector(`[data-part="${part}"]`);
    if (!place) return;
    parts[part] = place;
    builders[part](place, trigger);
    if (part === "player" && state.clip) begin({ turn: state.turn, clip: state.clip });
    drawAll();
  }

  // --- uploads ------------------------------------------------------------------------------------------------

  /* What a press on an upload offers to choose from. Whatever is dropped there is looked at by the server, which tells
   * by its content what it is; Gradio's own check would go by the name, and show that as HTML. */
  const VIDEOS = "video/*,.mkv,.mov,.avi,.ts,.mts,.m2ts,.mxf,.wmv,.flv,.mpg,.webm", AUDIO = "audio/*,.flac,.ogg,.opus,.m4a";
  const OFFERED = { "cs-clip-file": `${VIDEOS},${AUDIO}`, "cs-sound-file": `${AUDIO},${VIDEOS}`, "cs-image-file": ".png,.jpg,.jpeg,.webp,.bmp" };
  const OFFERING = Object.keys(OFFERED).map((name) => `.${name}`).join(", ");
  document.addEventListener("click", () => {
    for (const [place, kinds] of Object.entries(OFFERED)) {
      for (const input of document.querySelectorAll(`.${place} input[type=file]`)) input.accept = kinds;
    }
  }, true);

  /* What is too large is not sent at all. */
  function weigh(event) {
    const files = event.dataTransfer ? event.dataTransfer.files : event.target.files;
    const most = Number(parts.status && parts.status.dataset.most);
    const large = most && event.target.closest(OFFERING) ? [...files || []].find((file) => file.size > most) : null;
    if (!large) return;
    event.stopPropagation();
    event.preventDefault();
    if (event.target.files) event.target.value = "";
    complain(`${large.name}: is ${(large.size / 1e6).toFixed(1)} MB large, and at most ${(most / 1e6).toFixed(0)} MB are taken here. `
      + "Cut out the part that matters or save it smaller.");
  }
  for (const name of ["change", "drop"]) {
    document.addEventListener(name, weigh, true);
    document.addEventListener(name, (event) => { // how far it is may be told further down
      if (event.target.closest(OFFERING) && parts.status) parts.status.scrollIntoView({ block: "nearest" });
    });
  }

  /* The server says in a sentence why it does not take a file; Gradio would show that as the word "Error". */
  const fetch = window.fetch.bind(window);
  window.fetch = async (...request) => {
    const address = String(request[0] && request[0].url ? request[0].url : request[0]);
    if (!/\/gradio_api\/upload(\?|$)/.test(address)) return fetch(...request);
    try {
      const answer = await fetch(...request);
      const ours = (answer.headers.get("content-type") || "").startsWith("text/plain"); // not a page of a proxy's
      if (!answer.ok) complain(ours ? await answer.clone().text() : `The file was not taken (error ${answer.status}); send it again.`);
      return answer;
    } catch (error) {
      complain("The file did not arrive: the connection to the server broke. Send it again.");
      throw error;
    }
  };

  window.cavmaeSync = { mount, show, time: () => state.time, turn: () => state.turn, state };
})();

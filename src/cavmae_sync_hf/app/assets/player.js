/* Draws what the server found, beside a player, and lets drawing and player follow each other.
 *
 * `cavmaeSync.show(view)` takes the views that `views.py` and `handlers.py` make. Their texts are put in as text, never
 * as HTML. `cavmaeSync.mount(element, part, trigger)` is called for each place on the page once it is there.
 */
(() => {
  "use strict";
  if (window.cavmaeSync) return;

  const state = { turn: -1, clip: null, sync: null, places: null, time: 0, hover: null, downloads: new Map() };
  const parts = {};

  // --- small helpers ------------------------------------------------------------------------------------------

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

  const clock = (seconds) => {
    const tenths = Math.round(Math.max(0, seconds) * 10);
    return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
  };
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
  const shortly = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(1);
  const colour = (name) => getComputedStyle(document.documentElement.querySelector(".gradio-container") || document.body)
    .getPropertyValue(name).trim() || "#888";

  /* Bytes of `bytes_view`: a function of row and column (or of a flat place) that gives a share 0..1, or null. */
  function unpack(packed) {
    const text = atob(packed.data);
    const bytes = new Uint8Array(text.length);
    for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
    return { bytes, shape: packed.shape, low: packed.low, high: packed.high };
  }
  const valueOf = (array, place) =>
    array.bytes[place] ? array.low + ((array.bytes[place] - 1) / 254) * (array.high - array.low) : null;

  /* The moment whose time lies nearest; times are sorted. */
  function nearest(times, time) {
    let low = 0, high = times.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (times[middle] <= time) low = middle; else high = middle;
    }
    return Math.abs(times[high] - time) < Math.abs(times[low] - time) ? high : low;
  }

  const ANCHORS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129],
    [92, 200, 99], [170, 220, 50], [253, 231, 37]]; // dark blue over green to yellow, even in lightness
  function ramp(share) {
    const place = Math.min(0.9999, Math.max(0, share)) * (ANCHORS.length - 1);
    const k = Math.floor(place), rest = place - k;
    return ANCHORS[k].map((value, channel) => value + rest * (ANCHORS[k + 1][channel] - value));
  }

  const HEAT = [[60, 0, 90, 0], [110, 20, 160, 0.35], [220, 40, 60, 0.6], [255, 150, 30, 0.72], [255, 245, 170, 0.8]];
  function heat(share) { // the colours of the saved images
    const place = Math.min(0.9999, Math.max(0, share)) * (HEAT.length - 1);
    const k = Math.floor(place), rest = place - k;
    return HEAT[k].map((value, channel) => value + rest * (HEAT[k + 1][channel] - value));
  }

  /* Fit a canvas to its place on the page; gives its context, in units of the page. */
  function prepare(canvas) {
    const width = canvas.clientWidth, height = canvas.clientHeight, ratio = window.devicePixelRatio || 1;
    if (!width || !height) return null;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "12px " + (getComputedStyle(canvas).fontFamily || "sans-serif");
    return { context, width, height };
  }

  const video = () => (parts.player ? parts.player.querySelector("video") : null);
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

  // --- drawing ------------------------------------------------------------------------------------------------

  const MARGIN = { left: 44, right: 10, top: 8, bottom: 34 };

  function ticks(most, room) {
    const step = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300].find((value) => (most / value) * 44 <= room) || 600;
    const found = [];
    for (let time = 0; time <= most + 1e-6; time += step) found.push(time);
    return found;
  }

  function drawMatrix() {
    const canvas = parts.matrix && parts.matrix.querySelector("canvas");
    const prepared = canvas && state.sync ? prepare(canvas) : null;
    if (!prepared) return;
    const { context, width, height } = prepared, { sync } = state;
    const side = Math.min(width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom);
    const box = { x: MARGIN.left, y: MARGIN.top, side };
    const [count] = sync.cells.shape;
    if (!sync.image) {
      sync.image = make("canvas", { width: count, height: count });
      const image = new ImageData(count, count);
      for (let row = 0; row < count; row++) {
        for (let column = 0; column < count; column++) {
          const level = sync.cells.bytes[row * count + column], place = ((count - 1 - row) * count + column) * 4;
          const [red, green, blue] = level ? ramp((level - 1) / 254) : [128, 128, 128];
          image.data.set([red, green, blue, level ? 255 : 90], place);
        }
      }
      sync.image.getContext("2d").putImageData(image, 0, 0);
    }
    const first = sync.matrix_times[0] - sync.step / 2, span = count * sync.step;
    const at = (time) => ((time - first) / span) * side;
    sync.box = { ...box, first, span };
    context.imageSmoothingEnabled = false;
    context.drawImage(sync.image, box.x, box.y, side, side);
    context.strokeStyle = "rgba(255,255,255,.75)";
    context.setLineDash([2, 4]);
    line(context, box.x, box.y + side, box.x + side, box.y);
    context.setLineDash([]);
    if (sync.clear && Math.abs(sync.offset) > sync.hop) { // where the audio that fits each frame is
      context.save();
      context.beginPath();
      context.rect(box.x, box.y, side, side);
      context.clip();
      context.strokeStyle = "#fb923c";
      context.lineWidth = 2;
      const shift = (sync.offset / span) * side;
      line(context, box.x, box.y + side - shift, box.x + side, box.y - shift);
      context.restore();
    }
    axes(context, box, first, span);
    const x = box.x + at(state.time), y = box.y + side - at(state.time);
    if (x >= box.x - 1 && x <= box.x + side + 1) {
      context.lineWidth = 1.5;
      context.strokeStyle = "rgba(255,255,255,.95)";
      line(context, x, box.y, x, box.y + side);
      line(context, box.x, y, box.x + side, y);
      context.beginPath();
      context.arc(x, y, 5, 0, 2 * Math.PI);
      context.fillStyle = "#dc2626";
      context.fill();
      context.stroke();
    }
    tellCell(canvas);
  }

  function line(context, x0, y0, x1, y1) {
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  }

  function axes(context, box, first, span) {
    context.fillStyle = colour("--body-text-color-subdued");
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const time of ticks(first + span, box.side)) {
      const place = ((time - first) / span) * box.side;
      if (place < 0) continue;
      context.fillText(String(time), box.x + place, box.y + box.side + 4);
      context.textAlign = "right";
      context.textBaseline = "middle";
      context.fillText(String(time), box.x - 6, box.y + box.side - place);
      context.textAlign = "center";
      context.textBaseline = "top";
    }
    context.fillText("frame at, seconds", box.x + box.side / 2, box.y + box.side + 19);
    context.save();
    context.translate(4, box.y + box.side / 2);
    context.rotate(-Math.PI / 2);
    context.fillText("audio at, seconds", 0, 0);
    context.restore();
  }

  function tellCell() {
    const words = parts.matrix.querySelector(".cs-readout");
    const { sync } = state, { hover } = state;
    const image = hover ? hover.image : state.time, audio = hover ? hover.audio : state.time;
    const row = nearest(sync.matrix_times, audio), column = nearest(sync.matrix_times, image);
    const value = valueOf(sync.cells, row * sync.cells.shape[1] + column);
    words.textContent = `Audio at ${clock(sync.matrix_times[row])}, frame at ${clock(sync.matrix_times[column])}: ` +
      (value === null ? "nothing to compare" : `similarity ${value.toFixed(2)}`);
  }

  function drawTimeline() {
    const canvas = parts.player && parts.player.querySelector(".cs-timeline");
    const prepared = canvas && state.sync ? prepare(canvas) : null;
    if (!prepared) return;
    const { context, width, height } = prepared, { sync } = state;
    const left = 40, right = 14, bottom = 18, top = 6, room = width - left - right, tall = height - top - bottom;
    const values = sync.contrast.filter((value) => value !== null);
    const low = Math.min(-0.5, ...values), high = Math.max(0.5, ...values), length = duration();
    const x = (time) => left + (time / length) * room, y = (value) => top + ((high - value) / (high - low)) * tall;
    sync.line = { left, room, length };
    context.fillStyle = colour("--body-text-color-subdued");
    context.textAlign = "center";
    context.textBaseline = "top";
    for (const time of ticks(length, room)) context.fillText(`${time} s`, x(time), height - bottom + 4);
    context.textAlign = "right";
    context.textBaseline = "middle";
    const marks = [low, 0, high].filter((value) => value === 0 || Math.abs(y(value) - y(0)) > 14);
    for (const value of marks) context.fillText(value === 0 ? "0" : shortly(value), left - 6, Math.min(height - bottom - 6, Math.max(top + 6, y(value))));
    for (const [sign, name] of [[1, "--cs-good"], [-1, "--cs-warn"]]) { // above and below chance
      context.fillStyle = colour(name);
      sync.contrast.forEach((value, k) => {
        if (value === null || Math.sign(value) !== sign) return;
        const from = x(Math.max(0, sync.times[k] - sync.hop / 2)), to = x(sync.times[k] + sync.hop / 2);
        context.fillRect(from, Math.min(y(0), y(value)), Math.max(1, to - from - 0.5), Math.abs(y(value) - y(0)));
      });
    }
    context.strokeStyle = colour("--body-text-color-subdued");
    context.lineWidth = 1;
    line(context, left, y(0), left + room, y(0));
    cursor(context, x(state.time), top, height - bottom);
    canvas.setAttribute("aria-valuenow", state.time.toFixed(1));
    canvas.setAttribute("aria-valuemax", length.toFixed(1));
    canvas.setAttribute("aria-valuetext", clock(state.time));
  }

  function cursor(context, x, top, bottom) {
    context.strokeStyle = colour("--body-text-color");
    context.lineWidth = 2;
    line(context, x, top, x, bottom);
    context.fillStyle = "#dc2626";
    context.beginPath();
    context.arc(x, top + 3, 4, 0, 2 * Math.PI);
    context.fill();
  }

  function drawOffset() {
    const canvas = parts.offset && parts.offset.querySelector("canvas");
    const prepared = canvas && state.sync ? prepare(canvas) : null;
    if (!prepared) return;
    const { context, width, height } = prepared, { sync } = state;
    const left = 40, right = 12, top = 22, bottom = 36, room = width - left - right, tall = height - top - bottom;
    const shown = sync.offset_scores.filter((value) => value !== null);
    if (!shown.length) return;
    const low = Math.min(0, ...shown), high = Math.max(0.5, ...shown);
    const begin = sync.offsets[0], end = sync.offsets[sync.offsets.length - 1];
    const x = (offset) => left + ((offset - begin) / (end - begin || 1)) * room;
    const y = (value) => top + ((high - value) / (high - low)) * tall;
    if (sync.clear && sync.interval) {
      context.fillStyle = "rgba(251,146,60,.22)";
      context.fillRect(x(sync.interval[0]), top, Math.max(2, x(sync.interval[1]) - x(sync.interval[0])), tall);
    }
    context.fillStyle = context.strokeStyle = colour("--body-text-color-subdued");
    context.lineWidth = 1;
    line(context, x(0), top, x(0), top + tall);
    line(context, left, y(0), left + room, y(0));
    context.textAlign = "center";
    context.textBaseline = "top";
    for (let offset = Math.ceil(begin); offset <= end; offset++) context.fillText(`${offset}`.replace("-", "−"), x(offset), top + tall + 4);
    context.fillText("audio moved by, seconds (right: audio is late)", left + room / 2, top + tall + 19);
    context.textAlign = "right";
    context.textBaseline = "middle";
    for (const value of [low, 0, high].filter((one) => one === 0 || Math.abs(y(one) - y(0)) > 14)) {
      context.fillText(value === 0 ? "0" : shortly(value), left - 6, y(value));
    }
    context.strokeStyle = colour("--cs-accent");
    context.lineWidth = 2;
    context.beginPath();
    let pen = false;
    sync.offset_scores.forEach((value, k) => {
      if (value === null) { pen = false; return; }
      if (pen) context.lineTo(x(sync.offsets[k]), y(value)); else context.moveTo(x(sync.offsets[k]), y(value));
      pen = true;
    });
    context.stroke();
    if (sync.clear) {
      context.strokeStyle = "#ea580c";
      line(context, x(sync.offset), top - 4, x(sync.offset), top + tall);
      context.fillStyle = colour("--body-text-color");
      context.textAlign = x(sync.offset) > left + room / 2 ? "right" : "left";
      context.textBaseline = "bottom";
      context.fillText(`best: ${signed(sync.offset)} s`, x(sync.offset), top - 5);
    }
  }

  /* Light where the audio comes from, over the video as the player shows it. */
  function drawHeat() {
    const canvas = parts.player && parts.player.querySelector(".cs-heat");
    const element = video();
    if (!canvas || !element) return;
    const prepared = prepare(canvas);
    if (!prepared || !state.places || !element.videoWidth) return;
    if (!parts.player.querySelector(".cs-show-heat").checked) return;
    const { context, width, height } = prepared, { places } = state;
    const scale = Math.min(width / element.videoWidth, height / element.videoHeight);
    const shown = { w: element.videoWidth * scale, h: element.videoHeight * scale };
    const corner = { x: (width - shown.w) / 2, y: (height - shown.h) / 2 };
    const [, rows, columns] = places.cells.shape, moment = nearest(places.times, state.time);
    const small = make("canvas", { width: columns, height: rows });
    const image = new ImageData(columns, rows);
    for (let k = 0; k < rows * columns; k++) {
      const level = places.cells.bytes[moment * rows * columns + k];
      const [red, green, blue, opacity] = heat(level ? (level - 1) / 254 : 0);
      image.data.set([red, green, blue, Math.round(255 * opacity)], 4 * k);
    }
    small.getContext("2d").putImageData(image, 0, 0);
    const [x0, y0, x1, y1] = places.region;
    const seen = [corner.x + x0 * shown.w, corner.y + y0 * shown.h, (x1 - x0) * shown.w, (y1 - y0) * shown.h];
    context.beginPath(); // what the model does not see is darker
    context.rect(corner.x, corner.y, shown.w, shown.h);
    context.rect(...seen);
    context.fillStyle = "rgba(0,0,0,.4)";
    context.fill("evenodd");
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(small, ...seen);
  }

  function follow() {
    drawHeat();
    drawTimeline();
    drawMatrix();
    const words = parts.player && parts.player.querySelector(".cs-moment");
    if (!words) return;
    if (!state.sync) { words.textContent = clock(state.time); return; }
    const { sync } = state, k = nearest(sync.times, state.time);
    const [score, contrast] = [sync.scores[k], sync.contrast[k]];
    words.textContent = `${clock(state.time)}   ` +
      (score === null ? "nothing to compare here" : `similarity ${score.toFixed(2)}, fit ${contrast === null ? "–" : signed(contrast)}`);
  }

  function drawAll() { follow(); drawOffset(); }

  // --- building the parts -------------------------------------------------------------------------------------

  function buildPlayer(place) {
    const element = make("video", { playsinline: true, controls: true, preload: "auto", "aria-label": "The chosen clip" });
    const timeline = make("canvas", { class: "cs-timeline", role: "slider", tabindex: "0", "aria-valuemin": "0",
      "aria-label": "Fit of audio and video at every moment; arrow keys move the player" });
    place.replaceChildren(
      make("div", { class: "cs-stage" }, element, make("canvas", { class: "cs-heat", "aria-hidden": "true" })),
      make("div", { class: "cs-under" },
        make("label", { class: "cs-check" }, make("input", { type: "checkbox", class: "cs-show-heat", checked: true,
          onchange: drawHeat }), " show the source of the audio"),
        make("span", { class: "cs-moment" })),
      make("div", { class: "cs-name" }, make("strong", { class: "cs-title" }), " ", make("span", { class: "cs-note" })),
      make("div", { class: "cs-verdict", hidden: true, role: "status" },
        make("div", { class: "cs-headline" }), make("p", { class: "cs-detail" })),
      make("div", { class: "cs-line" },
        make("div", { class: "cs-caption" }, make("b", {}, "Fit of every moment. "),
          make("span", {}, "Above 0, the audio fits this frame better than the audio around it. Click to go there.")),
        timeline));
    const moved = () => { state.time = element.currentTime; follow(); };
    for (const name of ["timeupdate", "seeking", "seeked", "loadeddata"]) element.addEventListener(name, moved);
    // `timeupdate` comes four times a second; while it plays, follow every frame.
    const play = () => { if (!element.paused && !element.ended) { moved(); requestAnimationFrame(play); } };
    element.addEventListener("play", () => requestAnimationFrame(play));
    element.addEventListener("loadedmetadata", () => {
      if (element.videoWidth) element.parentElement.style.aspectRatio = `${element.videoWidth} / ${element.videoHeight}`;
      drawAll();
    });
    element.addEventListener("error", () => { if (element.getAttribute("src")) complain("The browser cannot play this clip; choose it again."); });
    dragging(timeline, (event) => {
      const { sync } = state;
      if (sync && sync.line) seek(((event.offsetX - sync.line.left) / sync.line.room) * sync.line.length);
    });
    timeline.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && state.sync) { event.preventDefault(); seek(state.time + step * state.sync.hop); }
    });
    watch(place);
  }

  /* Pressing and moving both count; the page may still be scrolled up and down over it. */
  function dragging(canvas, act) {
    let pressed = false;
    canvas.addEventListener("pointerdown", (event) => { pressed = true; act(event); });
    canvas.addEventListener("pointermove", (event) => { if (pressed) act(event); });
    for (const name of ["pointerup", "pointercancel", "pointerleave"]) canvas.addEventListener(name, () => { pressed = false; });
  }

  function buildMatrix(place) {
    const canvas = make("canvas", { role: "img", "aria-label": "Similarity of every audio window with every frame" });
    place.replaceChildren(
      make("div", { class: "cs-caption" }, make("b", {}, "Every audio window against every frame. "),
        make("span", {}, "Bright where they are alike. In a clip that is in step the bright spots lie on the dotted line. Click to go there.")),
      canvas, make("div", { class: "cs-readout" }));
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
      make("div", { class: "cs-caption" }, make("b", {}, "If the audio were moved. "),
        make("span", {}, "How well audio and video fit at each offset; 0 on the left scale is chance.")),
      make("canvas", { role: "img", "aria-label": "Fit at each offset of the audio" }),
      make("dl", { class: "cs-facts" }), make("ul", { class: "cs-remarks" }));
    watch(place);
    fillFacts();
  }

  function watch(place) {
    new ResizeObserver(() => drawAll()).observe(place);
  }

  function fillFacts() {
    if (!parts.offset) return;
    const { sync } = state;
    parts.offset.querySelector(".cs-facts").replaceChildren(...(sync ? sync.facts : []).map(([name, value, meaning]) =>
      make("div", {}, make("dt", {}, name), make("dd", {}, make("b", {}, value), " ", meaning))));
    parts.offset.querySelector(".cs-remarks").replaceChildren(...(sync ? sync.remarks : []).map((text) => make("li", {}, text)));
  }

  function fillVerdict() {
    const place = parts.player && parts.player.querySelector(".cs-verdict");
    if (!place) return;
    place.hidden = !state.sync;
    if (!state.sync) return;
    const { kind, headline, detail } = state.sync.verdict;
    place.className = `cs-verdict cs-${kind}`;
    place.querySelector(".cs-headline").textContent = headline;
    place.querySelector(".cs-detail").textContent = detail;
  }

  function fillImages() {
    if (!parts.images) return;
    const { images } = state;
    if (!images) { parts.images.replaceChildren(waiting("The places are found after the synchrony.")); return; }
    parts.images.replaceChildren(
      make("ul", { class: "cs-remarks" }, ...(state.places ? state.places.remarks : []).map((text) => make("li", {}, text))),
      make("div", { class: "cs-caption" }, make("b", {}, "Where in the frame is the source of the audio? "),
        make("span", {}, "Warm where the model finds the source. The player shows the same while it plays; darker edges are what the model does not see.")),
      make("a", { href: images.strip, target: "_blank", rel: "noopener" },
        make("img", { src: images.strip, alt: "Frames of the clip with the source of the audio" })),
      make("div", { class: "cs-caption" }, make("b", {}, "Which part of the audio belongs to the frame? "),
        make("span", {}, "The other way round, in the spectrogram.")),
      make("a", { href: images.spectrogram, target: "_blank", rel: "noopener" },
        make("img", { src: images.spectrogram, alt: "Spectrogram with the part that fits the frame" })),
      ...(state.video ? [make("video", { class: "cs-video", src: state.video, controls: true, playsinline: true, preload: "metadata",
        "aria-label": "The clip with the source of the audio drawn in" })] : []));
  }

  function fillHits() {
    if (!parts.hits) return;
    const { hits } = state;
    if (!hits) {
      parts.hits.replaceChildren(waiting("Move the player to a moment, choose what to look for, and press the button."));
      return;
    }
    parts.hits.replaceChildren(make("ol", { class: "cs-hits" }, ...hits.map((hit) => make("li", {},
      hit.url
        ? make("video", { src: `${hit.url}#t=${hit.from.toFixed(2)},${hit.to.toFixed(2)}`, controls: true, playsinline: true,
          preload: "metadata", "aria-label": `Moment of ${hit.title}` })
        : make("div", { class: "cs-gone" }, "The file of this moment is not there any more."),
      make("div", { class: "cs-hit-name" }, hit.title),
      make("div", { class: "cs-hit-facts" }, `${clock(hit.start)} – ${clock(hit.end)}`),
      make("div", { class: "cs-hit-facts" }, `similarity ${hit.score.toFixed(2)}`)))));
  }

  function fillLabels() {
    if (!parts.labels) return;
    const { labels } = state;
    if (!labels) return;
    parts.labels.replaceChildren(
      make("div", { class: "cs-caption" }, `Mean over ${labels.moments} moments of the clip.`),
      make("ul", { class: "cs-labels" }, ...labels.labels.map(([name, score]) => {
        const bar = make("span", { class: "cs-bar" });
        bar.style.width = `${Math.round(100 * Math.min(1, Math.max(0, score)))}%`;
        return make("li", {}, make("span", { class: "cs-label-name" }, name),
          make("span", { class: "cs-track" }, bar), make("span", { class: "cs-label-score" }, score.toFixed(3)));
      })));
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

  const waiting = (text) => make("p", { class: "cs-waiting" }, text);

  function complain(text) {
    if (!parts.status) return;
    parts.status.replaceChildren(text
      ? make("div", { class: "cs-error", role: "alert" }, make("span", {}, text),
        make("button", { type: "button", "aria-label": "Close", onclick: () => complain("") }, "×"))
      : "");
  }

  const builders = { player: buildPlayer, matrix: buildMatrix, offset: buildOffset, images: fillImages, hits: fillHits,
    labels: fillLabels, downloads: fillDownloads, status: () => {}, cards: () => {} };

  /* Cards are buttons; a press tells the server which. */
  function wireCards(place, trigger) {
    place.addEventListener("click", (event) => {
      const card = event.target.closest("[data-clip]");
      if (!card) return;
      for (const other of place.querySelectorAll("[data-clip]")) other.setAttribute("aria-pressed", String(other === card));
      trigger("click", { clip: Number(card.dataset.clip) });
    });
  }

  // --- what the page calls ------------------------------------------------------------------------------------

  function begin(view) {
    Object.assign(state, { turn: view.turn, clip: view.clip || null, sync: null, places: null, images: null, hits: null,
      labels: null, video: null, time: 0, hover: null });
    state.downloads.clear();
    complain("");
    if (!view.clip) return;
    document.body.classList.add("cs-has-clip");
    state.downloads.set(view.clip.title, { url: view.clip.url, name: "clip.mp4", what: "The clip as the model saw and heard it", bytes: view.clip.bytes });
    const element = video();
    if (!element) return;
    element.src = view.clip.url;
    parts.player.querySelector(".cs-title").textContent = view.clip.title;
    parts.player.querySelector(".cs-note").textContent = view.clip.note;
    for (const card of document.querySelectorAll("[data-clip]")) card.setAttribute("aria-pressed", String(Number(card.dataset.clip) === view.clip.number));
    parts.player.scrollIntoView({ behavior: "smooth", block: "nearest" });
  }

  function show(view) {
    if (!view || typeof view !== "object") return;
    if (view.turn !== undefined && view.turn < state.turn) return; // of a clip that is not looked at any more
    if (view.turn !== undefined && view.turn > state.turn) begin(view);
    if (view.error) complain(view.error);
    if (view.sync) {
      const { sync } = view, times = sync.matrix_times;
      sync.cells = unpack(sync.matrix);
      sync.step = times.length > 1 ? (times[times.length - 1] - times[0]) / (times.length - 1) : sync.hop;
      state.sync = sync;
    }
    if (view.places) state.places = { ...view.places, cells: unpack(view.places.maps) };
    for (const name of ["images", "video", "hits", "labels"]) if (view[name]) state[name] = view[name];
    for (const entry of view.downloads || []) state.downloads.set(entry.name, entry);
    fillVerdict(); fillFacts(); fillImages(); fillHits(); fillLabels(); fillDownloads();
    drawAll();
  }

  function mount(element, part, trigger) {
    const place = element.querySelector(`[data-part="${part}"]`);
    if (!place) return;
    parts[part] = place;
    if (part === "cards") wireCards(place, trigger);
    builders[part](place);
    if (part === "player" && state.clip) begin({ turn: state.turn, clip: state.clip });
    drawAll();
  }

  /* What a press on an upload offers to choose from. Whatever is dropped there is looked at by the server, which tells
   * by its content what it is; Gradio's own check would go by the name, and show that as HTML. */
  const OFFERED = {
    "cs-video-file": "video/*,.mkv,.mov,.avi,.ts,.mts,.m2ts,.mxf,.wmv,.flv,.mpg,.webm",
    "cs-audio-file": "audio/*,.flac,.ogg,.opus,.m4a",
    "cs-image-file": ".png,.jpg,.jpeg,.webp,.bmp",
  };
  document.addEventListener("click", () => {
    for (const [place, kinds] of Object.entries(OFFERED)) {
      for (const input of document.querySelectorAll(`.${place} input[type=file]`)) input.accept = kinds;
    }
  }, true);

  window.cavmaeSync = { mount, show, time: () => state.time, turn: () => state.turn, state };
})();

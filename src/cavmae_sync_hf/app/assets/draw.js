/* Drawings of the page: pure functions of what they are given, each on a canvas of its own. `player.js` calls them. */
window.cavmaeDraw = (() => {
  "use strict";

  const clock = (seconds) => {
    const tenths = Math.round(Math.max(0, seconds) * 10);
    return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
  };
  const signed = (value, digits = 2) => {
    const size = Math.abs(value).toFixed(digits);
    return Number(size) ? (value < 0 ? "−" : "+") + size : size;
  };
  const colour = (name) => getComputedStyle(document.documentElement.querySelector(".gradio-container") || document.body)
    .getPropertyValue(name).trim() || "#888";

  /* Bytes of `bytes_view`; 0 stands for what is absent. */
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

  const RAMP = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129],
    [92, 200, 99], [170, 220, 50], [253, 231, 37]]; // dark blue over green to yellow, even in lightness
  const HEAT = [[60, 0, 90, 0], [110, 20, 160, 0.35], [220, 40, 60, 0.6], [255, 150, 30, 0.72], [255, 245, 170, 0.8]];
  function between(anchors, share) {
    const place = Math.min(0.9999, Math.max(0, share)) * (anchors.length - 1);
    const k = Math.floor(place), rest = place - k;
    return anchors[k].map((value, channel) => value + rest * (anchors[k + 1][channel] - value));
  }
  const gradient = (anchors) => `linear-gradient(90deg, ${anchors.map(([red, green, blue, opacity = 1]) =>
    `rgb(${red} ${green} ${blue} / ${opacity})`).join(", ")})`;

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
    context.font = "13px " + (getComputedStyle(canvas).fontFamily || "sans-serif");
    return { context, width, height };
  }

  /* A small canvas whose pixels `at(row, column)` gives as red, green, blue, opacity (255). */
  function pixels(rows, columns, at) {
    const small = document.createElement("canvas");
    small.width = columns;
    small.height = rows;
    const image = new ImageData(columns, rows);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) image.data.set(at(row, column), (row * columns + column) * 4);
    }
    small.getContext("2d").putImageData(image, 0, 0);
    return small;
  }

  function line(context, x0, y0, x1, y1) {
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  }

  function write(context, text, x, y, align, baseline) {
    context.textAlign = align;
    context.textBaseline = baseline;
    context.fillText(text, x, y);
  }

  function ticks(most, room) {
    const step = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300].find((value) => (most / value) * 44 <= room) || 600;
    const found = [];
    for (let time = 0; time <= most + 1e-6; time += step) found.push(time);
    return found;
  }

  function cursor(context, x, top, bottom) {
    context.strokeStyle = colour("--body-text-color");
    context.lineWidth = 2;
    line(context, x, top, x, bottom);
    context.fillStyle = "#dc2626";
    context.beginPath();
    context.arc(x, top + 4, 4, 0, 2 * Math.PI);
    context.fill();
  }

  /* Audio against frames; the place of the drawing is left in `sync.box`. */
  function matrix(canvas, sync, time) {
    const prepared = prepare(canvas);
    if (!prepared) return;
    const { context, width, height } = prepared;
    const margin = { left: 48, right: 10, top: 8, bottom: 42 };
    const side = Math.min(width - margin.left - margin.right, height - margin.top - margin.bottom);
    const box = { x: margin.left, y: margin.top, side };
    const [count] = sync.cells.shape;
    if (!sync.image) {
      sync.image = pixels(count, count, (row, column) => {
        const level = sync.cells.bytes[(count - 1 - row) * count + column];
        return level ? [...between(RAMP, (level - 1) / 254), 255] : [128, 128, 128, 90];
      });
    }
    const first = sync.matrix_times[0] - sync.step / 2, span = count * sync.step;
    const at = (moment) => ((moment - first) / span) * side;
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
    context.fillStyle = colour("--body-text-color-subdued");
    for (const tick of ticks(first + span, side)) {
      const place = at(tick);
      if (place < 0) continue;
      write(context, String(tick), box.x + place, box.y + side + 5, "center", "top");
      write(context, String(tick), box.x - 6, box.y + side - place, "right", "middle");
    }
    write(context, "frame at, seconds", box.x + side / 2, box.y + side + 23, "center", "top");
    context.save();
    context.translate(4, box.y + side / 2);
    context.rotate(-Math.PI / 2);
    write(context, "audio at, seconds", 0, 0, "center", "top");
    context.restore();
    const x = box.x + at(time), y = box.y + side - at(time);
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
  }

  // One moment can fall far below chance; beyond this the bars are cut, or all others would be too small to see.
  const LOWEST = -3;

  /* Fit of every moment, with marks where an answer lies; the place of the drawing is left in `sync.line`. */
  function timeline(canvas, sync, time, length, marks = []) {
    const prepared = prepare(canvas);
    if (!prepared) return;
    const { context, width, height } = prepared;
    const left = 44, right = 16, bottom = 20, top = 8, room = width - left - right, tall = height - top - bottom;
    const values = sync.contrast.filter((value) => value !== null).map((value) => Math.max(LOWEST, value));
    const low = Math.min(-0.5, ...values), high = Math.max(0.5, ...values);
    const x = (moment) => left + (moment / length) * room;
    const y = (value) => top + ((high - Math.max(LOWEST, value)) / (high - low)) * tall;
    sync.line = { left, room, length };
    context.fillStyle = colour("--body-text-color-subdued");
    for (const tick of ticks(length, room)) write(context, `${tick} s`, x(tick), height - bottom + 4, "center", "top");
    for (const value of [low, 0, high].filter((one) => one === 0 || Math.abs(y(one) - y(0)) > 14)) {
      const place = Math.min(height - bottom - 6, Math.max(top + 6, y(value)));
      write(context, value === 0 ? "0" : value === LOWEST ? `≤ ${signed(value, 0)}` : signed(value, 1), left - 6, place, "right", "middle");
    }
    context.globalAlpha = sync.clear ? 1 : 0.45; // nothing fits: no bar deserves a strong colour
    for (const [sign, name] of [[1, "--cs-good"], [-1, "--cs-warn"]]) { // above and below chance
      context.fillStyle = colour(name);
      sync.contrast.forEach((value, k) => {
        if (value === null || Math.sign(value) !== sign) return;
        const from = x(Math.max(0, sync.times[k] - sync.hop / 2)), to = x(sync.times[k] + sync.hop / 2);
        context.fillRect(from, Math.min(y(0), y(value)), Math.max(1, to - from - 0.5), Math.abs(y(value) - y(0)));
      });
    }
    context.globalAlpha = 1;
    context.strokeStyle = colour("--body-text-color-subdued");
    context.lineWidth = 1;
    line(context, left, y(0), left + room, y(0));
    for (const [moment, share] of marks) { // the likelier, the more it stands out
      context.fillStyle = colour("--cs-accent");
      context.globalAlpha = 0.25 + 0.6 * share;
      context.fillRect(x(moment) - 3, top, 6, tall);
    }
    context.globalAlpha = 1;
    cursor(context, x(time), top, height - bottom);
  }

  /* How well audio and video fit when the audio is moved. */
  function offset(canvas, sync) {
    const prepared = prepare(canvas);
    if (!prepared) return;
    const { context, width, height } = prepared;
    const left = 44, right = 14, top = 24, bottom = 42, room = width - left - right, tall = height - top - bottom;
    const shown = sync.offset_scores.filter((value) => value !== null);
    if (!shown.length) return;
    const low = Math.min(0, ...shown), high = Math.max(0.5, ...shown);
    const begin = sync.offsets[0], end = sync.offsets[sync.offsets.length - 1];
    const x = (moved) => left + ((moved - begin) / (end - begin || 1)) * room;
    const y = (value) => top + ((high - value) / (high - low)) * tall;
    if (sync.clear && sync.interval) {
      context.fillStyle = "rgba(251,146,60,.22)";
      const [from, to] = sync.interval.map((moved) => x(Math.min(end, Math.max(begin, moved))));
      context.fillRect(from, top, Math.max(2, to - from), tall);
    }
    context.fillStyle = context.strokeStyle = colour("--body-text-color-subdued");
    context.lineWidth = 1;
    line(context, x(0), top, x(0), top + tall);
    line(context, left, y(0), left + room, y(0));
    for (let moved = Math.ceil(begin); moved <= end; moved++) {
      write(context, `${moved}`.replace("-", "−"), x(moved), top + tall + 4, "center", "top");
    }
    write(context, "audio early  ←  seconds  →  audio late", left + room / 2, top + tall + 23, "center", "top");
    for (const value of [low, 0, high].filter((one) => one === 0 || Math.abs(y(one) - y(0)) > 14)) {
      write(context, value === 0 ? "0" : signed(value, 1), left - 6, y(value), "right", "middle");
    }
    context.strokeStyle = colour("--cs-accent");
    context.globalAlpha = sync.clear ? 1 : 0.45;
    context.lineWidth = 2;
    context.beginPath();
    let pen = false;
    sync.offset_scores.forEach((value, k) => {
      if (value === null) { pen = false; return; }
      if (pen) context.lineTo(x(sync.offsets[k]), y(value)); else context.moveTo(x(sync.offsets[k]), y(value));
      pen = true;
    });
    context.stroke();
    context.globalAlpha = 1;
    if (sync.clear) {
      context.strokeStyle = "#ea580c";
      line(context, x(sync.offset), top - 4, x(sync.offset), top + tall);
      context.fillStyle = colour("--body-text-color");
      write(context, `best: ${signed(sync.offset)} s`, x(sync.offset), top - 6, x(sync.offset) > left + room / 2 ? "right" : "left", "bottom");
    }
  }

  /* Light where the audio comes from, over the video as the player shows it; `video` has its size. */
  function heat(canvas, places, video, time) {
    const prepared = prepare(canvas);
    if (!prepared || !places || !video.videoWidth) return;
    const { context, width, height } = prepared;
    const scale = Math.min(width / video.videoWidth, height / video.videoHeight);
    const shown = { w: video.videoWidth * scale, h: video.videoHeight * scale };
    const corner = { x: (width - shown.w) / 2, y: (height - shown.h) / 2 };
    const [, rows, columns] = places.cells.shape, moment = nearest(places.times, time);
    const small = pixels(rows, columns, (row, column) => {
      const level = places.cells.bytes[(moment * rows + row) * columns + column];
      const [red, green, blue, opacity] = between(HEAT, level ? (level - 1) / 254 : 0);
      return [red, green, blue, Math.round(255 * opacity)];
    });
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

  /* The spectrogram with the part that the frames fit; the place of the drawing is left in `sound.line`. */
  function spectrogram(canvas, sound, time) {
    const prepared = prepare(canvas);
    if (!prepared) return;
    const { context, width, height } = prepared;
    const left = 44, right = 16, top = 8, bottom = 20, room = width - left - right, tall = height - top - bottom;
    const [rows, columns] = sound.levels.shape, [high, long] = sound.fits.shape;
    if (!sound.images) {
      sound.images = [
        pixels(rows, columns, (row, column) => {
          const grey = sound.levels.bytes[(rows - 1 - row) * columns + column] * 0.82;
          return [grey, grey, grey, 255];
        }),
        pixels(high, long, (row, column) => {
          const level = sound.fits.bytes[(high - 1 - row) * long + column];
          const [red, green, blue, opacity] = between(HEAT, level ? (level - 1) / 254 : 0);
          return [red, green, blue, Math.round(255 * opacity)];
        }),
      ];
    }
    context.imageSmoothingEnabled = true;
    for (const image of sound.images) context.drawImage(image, left, top, room, tall);
    const x = (moment) => left + ((moment - sound.start) / sound.seconds) * room;
    sound.line = { left, room, length: sound.seconds };
    context.fillStyle = colour("--body-text-color-subdued");
    for (const tick of ticks(sound.seconds, room)) write(context, `${tick} s`, x(tick), height - bottom + 4, "center", "top");
    write(context, "high", left - 6, top, "right", "top");
    write(context, "low", left - 6, top + tall, "right", "bottom");
    context.strokeStyle = "#fff";
    context.lineWidth = 2;
    line(context, x(time), top, x(time), top + tall);
  }

  return { clock, signed, unpack, valueOf, nearest, matrix, timeline, offset, heat, spectrogram,
    scales: { ramp: gradient(RAMP), heat: gradient(HEAT) } };
})();

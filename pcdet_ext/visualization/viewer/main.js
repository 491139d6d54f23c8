// The viewer: what is shown, and what the pointer and the keys change.

const FRAME_MILLISECONDS = 200;
const SETS = ["hidden", "hiddenPoints", "hiddenMap", "hiddenCells"];

class Viewer {
  constructor(data) {
    this.data = data;
    this.wish = new URLSearchParams(location.hash.slice(1));
    this.canvas = document.getElementById("scene");
    this.renderer = new Renderer(this.canvas);
    this.state = {
      frame: 0, score: data.score, colouring: 0, boxesBy: data.box_colourings[0], pointSize: data.point_size, preset: "behind the car",
      layers: Object.fromEntries(data.layers.map((name) => [name, !data.off.includes(name)])),
      ...Object.fromEntries(SETS.map((name) => [name, new Set()])),
    };
    this.readWish();
    fillPanel(this);
    fillBar(this);
    this.listen();
    this.look(this.state.preset);
    this.set({}, true);
  }

  // Page.html#frame=3&score=0.5&view=bird's eye&points=range&boxes=match&theme=light shows just that.
  readWish() {
    const { data, state, wish } = this, number = (key) => Number(wish.get(key));
    if (wish.has("frame")) state.frame = Math.min(Math.max(0, number("frame") | 0), data.frames.length - 1);
    if (wish.has("score") && !Number.isNaN(number("score"))) state.score = number("score");
    if (data.box_colourings.includes(wish.get("boxes"))) state.boxesBy = wish.get("boxes");
    state.colouring = Math.max(0, data.colourings.findIndex((c) => c.name === wish.get("points")));
    if (wish.get("view") in presets([0, 1, 0, 1], 1)) state.preset = wish.get("view");
    if (["light", "dark"].includes(wish.get("theme"))) document.documentElement.dataset.theme = wish.get("theme");
    for (const key of ["with", "without"]) {
      for (const name of (wish.get(key) || "").split(",")) if (name in state.layers) state.layers[name] = key === "with";
    }
  }

  set(changes, panel = false) {
    const frame = this.state.frame;
    Object.assign(this.state, changes);
    if (panel) fillPanel(this);
    if (panel || this.state.frame !== frame) this.loadPoints();
    this.rebuild();
  }

  hide(name, key, hidden) {
    this.state[name][hidden ? "add" : "delete"](key);
    this.set({}, name === "hiddenPoints");
  }

  setPointsBy(name) { this.set({ colouring: this.data.colourings.findIndex((c) => c.name === name) }, true); }

  setTheme() {
    const root = document.documentElement;
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    this.rebuild();
  }

  closePanel() { document.body.classList.toggle("closed"); this.redraw(); }

  look(name) {
    this.state.preset = name;
    this.camera = presets(this.data.extent, this.canvas.clientWidth / this.canvas.clientHeight)[name];
    this.redraw();
  }

  play() {
    if (this.timer) { clearInterval(this.timer); this.timer = null; }
    else this.timer = setInterval(() => this.step(1), FRAME_MILLISECONDS);
    setText("play", this.timer ? "pause" : "play");
  }

  step(by) {
    const count = this.data.frames.length;
    this.set({ frame: (this.state.frame + by + count) % count });
  }

  get frame() { return this.data.frames[this.state.frame]; }

  loadPoints() {
    const by = this.data.colourings[this.state.colouring], { points } = this.frame;
    this.renderer.setPoints(this.data.bytes, points);
    this.renderer.setLevels(this.data.bytes, by.channel === null ? null : points.channels[by.channel]);
    this.renderer.setPalette(by.classes ? this.classPalette(by.classes) : rampPalette(by.ramp));
  }

  classPalette(classes) {
    const palette = new Uint8Array(4 * 256);
    classes.forEach((c, i) => {
      const alpha = this.state.hiddenPoints.has(i) ? 0 : 255;
      palette.set([...rgb(c.colour).map((v) => v * 255), alpha], 4 * i);
    });
    return palette;
  }

  // The boxes that are shown, with their state.
  shown() {
    const { state, frame } = this, result = [];
    for (const box of frame.boxes) {
      const status = statusOf(frame, box, state.score), kind = box[BOX.found] ? "found" : "truth";
      const off = [kind, box[BOX.label], ...(state.boxesBy === "match" ? [status] : [])].some((key) => state.hidden.has(key));
      if (!off && isShown(box, state.score)) result.push({ box, status, kind });
    }
    return result;
  }

  colourOf({ box, status, kind }) {
    const { colours, classes, track_colours: tracks } = this.data, by = this.state.boxesBy;
    if (by === "track") return box[BOX.track] < 0 ? colours.plain : tracks[box[BOX.track] % tracks.length];
    if (by === "match") return colours[status];
    return kind === "truth" ? colours.truth : classes[box[BOX.label]].colour;
  }

  rebuild() {
    const { state, frame, data, renderer } = this, { layers } = state, shapes = new Shapes();
    this.boxes = this.shown();
    if (layers.occupancy && frame.occupancy) addOccupancy(shapes, frame.occupancy, data.bytes, state.hiddenCells);
    if (layers.map) addMap(shapes, frame.map, data.ground, state.hiddenMap);
    if (layers.rings) addRings(shapes, rgb(data.colours.plain), data.ground, Math.max(...data.extent.map(Math.abs)));
    for (const entry of this.boxes) {
      const colour = rgb(this.colourOf(entry)), found = entry.kind === "found";
      addBox(shapes, entry.box, colour, found ? FOUND_WIDTH : TRUTH_WIDTH, found || (state.boxesBy === "match" && entry.status === "missed") ? 0.1 : 0);
      if (layers.velocity) addArrow(shapes, entry.box, colour);
    }
    if (layers.tracks) this.addTracks(shapes);
    if (layers.forecasts) this.addForecasts(shapes);
    if (layers.plan) for (const plan of frame.plans) shapes.path(plan.path, rgb(plan.found ? data.colours.plan : data.colours.truth), plan.found ? 5 : 3);
    renderer.setLines(shapes.lines);
    renderer.setFaces("faces", shapes.faces);
    renderer.setFaces("walls", shapes.walls);
    this.write();
    this.redraw();
  }

  // Whether what belongs to an object is shown: by its class, its kind and its score.
  belongs(part) {
    const { hidden, score } = this.state;
    const scores = part.score === null || part.score >= score;
    return scores && !hidden.has(part.found ? "found" : "truth") && !hidden.has(part.label);
  }

  addTracks(shapes) {
    const { colours, track_colours: own } = this.data;
    for (const track of this.frame.tracks.filter((t) => this.belongs(t))) {
      const plain = track.found ? colours.found_track : colours.truth;
      addTrack(shapes, track, rgb(this.state.boxesBy === "track" ? own[track.id % own.length] : plain));
    }
  }

  addForecasts(shapes) {
    const { colours } = this.data;
    for (const forecast of this.frame.forecasts.filter((f) => this.belongs(f))) {
      addForecast(shapes, forecast, rgb(forecast.found ? colours.forecast : colours.truth));
    }
  }

  // Titles and numbers beside the picture.
  write() {
    const { state, frame, data } = this;
    setText("title", frame.title);
    setText("note", frame.note);
    setText("frame-value", `${state.frame + 1} of ${data.frames.length}`);
    setText("score-value", state.score.toFixed(2));
    setValue("frame", state.frame);
    setValue("score", state.score);
    const count = (test) => String(this.boxes.filter(test).length);
    for (const kind of ["found", "truth"]) setText(`count-${kind}`, count((b) => b.kind === kind));
    for (const status of ["false", "missed", "plain"]) setText(`count-${status}`, count((b) => b.status === status));
    setText("count-matched", count((b) => b.status === "matched" && b.kind === "found"));
    data.classes.forEach((_, i) => setText(`count-class-${i}`, count(({ box }) => box[BOX.label] === i)));
  }

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => { this.waiting = false; this.draw(); });
  }

  draw() {
    const by = this.data.colourings[this.state.colouring];
    const ground = rgb(getComputedStyle(document.documentElement).getPropertyValue("--ground").trim());
    this.renderer.draw(this.camera, ground, { ...by, size: this.state.pointSize });
    this.drawLabels();
    this.drawn = (this.drawn || 0) + 1;
  }

  drawLabels() {
    const canvas = document.getElementById("labels"), scale = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight, context = canvas.getContext("2d");
    Object.assign(canvas, { width: width * scale, height: height * scale });
    if (!this.state.layers.labels) return;
    context.scale(scale, scale);
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ground");
    context.lineWidth = 3;
    const taken = [];
    for (const { entry, place } of this.labelled(width, height)) {
      const text = this.shortLabel(entry.box), half = context.measureText(text).width / 2;
      const area = [place[0] - half, place[1] - 16, place[0] + half, place[1] - 3];
      if (taken.some((other) => overlap(area, other))) continue;
      taken.push(area);
      context.fillStyle = this.colourOf(entry);
      context.strokeText(text, place[0], place[1] - 5);
      context.fillText(text, place[0], place[1] - 5);
    }
  }

  // The boxes that have a label and where it is, detections and then what is nearest first: where labels would lie over
  // each other, the first one stays.
  labelled(width, height) {
    const { eye } = frameOf(this.camera), { has } = this.data;
    const wanted = this.boxes.filter(({ kind, status }) => kind === "found" || !has.found || status === "missed");
    const away = ({ box, kind }) => Math.hypot(box[0] - eye[0], box[1] - eye[1]) + (kind === "found" ? 0 : 1e4);
    return wanted.sort((a, b) => away(a) - away(b))
      .map((entry) => ({ entry, place: project(this.camera, width, height, topOf(entry.box)) }))
      .filter(({ place }) => place);
  }

  shortLabel(box) {
    const score = box[BOX.found] ? ` ${box[BOX.score].toFixed(2)}` : "", track = box[BOX.track] >= 0 ? ` #${box[BOX.track]}` : "";
    return this.data.classes[box[BOX.label]].name + track + score;
  }

  longLabel({ box, status, kind }) {
    const lines = [this.shortLabel(box), kind === "found" ? "detection" : "ground truth"];
    if (status !== "plain") lines[1] += `, ${status === "false" ? "false positive" : status}`;
    lines.push(`${[BOX.dx, BOX.dy, BOX.dz].map((i) => box[i].toFixed(2)).join(" × ")} m`);
    lines.push(`${Math.hypot(box[0], box[1]).toFixed(1)} m away`);
    if (box[BOX.vx] !== null) lines.push(`${Math.hypot(box[BOX.vx], box[BOX.vy]).toFixed(1)} m/s`);
    return lines.join("\n");
  }

  // The box nearest to the viewer under a pixel; of a detection and a labelled box in one place, the detection.
  boxAt(x, y) {
    const ray = rayThrough(this.camera, this.canvas.clientWidth, this.canvas.clientHeight, x, y);
    let best = null, nearest = Infinity;
    for (const entry of this.boxes) {
      const far = hit(ray, entry.box);
      const value = far === null ? Infinity : far + (entry.kind === "truth" ? 1 : 0);
      if (value < nearest) [best, nearest] = [entry, value];
    }
    return best;
  }

  hover(event) {
    const label = document.getElementById("hover"), entry = this.boxAt(event.offsetX, event.offsetY);
    label.hidden = !entry;
    if (!entry) return;
    label.textContent = this.longLabel(entry);
    const room = this.canvas.clientWidth - label.offsetWidth - 4;
    label.style.left = `${Math.min(event.offsetX + 14, room)}px`;
    label.style.top = `${Math.min(event.offsetY + 14, this.canvas.clientHeight - label.offsetHeight - 4)}px`;
  }

  drag(event) {
    const dx = event.movementX, dy = event.movementY, move = event.shiftKey || event.buttons !== 1;
    this.camera = move ? shift(this.camera, dx, dy, this.canvas.clientHeight) : turn(this.camera, dx, dy);
    document.getElementById("hover").hidden = true;
    this.redraw();
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => (event.buttons ? this.drag(event) : this.hover(event)));
    canvas.addEventListener("pointerleave", () => { document.getElementById("hover").hidden = true; });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.camera = zoom(this.camera, Math.exp(event.deltaY * 0.001));
      this.redraw();
    }, { passive: false });
    window.addEventListener("resize", () => this.redraw());
    window.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (["INPUT", "SELECT", "BUTTON"].includes(event.target.tagName)) return;
    if (event.key === " ") this.play();
    if (event.key === "ArrowRight") this.step(1);
    if (event.key === "ArrowLeft") this.step(-1);
    if (event.key === "t") this.setTheme();
    const name = Object.keys(presets([0, 1, 0, 1], 1))[Number(event.key) - 1];
    if (name) this.look(name);
  }
}

const topOf = (box) => [box[BOX.x], box[BOX.y], box[BOX.z] + box[BOX.dz] / 2];

const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

function rampPalette(ramp) {
  const stops = ramp.map(rgb), palette = new Uint8Array(4 * 256);
  for (let i = 0; i < 256; i++) {
    const place = i / 255 * (stops.length - 1), k = Math.min(Math.floor(place), stops.length - 2);
    const colour = stops[k].map((v, c) => v + (stops[k + 1][c] - v) * (place - k));
    palette.set([...colour.map((v) => Math.round(v * 255)), 255], 4 * i);
  }
  return palette;
}

readData().then((data) => { window.viewer = new Viewer(data); }).catch((error) => {
  const message = document.getElementById("message");
  Object.assign(message, { hidden: false, textContent: error.message });
  console.error(error);
});

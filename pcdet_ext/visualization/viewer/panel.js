// What stands beside and below the picture: legend, switches, sliders.

const LAYERS = {
  rings: "range rings", labels: "labels", velocity: "velocities", tracks: "tracks", forecasts: "predicted paths",
  map: "map", occupancy: "occupancy", plan: "planned path",
};

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// A line of the legend: a box to tick, a colour, a name, and how many there are.
function legendRow(id, name, colour, checked, change) {
  const input = element("input", { type: "checkbox", checked, id: `show-${id}`, onchange: () => change(input.checked) });
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = colour || "transparent";
  return element("label", { className: "row" }, input, ...(colour ? [swatch] : []),
    element("span", { className: "name", textContent: name }), element("span", { className: "count", id: `count-${id}` }));
}

function select(id, names, value, change) {
  const made = element("select", { id, onchange: () => change(made.value) });
  for (const name of names) made.append(element("option", { value: name, textContent: name, selected: name === value }));
  return made;
}

function slider(id, text, range, value, change) {
  const input = element("input", { type: "range", id, ...range, value });
  const output = element("output", { id: `${id}-value` });
  input.oninput = () => change(Number(input.value));
  return element("label", {}, text, input, output);
}

const heading = (text) => element("h2", { textContent: text });

function pointSection(viewer) {
  const { data, state } = viewer;
  const names = data.colourings.map((c) => c.name);
  const by = data.colourings[state.colouring];
  const parts = [heading("points by"), select("points-by", names, by.name, (name) => viewer.setPointsBy(name))];
  if (by.classes) {
    by.classes.forEach((c, i) => parts.push(
      legendRow(`point-${i}`, c.name, c.colour, !state.hiddenPoints.has(i), (on) => viewer.hide("hiddenPoints", i, !on))));
  } else {
    const ramp = element("div", { className: "ramp" });
    ramp.style.background = `linear-gradient(to right, ${by.ramp.join(", ")})`;
    parts.push(ramp, element("div", { className: "ends" }, ...by.ends.map((text) => element("span", { textContent: text }))));
  }
  return parts;
}

function boxSection(viewer) {
  const { data, state } = viewer;
  if (!data.classes.length) return [];
  const parts = [heading("boxes by"), select("boxes-by", data.box_colourings, state.boxesBy, (name) => viewer.set({ boxesBy: name }, true))];
  for (const [key, name] of [["found", "detections"], ["truth", "ground truth"]]) {
    if (data.has[key]) {
      const colour = key === "truth" && state.boxesBy === "class" ? data.colours.truth : null;
      parts.push(legendRow(key, name, colour, !state.hidden.has(key), (on) => viewer.hide("hidden", key, !on)));
    }
  }
  if (state.boxesBy === "match") {
    for (const [key, name] of Object.entries({ matched: "matched", false: "false positive", missed: "missed", plain: "not counted" })) {
      parts.push(legendRow(key, name, data.colours[key], !state.hidden.has(key), (on) => viewer.hide("hidden", key, !on)));
    }
  }
  parts.push(heading("classes"));
  data.classes.forEach((c, i) => {
    const colour = data.has.found && state.boxesBy === "class" ? c.colour : null;
    parts.push(legendRow(`class-${i}`, c.name, colour, !state.hidden.has(i), (on) => viewer.hide("hidden", i, !on)));
  });
  return parts;
}

function layerSection(viewer) {
  const { data, state } = viewer;
  const parts = [heading("layers")];
  for (const name of data.layers) {
    const change = (on) => viewer.set({ layers: { ...state.layers, [name]: on } });
    parts.push(legendRow(name, LAYERS[name], name === "plan" ? data.colours.plan : null, state.layers[name], change));
  }
  for (const [set, classes] of [["hiddenMap", data.map_classes], ["hiddenCells", data.occupancy_classes]]) {
    if (!classes.length) continue;
    parts.push(heading(set === "hiddenMap" ? "map" : "occupancy"));
    for (const c of classes) {
      parts.push(legendRow(`${set}-${c.name}`, c.name, c.colour, !state[set].has(c.name), (on) => viewer.hide(set, c.name, !on)));
    }
  }
  return parts;
}

function viewSection(viewer) {
  const buttons = Object.keys(presets([0, 1, 0, 1], 1)).map((name) =>
    element("button", { textContent: name, onclick: () => viewer.look(name) }));
  const size = slider("point-size", "size", { min: 1, max: 6, step: 0.5 }, viewer.state.pointSize, (pointSize) => viewer.set({ pointSize }));
  size.className = "row";
  return [heading("view"), element("div", { className: "buttons" }, ...buttons), size];
}

function fillPanel(viewer) {
  const sections = [viewSection, pointSection, boxSection, layerSection].flatMap((section) => section(viewer));
  document.getElementById("panel").replaceChildren(...sections);
}

function fillBar(viewer) {
  const { data, state } = viewer, parts = [];
  if (data.frames.length > 1) {
    parts.push(element("button", { id: "play", textContent: "play", onclick: () => viewer.play() }));
    const range = { min: 0, max: data.frames.length - 1, step: 1 };
    parts.push(slider("frame", "frame", range, state.frame, (frame) => viewer.set({ frame })));
  }
  if (data.has.found) {
    const [min, max] = data.scores;
    parts.push(slider("score", "score at least", { min, max, step: 0.01 }, state.score, (score) => viewer.set({ score })));
  }
  parts.push(element("button", { id: "theme", textContent: "light / dark", onclick: () => viewer.setTheme() }));
  parts.push(element("button", { id: "close", textContent: "panel", onclick: () => viewer.closePanel() }));
  document.getElementById("bar").replaceChildren(...parts);
}

const setText = (id, text) => { const found = document.getElementById(id); if (found) found.textContent = text; };
const setValue = (id, value) => { const found = document.getElementById(id); if (found) found.value = value; };

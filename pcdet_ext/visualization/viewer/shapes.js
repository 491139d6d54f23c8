// From a frame and what is switched on to lines and faces.

const EDGES = [[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]];
const SIDES = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]];
const SLOWEST_ARROW = 0.2, BARB = 0.25, RING_STEP = 20;
const FOUND_WIDTH = 2.4, TRUTH_WIDTH = 1.6;

class Shapes {
  constructor() { this.lines = []; this.faces = []; this.walls = []; }

  line(a, b, colour, width, alpha = 1) { this.lines.push(...a, ...b, ...colour, alpha, width); }

  path(points, colour, width, alpha = () => 1) {
    for (let i = 1; i < points.length; i++) this.line(points[i - 1], points[i], colour, width, alpha(i / (points.length - 1)));
  }

  // One that can be seen through is a face, another a wall.
  quad(corners, colour, alpha) {
    const kind = alpha < 1 ? this.faces : this.walls;
    for (const i of [0, 1, 2, 0, 2, 3]) kind.push(...corners[i], ...colour, alpha);
  }
}

function addBox(shapes, box, colour, width, alpha) {
  const corners = cornersOf(box), floor = middle(corners[0], corners[2]);
  for (const [a, b] of EDGES) shapes.line(corners[a], corners[b], colour, width);
  shapes.line(floor, middle(corners[0], corners[1]), colour, width);
  if (alpha) for (const side of SIDES) shapes.quad(side.map((i) => corners[i]), colour, alpha);
}

// An arrow to where the object is after one second; none where it stands still or its velocity is not known.
function addArrow(shapes, box, colour) {
  const [vx, vy] = [box[BOX.vx], box[BOX.vy]];
  if (vx === null || Math.hypot(vx, vy) < SLOWEST_ARROW) return;
  const [x, y, z] = box, tip = [x + vx, y + vy, z];
  shapes.line([x, y, z], tip, colour, FOUND_WIDTH);
  for (const side of [0.5, -0.5]) {
    shapes.line(tip, [tip[0] - BARB * (vx + side * vy), tip[1] - BARB * (vy - side * vx), z], colour, FOUND_WIDTH);
  }
}

function addRings(shapes, colour, z, reach) {
  for (let r = RING_STEP; r <= reach; r += RING_STEP) {
    const circle = Array.from({ length: 97 }, (_, i) => [r * Math.cos(i * Math.PI / 48), r * Math.sin(i * Math.PI / 48), z]);
    shapes.path(circle, colour, 1, () => 0.5);
  }
  shapes.line([-1, 0, z], [3, 0, z], colour, 2);
  for (const y of [0.8, -0.8]) shapes.line([3, 0, z], [2, y, z], colour, 2);
}

function addTrack(shapes, track, colour) {
  shapes.path(track.path, colour, track.found ? FOUND_WIDTH : TRUTH_WIDTH, (share) => 0.25 + 0.75 * share);
}

// Every mode of a forecast, the likelier the stronger.
function addForecast(shapes, forecast, colour) {
  const most = Math.max(...forecast.probabilities);
  forecast.modes.forEach((mode, i) => {
    const alpha = 0.15 + 0.85 * (most > 0 ? forecast.probabilities[i] / most : 1);
    shapes.path(mode, colour, FOUND_WIDTH, () => alpha);
  });
}

function addMap(shapes, map, z, hidden) {
  for (const part of map) {
    if (hidden.has(part.name)) continue;
    const colour = rgb(part.colour);
    for (const [x0, y0, x1, y1] of part.cells) {
      shapes.quad([[x0, y0, z], [x1, y0, z], [x1, y1, z], [x0, y1, z]], colour, 0.45);
    }
    for (const line of part.lines) shapes.path(line.map(([x, y]) => [x, y, z]), colour, 2);
  }
}

// The faces of occupied cells whose neighbour on that side is empty, darker where they look away from above.
function addOccupancy(shapes, occupancy, bytes, hidden) {
  const [nx, ny, nz] = occupancy.grid, cells = new Uint16Array(bytes, occupancy.at, 4 * occupancy.count);
  const full = new Uint8Array(nx * ny * nz), at = (x, y, z) => (x * ny + y) * nz + z;
  const seen = (i) => !hidden.has(occupancy.classes[cells[i + 3]].name);
  for (let i = 0; i < cells.length; i += 4) if (seen(i)) full[at(cells[i], cells[i + 1], cells[i + 2])] = 1;
  const isFull = (x, y, z) => x >= 0 && y >= 0 && z >= 0 && x < nx && y < ny && z < nz && full[at(x, y, z)];
  const colours = occupancy.classes.map((c) => rgb(c.colour));
  for (let i = 0; i < cells.length; i += 4) {
    if (!seen(i)) continue;
    const cell = [cells[i], cells[i + 1], cells[i + 2]];
    for (const axis of [0, 1, 2]) for (const side of [0, 1]) {
      const next = cell.map((v, k) => v + (k === axis ? 2 * side - 1 : 0));
      if (!isFull(...next)) addCellFace(shapes, occupancy, cell, axis, side, colours[cells[i + 3]]);
    }
  }
}

function addCellFace(shapes, occupancy, cell, axis, side, colour) {
  const light = axis === 2 ? (side ? 1 : 0.5) : axis === 0 ? 0.8 : 0.68;
  const [u, v] = [0, 1, 2].filter((k) => k !== axis);
  const corners = [[0, 0], [1, 0], [1, 1], [0, 1]].map(([a, b]) => {
    const place = [...cell];
    place[axis] += side;
    place[u] += a;
    place[v] += b;
    return place.map((value, k) => occupancy.low[k] + value * occupancy.size[k]);
  });
  shapes.quad(corners, colour.map((value) => value * light), 1);
}

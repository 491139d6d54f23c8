// A camera that turns around a point: azimuth and elevation are where it stands as seen from that point, in radians.

const FIELD_OF_VIEW = Math.PI / 4;
const FLATTEST = -0.2, STEEPEST = Math.PI / 2;
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];

function presets(extent, aspect) {
  const [x0, x1, y0, y1] = extent;
  const half = Math.tan(FIELD_OF_VIEW / 2);
  const height = Math.max((x1 - x0) / 2, (y1 - y0) / 2 / aspect) * 1.05 / half;
  const above = { target: [(x0 + x1) / 2, (y0 + y1) / 2, 0], distance: height, azimuth: Math.PI, elevation: STEEPEST };
  return {
    "bird's eye": above,
    "behind the car": { target: [12, 0, 0], distance: 30, azimuth: Math.PI, elevation: 0.42 },
    "driver": { target: [6, 0, 0.3], distance: 6, azimuth: Math.PI, elevation: 0.02 },
    "from the left": { target: [10, 0, 0], distance: 45, azimuth: Math.PI / 2, elevation: 0.5 },
  };
}

// Where the camera stands and its axes: to the right, up, and forward.
function frameOf(camera) {
  const ce = Math.cos(camera.elevation), se = Math.sin(camera.elevation);
  const ca = Math.cos(camera.azimuth), sa = Math.sin(camera.azimuth);
  const forward = [-ce * ca, -ce * sa, -se], right = [-sa, ca, 0];
  const eye = camera.target.map((value, i) => value - forward[i] * camera.distance);
  return { eye, right, up: cross(right, forward), forward };
}

// The matrix from LiDAR coordinates to clip space, column by column.
function projection(camera, aspect) {
  const { eye, right, up, forward } = frameOf(camera);
  const f = 1 / Math.tan(FIELD_OF_VIEW / 2), near = Math.max(0.05, camera.distance / 500), far = camera.distance + 3000;
  const a = (far + near) / (far - near), b = -2 * far * near / (far - near);
  const rows = [right.map((v) => v * f / aspect), up.map((v) => v * f), forward.map((v) => v * a), forward];
  const last = [-dot(rows[0], eye), -dot(rows[1], eye), -dot(rows[2], eye) + b, -dot(forward, eye)];
  return new Float32Array([0, 1, 2].flatMap((i) => rows.map((row) => row[i])).concat(last));
}

// Where a point is in a picture of this size, in pixels from the upper left corner; null behind the camera.
function project(camera, width, height, point) {
  const m = projection(camera, width / height);
  const at = (row) => m[row] * point[0] + m[row + 4] * point[1] + m[row + 8] * point[2] + m[row + 12];
  const w = at(3);
  return w < 0.05 ? null : [(at(0) / w + 1) * width / 2, (1 - at(1) / w) * height / 2];
}

// The ray through a pixel.
function rayThrough(camera, width, height, x, y) {
  const { eye, right, up, forward } = frameOf(camera);
  const t = Math.tan(FIELD_OF_VIEW / 2);
  const h = (2 * x / width - 1) * t * width / height, v = (1 - 2 * y / height) * t;
  return { eye, way: forward.map((value, i) => value + right[i] * h + up[i] * v) };
}

// How far along a ray a box is hit; null where it is not. The slab test in the box's own coordinates.
function hit({ eye, way }, box) {
  const cos = Math.cos(box[BOX.heading]), sin = Math.sin(box[BOX.heading]);
  const turned = ([x, y, z]) => [x * cos + y * sin, -x * sin + y * cos, z];
  const from = turned([eye[0] - box[BOX.x], eye[1] - box[BOX.y], eye[2] - box[BOX.z]]), to = turned(way);
  let low = 0, high = Infinity;
  for (let i = 0; i < 3; i++) {
    const half = box[BOX.dx + i] / 2;
    const ends = [(-half - from[i]) / to[i], (half - from[i]) / to[i]].sort((a, b) => a - b);
    low = Math.max(low, ends[0]);
    high = Math.min(high, ends[1]);
  }
  return low <= high ? low : null;
}

function turn(camera, dx, dy) {
  const elevation = Math.min(STEEPEST, Math.max(FLATTEST, camera.elevation + dy * 0.006));
  return { ...camera, azimuth: camera.azimuth - dx * 0.006, elevation };
}

// Move the point that is looked at over the ground, as far as the pointer went.
function shift(camera, dx, dy, height) {
  const { right, up, forward } = frameOf(camera);
  const metres = 2 * camera.distance * Math.tan(FIELD_OF_VIEW / 2) / height;
  const ahead = Math.abs(up[0]) + Math.abs(up[1]) > 1e-6 ? up : forward;
  const length = Math.hypot(ahead[0], ahead[1]) || 1;
  const along = [ahead[0] / length, ahead[1] / length, 0];
  return { ...camera, target: camera.target.map((v, i) => v - right[i] * dx * metres + along[i] * dy * metres) };
}

const zoom = (camera, factor) => ({ ...camera, distance: Math.min(2000, Math.max(1, camera.distance * factor)) });

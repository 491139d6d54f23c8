// What Python wrote into the page: a description in JSON, and the numbers of the points in one block of bytes.

const BOX = { x: 0, y: 1, z: 2, dx: 3, dy: 4, dz: 5, heading: 6, vx: 7, vy: 8, score: 9, label: 10, found: 11, partner: 12, track: 13 };

async function readData() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const text = document.getElementById("blob").textContent;
  const packed = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  data.bytes = await new Response(stream).arrayBuffer();
  return data;
}

// Whether a box counts at a score: labelled boxes always do.
const isShown = (box, score) => !box[BOX.found] || box[BOX.score] >= score;

// "matched", "false", "missed", or "plain" where nothing says which. A match is made by descending score, so that which
// boxes are matched does not depend on what scores less: a labelled box is missed once its partner is hidden.
function statusOf(frame, box, score) {
  if (!frame.matched) return "plain";
  const partner = box[BOX.partner];
  if (partner === -2) return "plain";
  if (box[BOX.found]) return partner >= 0 ? "matched" : "false";
  return partner >= 0 && frame.boxes[partner][BOX.score] >= score ? "matched" : "missed";
}

function cornersOf(box) {
  const cos = Math.cos(box[BOX.heading]), sin = Math.sin(box[BOX.heading]);
  const corner = (sx, sy, sz) => {
    const x = sx * box[BOX.dx] / 2, y = sy * box[BOX.dy] / 2;
    return [box[BOX.x] + x * cos - y * sin, box[BOX.y] + x * sin + y * cos, box[BOX.z] + sz * box[BOX.dz] / 2];
  };
  const ring = [[1, 1], [1, -1], [-1, -1], [-1, 1]];
  return [...ring.map(([x, y]) => corner(x, y, -1)), ...ring.map(([x, y]) => corner(x, y, 1))];
}

const middle = (a, b) => a.map((value, i) => (value + b[i]) / 2);

const rgb = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16) / 255);

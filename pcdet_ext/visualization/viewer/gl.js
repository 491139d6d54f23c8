// Drawing with WebGL 2: points, lines of any width, and faces that may be seen through.

const POINT_VERTEX = `#version 300 es
in vec3 place; in float level;
uniform mat4 camera; uniform vec3 low, size; uniform float pointSize, first, last; uniform int by;
out float shade;
void main() {
  vec3 p = low + place * size;
  gl_Position = camera * vec4(p, 1.0);
  gl_PointSize = pointSize;
  float value = by == 0 ? p.z : by == 1 ? length(p.xy) : level;
  shade = by == 3 ? floor(level * 255.0 + 0.5) / 255.0 : clamp((value - first) / (last - first), 0.0, 1.0);
}`;
const POINT_FRAGMENT = `#version 300 es
precision mediump float;
in float shade; uniform sampler2D palette; out vec4 colour;
void main() {
  colour = texture(palette, vec2((shade * 255.0 + 0.5) / 256.0, 0.5));
  if (colour.a == 0.0) discard;
}`;
const LINE_VERTEX = `#version 300 es
in vec3 a, b; in vec4 tint; in float width;
uniform mat4 camera; uniform vec2 screen;
out vec4 shade;
const float NEAR = 0.05;
void main() {
  vec4 p = camera * vec4(a, 1.0), q = camera * vec4(b, 1.0);
  if (p.w < NEAR && q.w < NEAR) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
  if (p.w < NEAR) p = mix(p, q, (NEAR - p.w) / (q.w - p.w));
  if (q.w < NEAR) q = mix(q, p, (NEAR - q.w) / (p.w - q.w));
  vec2 way = (q.xy / q.w - p.xy / p.w) * screen;
  float far = length(way);
  vec2 across = far > 0.0 ? vec2(-way.y, way.x) / far : vec2(1.0, 0.0);
  vec4 end = gl_VertexID < 2 ? p : q;
  float side = gl_VertexID % 2 == 0 ? 1.0 : -1.0;
  gl_Position = vec4(end.xy + across * side * width / screen * end.w, end.zw);
  shade = tint;
}`;
const FACE_VERTEX = `#version 300 es
in vec3 place; in vec4 tint; uniform mat4 camera; out vec4 shade;
void main() { gl_Position = camera * vec4(place, 1.0); shade = tint; }`;
const PLAIN_FRAGMENT = `#version 300 es
precision mediump float;
in vec4 shade; out vec4 colour;
void main() { colour = shade; }`;
const LINE_FLOATS = 11, FACE_FLOATS = 7;

class Renderer {
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: true, alpha: false });
    if (!gl) throw new Error("This page needs WebGL 2, which this browser does not offer here.");
    Object.assign(this, { gl, canvas });
    this.points = this.program(POINT_VERTEX, POINT_FRAGMENT);
    this.lines = this.program(LINE_VERTEX, PLAIN_FRAGMENT);
    this.faces = this.program(FACE_VERTEX, PLAIN_FRAGMENT);
    this.buffers = { place: gl.createBuffer(), level: gl.createBuffer(), lines: gl.createBuffer(), faces: gl.createBuffer(), walls: gl.createBuffer() };
    this.counts = { points: 0, lines: 0, faces: 0, walls: 0 };
    this.palette = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.palette);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.enable(gl.DEPTH_TEST);
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE);
  }

  program(vertex, fragment) {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(`WebGL: ${gl.getProgramInfoLog(program)}`);
    return program;
  }

  fill(name, array) {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers[name]);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, array, this.gl.DYNAMIC_DRAW);
  }

  setPoints(bytes, cloud) {
    this.cloud = cloud;
    this.counts.points = cloud.count;
    this.fill("place", new Uint16Array(bytes, cloud.at, 3 * cloud.count));
  }

  setLevels(bytes, at) {
    this.fill("level", at === null ? new Uint8Array(this.counts.points) : new Uint8Array(bytes, at, this.counts.points));
  }

  setPalette(colours) {
    const gl = this.gl;
    gl.bindTexture(gl.TEXTURE_2D, this.palette);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, colours);
  }

  setLines(numbers) { this.counts.lines = numbers.length / LINE_FLOATS; this.fill("lines", new Float32Array(numbers)); }

  // kind: "walls", or "faces" that can be seen through.
  setFaces(kind, numbers) { this.counts[kind] = numbers.length / FACE_FLOATS; this.fill(kind, new Float32Array(numbers)); }

  fit() {
    const scale = window.devicePixelRatio || 1;
    const width = Math.round(this.canvas.clientWidth * scale), height = Math.round(this.canvas.clientHeight * scale);
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    return scale;
  }

  draw(camera, ground, shading) {
    const gl = this.gl, scale = this.fit(), { width, height } = this.canvas;
    const matrix = projection(camera, width / height);
    gl.viewport(0, 0, width, height);
    gl.clearColor(...ground, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    this.drawPoints(matrix, shading, scale);
    this.drawFaces(matrix, "walls");
    gl.enable(gl.BLEND);
    this.drawLines(matrix, scale);
    gl.depthMask(false);
    this.drawFaces(matrix, "faces");
    gl.depthMask(true);
    gl.disable(gl.BLEND);
  }

  use(program, matrix) {
    this.gl.useProgram(program);
    this.gl.uniformMatrix4fv(this.gl.getUniformLocation(program, "camera"), false, matrix);
    return (name) => this.gl.getUniformLocation(program, name);
  }

  attribute(program, name, size, kind, normal, stride, offset, every) {
    const gl = this.gl, place = gl.getAttribLocation(program, name);
    if (place < 0) return;
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, kind, normal, stride, offset);
    gl.vertexAttribDivisor(place, every);
  }

  drawPoints(matrix, shading, scale) {
    if (!this.counts.points) return;
    const gl = this.gl, uniform = this.use(this.points, matrix);
    gl.uniform3fv(uniform("low"), this.cloud.low);
    gl.uniform3fv(uniform("size"), this.cloud.size);
    gl.uniform1f(uniform("pointSize"), shading.size * scale);
    gl.uniform1f(uniform("first"), shading.first);
    gl.uniform1f(uniform("last"), shading.last);
    gl.uniform1i(uniform("by"), shading.by);
    gl.bindTexture(gl.TEXTURE_2D, this.palette);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.place);
    this.attribute(this.points, "place", 3, gl.UNSIGNED_SHORT, true, 6, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.level);
    this.attribute(this.points, "level", 1, gl.UNSIGNED_BYTE, true, 1, 0, 0);
    gl.drawArrays(gl.POINTS, 0, this.counts.points);
  }

  drawLines(matrix, scale) {
    if (!this.counts.lines) return;
    const gl = this.gl, uniform = this.use(this.lines, matrix), bytes = 4 * LINE_FLOATS;
    gl.uniform2f(uniform("screen"), this.canvas.width / scale, this.canvas.height / scale);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.lines);
    let offset = 0;
    for (const [name, size] of [["a", 3], ["b", 3], ["tint", 4], ["width", 1]]) {
      this.attribute(this.lines, name, size, gl.FLOAT, false, bytes, offset, 1);
      offset += 4 * size;
    }
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.counts.lines);
  }

  drawFaces(matrix, kind) {
    if (!this.counts[kind]) return;
    const gl = this.gl;
    this.use(this.faces, matrix);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[kind]);
    this.attribute(this.faces, "place", 3, gl.FLOAT, false, 4 * FACE_FLOATS, 0, 0);
    this.attribute(this.faces, "tint", 4, gl.FLOAT, false, 4 * FACE_FLOATS, 12, 0);
    gl.drawArrays(gl.TRIANGLES, 0, this.counts[kind]);
  }
}

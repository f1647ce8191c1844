// A scene as slots that can be changed: composing, taking back, moving. No picture is drawn here and nothing is
// computed by a model, so all of it can be tested by itself.
//
// A slot is { z, means, maskLogits, shown }: its numbers, what they look like (as the decoder said), and whether
// it takes part. Slots are never changed, only replaced; so a state of the scene is an array of slots, and to
// take a change back is to show an older array.

// What the slots make together. masks [K, N], picture [N, C], and the slot that owns each pixel (-1: none).
export function compose(slots, C) {
  const K = slots.length, N = slots[0].maskLogits.length;
  const masks = new Float32Array(K * N), picture = new Float32Array(N * C), owner = new Int16Array(N).fill(-1);
  const shown = [...slots.keys()].filter((s) => slots[s].shown);
  for (let p = 0; p < N && shown.length; p++) {
    let top = shown[0], sum = 0;
    for (const s of shown) if (slots[s].maskLogits[p] > slots[top].maskLogits[p]) top = s;
    for (const s of shown) sum += masks[s * N + p] = Math.exp(slots[s].maskLogits[p] - slots[top].maskLogits[p]);
    owner[p] = top;
    for (const s of shown) {
      const m = masks[s * N + p] /= sum;
      for (let c = 0; c < C; c++) picture[p * C + c] += m * slots[s].means[p * C + c];
    }
  }
  return { masks, picture, owner };
}

// States of a scene in a row. Changes of the same kind that follow each other (`what`, such as one drag) are one.
export class History {
  constructor(now) { Object.assign(this, { now, past: [], future: [], what: undefined }); }
  set(state, what) {
    if (what === undefined || what !== this.what) this.past = [...this.past.slice(-199), this.now];
    Object.assign(this, { now: state, future: [], what });
  }
  close() { this.what = undefined; }  // what comes next is another change
  undo() { this.#step(this.past, this.future); }
  redo() { this.#step(this.future, this.past); }
  #step(from, to) {
    if (!from.length) return;
    to.push(this.now);
    Object.assign(this, { now: from.pop(), what: undefined });
  }
}

// Centre and area of a mask [N] in pixels; pixels that it claims less than others do not count.
export function whereIs(mask, W) {
  let area = 0, x = 0, y = 0, most = 0;
  for (let p = 0; p < mask.length; p++) most = Math.max(most, mask[p]);
  const least = Math.max(0.2, 0.6 * most);
  for (let p = 0; p < mask.length; p++) {
    const weight = Math.max(0, mask[p] - least);
    area += weight; x += weight * (p % W); y += weight * Math.floor(p / W);
  }
  return area > 0 ? { x: x / area, y: y / area, area } : { x: NaN, y: NaN, area: 0 };
}

// The mask [N] that a slot has among the others.
export const maskOf = (composed, slot, N) => composed.masks.subarray(slot * N, (slot + 1) * N);

// The mask [N] of a slot where it matters: in pixels that it owns and that would look different without it. (Slots
// divide an even background among themselves, so a mask alone may have patches far from its object.) If it matters
// nowhere, as one of two equal slots, it is the whole mask. Holes are filled: there another slot has the same colour.
export function objectOf(slots, composed, slot, C, W) {
  const { owner, picture } = composed, N = owner.length, mask = maskOf(composed, slot, N), out = new Float32Array(N);
  const others = [...slots.keys()].filter((s) => s !== slot && slots[s].shown);
  let matters = false;
  for (let p = 0; p < N; p++) if (owner[p] === slot) {
    let top = -Infinity, sum = 0, change = 0;
    for (const s of others) top = Math.max(top, slots[s].maskLogits[p]);
    const shares = others.map((s) => Math.exp(slots[s].maskLogits[p] - top));
    for (const share of shares) sum += share;
    for (let c = 0; c < C; c++) {
      let without = 0;
      others.forEach((s, i) => { without += shares[i] / sum * slots[s].means[p * C + c]; });
      change = Math.max(change, Math.abs(without - picture[p * C + c]));
    }
    if (change > 0.08) { out[p] = mask[p]; matters = true; }
  }
  if (!matters) return mask;
  const outside = around(out, W);
  return out.map((m, p) => (m === 0 && !outside[p] && owner[p] === slot ? mask[p] : m));
}

// Which pixels can be reached from the picture's edge over pixels that are zero.
function around(pixels, W) {
  const reached = new Uint8Array(pixels.length), H = pixels.length / W, next = [];
  const visit = (p) => { if (!reached[p] && !pixels[p]) { reached[p] = 1; next.push(p); } };
  for (let x = 0; x < W; x++) { visit(x); visit((H - 1) * W + x); }
  for (let y = 0; y < H; y++) { visit(y * W); visit(y * W + W - 1); }
  while (next.length) {
    const p = next.pop(), x = p % W;
    if (x) visit(p - 1);
    if (x < W - 1) visit(p + 1);
    if (p >= W) visit(p - W);
    if (p < pixels.length - W) visit(p + W);
  }
  return reached;
}

// Whether a slot, by its mask [N] and what `objectOf` says of it, is what lies behind the objects. Such a slot matters
// in a large part of the picture; or it has a share of the picture's corners, and where it is sure of its pixels, if
// it is anywhere, corners are among them. (Several slots may divide a background, also those of objects.)
export function isBackground(mask, object, W) {
  const N = mask.length, corners = [0, W - 1, N - W, N - 1], sure = (p) => mask[p] > 0.9;
  if (object !== mask && object.reduce((n, v) => n + (v > 0), 0) > 0.4 * N) return true;
  if (corners.reduce((sum, p) => sum + mask[p], 0) < 0.8) return false;
  return mask.every((_, p) => !sure(p)) || corners.filter(sure).length >= 2;
}

// The slot with the largest object, what lies behind the objects excepted.
export function largest(slots, composed, C, W) {
  const N = composed.owner.length, sizes = slots.map((_, s) => {
    const mask = maskOf(composed, s, N), object = objectOf(slots, composed, s, C, W);
    return isBackground(mask, object, W) ? -1 : whereIs(object, W).area;
  });
  return sizes.indexOf(Math.max(...sizes));
}

// ---- from a gesture to numbers ----------------------------------------------------------------------------

// How z changes when the object moves by one pixel (x, y) or grows by a tenth (size). Where a slot carries its
// place, moving is exact: its coordinates go from -1 to 1 over the cells of the decoder's grid, of which each becomes
// `cell` pixels wide and high, and a number of 1 is a coordinate of `place`. If it also carries its scales (`scaled`),
// their logarithms are the next two numbers. Else the file beside the weights may hold directions, which a linear
// probe found.
export function knownDirections({ framed, scaled, place = 1, cell = 1, image: [, H, W], latent: D, directions = {} }) {
  const from = (values) => (values ? Float32Array.from(values) : null);
  const only = (d, value) => { const v = new Float32Array(D); v[d] = value; return v; };
  const pixel = (n) => 2 / (Math.ceil(n / cell) - 1) / cell / place;
  const size = scaled ? only(2, Math.log(1.1)).map((v, d) => (d === 3 ? Math.log(1.1) : v)) : from(directions.size);
  if (framed) return { how: "frame", y: only(0, pixel(H)), x: only(1, pixel(W)), size };
  const [x, y] = [from(directions.x), from(directions.y)];
  return { how: x && y ? "probe" : "measured", x, y, size };
}

// Directions for one slot where none are known: each number is changed a little, and what that does to the
// mask's centre and area is measured. Of all changes of z that move the mask as wished, the smallest is taken, in
// units of how far each number usually reaches. `tried` are the masks for z + step[d] along each number d.
export function measuredDirections(mask, tried, step, reach, W) {
  const before = whereIs(mask, W), D = tried.length;
  const effects = tried.map((m, d) => {  // of one unit of reach: in x, in y, and in the logarithm of the area
    const after = whereIs(m, W), by = reach[d] / (step[d] || 1);
    if (!(after.area > 0) || !(before.area > 0)) return [0, 0, 0];
    return [(after.x - before.x) * by, (after.y - before.y) * by, Math.log(after.area / before.area) * by];
  });
  const products = [0, 1, 2].map((i) => [0, 1, 2].map((j) =>
    effects.reduce((sum, e) => sum + e[i] * e[j], i === j ? 1e-3 : 0)));
  const along = (wish) => {
    const weights = solve(products, wish);
    return Float32Array.from({ length: D }, (_, d) =>
      reach[d] * effects[d].reduce((sum, e, i) => sum + e * weights[i], 0));
  };
  return { x: along([1, 0, 0]), y: along([0, 1, 0]), size: along([0, 0, 2 * Math.log(1.1)]) };
}

// The solution of three linear equations (Cramer's rule).
function solve(A, b) {
  const det = ([[a, b1, c], [d, e, f], [g, h, i]]) =>
    a * (e * i - f * h) - b1 * (d * i - f * g) + c * (d * h - e * g);
  const with_ = (column) => A.map((row, i) => row.map((v, j) => (j === column ? b[i] : v)));
  return [0, 1, 2].map((column) => det(with_(column)) / det(A));
}

export const along = (z, direction, amount) => z.map((v, d) => v + amount * direction[d]);

// For each slot here, the slot there that is nearest to it and not yet taken, nearest pairs first; distances in
// units of reach. Slots without a partner keep to themselves.
export function partners(here, there, reach) {
  const pairs = here.flatMap((a, i) => there.map((b, j) =>
    ({ i, j, distance: a.z.reduce((sum, v, d) => sum + ((v - b.z[d]) / reach[d]) ** 2, 0) })));
  const found = new Array(here.length).fill(-1);
  for (const { i, j } of pairs.sort((a, b) => a.distance - b.distance))
    if (found[i] < 0 && !found.includes(j)) found[i] = j;
  return found;
}

// ---- a state as text --------------------------------------------------------------------------------------

const UNIT = 1 / 1000;  // numbers are kept to a thousandth, from -32.768 to 32.767

// { model, scene, start, slots } as "model=…&scene=…&start=…&shown=110…&z=…": for links and for Python.
export function toText({ model, scene, start, slots }) {
  const numbers = Int16Array.from(slots.flatMap((s) => [...s.z]), (v) =>
    Math.max(-32768, Math.min(32767, Math.round(v / UNIT))));
  const z = btoa(String.fromCharCode(...new Uint8Array(numbers.buffer)));
  const shown = slots.map((s) => (s.shown ? 1 : 0)).join("");
  return new URLSearchParams({ model, scene, start, shown, z: z.replaceAll("+", "-").replaceAll("/", "_") })
    .toString();
}

// What `toText` wrote, slots as { z, shown }; or only a scene, "model=…&scene=…"; null if it is something else.
export function fromText(text, latents) {
  const fields = new URLSearchParams(text), model = fields.get("model"), D = latents[model];
  if (D && !fields.has("z") && /^\d+$/.test(fields.get("scene") ?? "")) return { model, scene: Number(fields.get("scene")) };
  if (!D || !fields.get("z")) return null;
  try {
    const bytes = atob(fields.get("z").replaceAll("-", "+").replaceAll("_", "/"));
    const numbers = new Int16Array(Uint8Array.from(bytes, (c) => c.charCodeAt(0)).buffer);
    const shown = [...fields.get("shown")];
    if (!shown.length || numbers.length !== shown.length * D) return null;
    const slots = shown.map((s, k) => ({ shown: s === "1",
      z: Float32Array.from(numbers.subarray(k * D, (k + 1) * D), (v) => v * UNIT) }));
    return { model, scene: Number(fields.get("scene")), start: Number(fields.get("start")), slots };
  } catch { return null; }
}

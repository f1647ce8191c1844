// From numbers to what one sees: canvases, outlines, film strips, PNG and SVG.

export const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988",
                        "#997700", "#882255", "#88aadd", "#bb8866"];
export const colourOf = (slot) => COLOURS[slot % COLOURS.length];
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

export function newCanvas(width, height) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  return canvas;
}

// One pixel of a picture with one or three channels as bytes.
function putPixel(data, at, values, from, C, alpha = 1) {
  for (let c = 0; c < 3; c++) data[at + c] = 255 * Math.min(1, Math.max(0, values[from + (C === 1 ? 0 : c)])) + 0.5;
  data[at + 3] = 255 * alpha + 0.5;
}

// A picture [N, C] from 0 to 1, with a mask [N] as its opacity if there is one; `window` { x, y, w, h } is the part
// to draw, all of it if not said. What lies outside of the picture stays transparent.
export function draw(canvas, picture, { W, H, C }, { mask, window = { x: 0, y: 0, w: W, h: H } } = {}) {
  if (canvas.width !== window.w || canvas.height !== window.h)
    Object.assign(canvas, { width: window.w, height: window.h });
  const image = new ImageData(window.w, window.h);
  for (let y = 0, at = 0; y < window.h; y++) for (let x = 0; x < window.w; x++, at += 4) {
    const row = y + window.y, column = x + window.x;
    if (row < 0 || column < 0 || row >= H || column >= W) continue;
    const p = row * W + column;
    putPixel(image.data, at, picture, p * C, C, mask ? mask[p] : 1);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Every pixel in the colour of the slot that owns it.
export function drawOwners(canvas, owner, { W, H }) {
  Object.assign(canvas, { width: W, height: H });
  const image = new ImageData(W, H), colours = COLOURS.map(rgb);
  owner.forEach((slot, p) => {
    if (slot >= 0) image.data.set([...colours[slot % colours.length], 255], 4 * p);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// Numbers of any size [N, channels], their mean over channels: zero is white or black as the page is, more is
// red, less is blue.
export function drawSigned(canvas, values, { W, H }, channels = 1) {
  Object.assign(canvas, { width: W, height: H });
  const image = new ImageData(W, H), means = new Float32Array(W * H);
  for (let p = 0; p < means.length; p++)
    for (let c = 0; c < channels; c++) means[p] += values[p * channels + c] / channels;
  const limit = Math.max(1e-9, quantile(means.map(Math.abs), 0.995));
  means.forEach((v, p) => {
    const strength = Math.min(1, Math.abs(v) / limit);
    image.data.set([...(v > 0 ? [203, 75, 60] : [47, 111, 179]), 255 * strength], 4 * p);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}
const quantile = (v, q) => v.slice().sort()[Math.min(v.length - 1, Math.floor(q * v.length))];

// Numbers [n] on a grid of their own, least dark and largest light.
export function drawLightness(canvas, values, { W, H }) {
  const low = quantile(values, 0.005), high = quantile(values, 0.995);
  return draw(canvas, values.map((v) => (v - low) / (high - low || 1)), { W, H, C: 1 });
}

// The outline of pixels [N] that are not zero, as the path of an SVG in pixels.
export function outline(pixels, W) {
  const H = pixels.length / W, mine = (y, x) => y >= 0 && x >= 0 && y < H && x < W && pixels[y * W + x] > 0;
  let path = "";
  for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) if (mine(y, x)) {
    if (!mine(y - 1, x)) path += `M${x} ${y}h1`;
    if (!mine(y + 1, x)) path += `M${x} ${y + 1}h1`;
    if (!mine(y, x - 1)) path += `M${x} ${y}v1`;
    if (!mine(y, x + 1)) path += `M${x + 1} ${y}v1`;
  }
  return path;
}

// ---- to take away -----------------------------------------------------------------------------------------

// Things on a sheet, { canvas, x, y, w, h } or { text, x, y }, as an SVG or as a canvas.
export function sheetToSVG(things, width, height) {
  const escaped = (s) => s.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  const body = things.map(({ canvas, text, x, y, w, h }) => (canvas
    ? `<image x="${x}" y="${y}" width="${w}" height="${h}" style="image-rendering:pixelated"`
      + ` href="${canvas.toDataURL()}"/>`
    : `<text x="${x}" y="${y}" font-family="sans-serif" font-size="12">${escaped(text)}</text>`));
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" `
    + `viewBox="0 0 ${width} ${height}"><rect width="100%" height="100%" fill="#fff"/>${body.join("")}</svg>`;
}
export function sheetToCanvas(things, width, height) {
  const canvas = newCanvas(2 * width, 2 * height), context = canvas.getContext("2d");
  context.scale(2, 2);
  context.fillStyle = "#fff"; context.fillRect(0, 0, width, height);
  context.imageSmoothingEnabled = false;
  context.fillStyle = "#000"; context.font = "12px sans-serif";
  for (const { canvas: picture, text, x, y, w, h } of things)
    if (picture) context.drawImage(picture, x, y, w, h); else context.fillText(text, x, y);
  return canvas;
}

// ---- one's own picture ------------------------------------------------------------------------------------

// A file as a picture [H, W, C] from 0 to 1: its middle, made smaller. An error names the file and says what would
// be right.
export async function readPicture(file, [C, H, W]) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name}: not a picture that this browser can read; choose a PNG, JPEG or WebP file`);
  });
  const { width, height } = bitmap;
  if (width < W || height < H)
    throw new Error(`${file.name}: ${width} × ${height} pixels are too few; this model looks at ${W} × ${H}`);
  const scale = Math.min(width / W, height / H), w = W * scale, h = H * scale;
  const context = newCanvas(W, H).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#000"; context.fillRect(0, 0, W, H);  // black shows through, as in folders
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (width - w) / 2, (height - h) / 2, w, h, 0, 0, W, H);
  const { data } = context.getImageData(0, 0, W, H), out = new Float32Array(H * W * C);
  for (let p = 0; p < H * W; p++) {
    const [r, g, b] = data.subarray(4 * p, 4 * p + 3);
    if (C === 1) out[p] = (0.299 * r + 0.587 * g + 0.114 * b) / 255;
    else out.set([r / 255, g / 255, b / 255], 3 * p);
  }
  return { image: out, said: `${file.name}: the middle of ${width} × ${height} pixels, seen at ${W} × ${H}` };
}

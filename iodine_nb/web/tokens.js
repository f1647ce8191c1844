// Tokens of a loop that are shown one by one, switched off and moved. Nothing is computed by a model: what each
// token adds is in one picture, a row for each scene: the scene, what the tokens add, and their masks. What is
// added is kept as a byte, 128 for nothing and 127 of them for 1, so what a token adds is right to 1/254.
function tokens(box, width, height, count, source) {
  const one = (s) => box.querySelector(s), tiles = [...box.querySelectorAll("[data-tiles] > div")];
  const atlas = new Image(), columns = 1 + 2 * count, now = {};
  let bytes;

  const afresh = () => Object.assign(now, { shown: count, off: new Set(), moved: {}, chosen: Math.min(1, count - 1) });
  const at = (column, x, y) => {
    const first = ((one("select").selectedIndex * height + y) * columns * width + column * width + x) * 4;
    return [bytes[first], bytes[first + 1], bytes[first + 2]];
  };
  // What a token adds at a place, from -1 to 1, where it has been moved to.
  const adds = (token, x, y) => {
    const [right, down] = now.moved[token] || [0, 0], u = x - right, v = y - down;
    if (u < 0 || v < 0 || u >= width || v >= height) return [0, 0, 0]; // what has left the picture is lost
    return at(1 + token, u, v).map((byte) => (byte - 128) / 127);
  };
  const sum = (x, y) => {
    const colour = [.5, .5, .5];
    for (let t = 0; t < now.shown; t++) if (!now.off.has(t)) adds(t, x, y).forEach((v, c) => { colour[c] += v; });
    return colour;
  };

  function paint(canvas, colour) {
    [canvas.width, canvas.height] = [width, height];
    const picture = new ImageData(width, height);
    for (let i = 0; i < width * height; i++)
      picture.data.set([...colour(i % width, Math.floor(i / width)), 255], 4 * i);
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }
  function draw() {
    let wrong = 0;
    paint(one("[data-scene]"), (x, y) => at(0, x, y));
    paint(one("[data-sum]"), (x, y) => {
      const made = sum(x, y);
      at(0, x, y).forEach((v, c) => { wrong += (v / 255 - made[c]) ** 2; });
      return made.map((v) => Math.round(255 * v));
    });
    one("[data-said]").textContent = `1000 × MSE: ${(1000 * wrong / (3 * width * height)).toFixed(1)}`;
    one("input[type=range]").value = one("b").textContent = now.shown;
    tiles.forEach((tile, t) => {
      const [added, mask] = tile.querySelectorAll("canvas");
      paint(added, (x, y) => at(1 + t, x, y).map((byte) => 127.5 + 255 * (byte - 128) / 127));
      paint(mask, (x, y) => at(1 + count + t, x, y));
      tile.style.borderColor = t === now.chosen ? "#4477aa" : "transparent";
      tile.style.opacity = t < now.shown ? 1 : .25;
      tile.querySelector("input").checked = !now.off.has(t);
    });
  }
  const move = (right, down) => { now.moved[now.chosen] = [right, down]; draw(); };

  tiles.forEach((tile, t) => {
    tile.querySelector("button").onclick = () => { now.chosen = t; draw(); };
    tile.querySelector("input").onchange = (e) => { now.off[e.target.checked ? "delete" : "add"](t); draw(); };
  });
  one("[data-sum]").onpointerdown = (start) => {
    const canvas = start.target, [right, down] = now.moved[now.chosen] || [0, 0];
    const scale = width / canvas.getBoundingClientRect().width;
    canvas.setPointerCapture(start.pointerId);
    canvas.onpointermove = (e) => move(right + Math.round((e.clientX - start.clientX) * scale),
                                       down + Math.round((e.clientY - start.clientY) * scale));
    canvas.onpointerup = canvas.onpointercancel = () => { canvas.onpointermove = null; };
  };
  one("[data-sum]").onkeydown = (e) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (!step) return;
    e.preventDefault();
    const [right, down] = now.moved[now.chosen] || [0, 0];
    move(right + step[0], down + step[1]);
  };
  one("input[type=range]").oninput = (e) => { now.shown = Number(e.target.value); draw(); };
  one("select").onchange = one("[data-afresh]").onclick = () => { afresh(); draw(); };

  atlas.onload = () => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [atlas.width, atlas.height];
    canvas.getContext("2d").drawImage(atlas, 0, 0);
    bytes = canvas.getContext("2d").getImageData(0, 0, atlas.width, atlas.height).data;
    afresh();
    draw();
  };
  atlas.src = source;
}

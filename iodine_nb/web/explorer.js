// The page: a scene taken apart, whose pieces one can drag. It draws and listens; who computes is in hosts.js, what
// a scene is in scene.js, and pictures are made in pictures.js.
//
//   new Explorer(root, { models, open, widget, state })
//
// `models` describes each model (name, title, image, slots, latent, …, as `description` of the chapter
// 41_explorer writes it); open(name) gives { host, scenes }, who computes and the scenes as bytes [n, H, W, C].
import { along, compose, fromText, History, isBackground, knownDirections, largest, maskOf, measuredDirections, objectOf,
         partners,
         toText, whereIs } from "./scene.js";
import { colourOf, draw, drawLightness, drawOwners, drawSigned, newCanvas, outline, readPicture, sheetToCanvas,
         sheetToSVG } from "./pictures.js";

// ---- words ------------------------------------------------------------------------------------------------

const PROPERTIES = { x: "left and right", y: "up and down", size: "size", hue: "hue", lightness: "lightness",
                     saturation: "saturation", shape: "shape", turn: "turn" };
// What the two ends of a slider are called: less and more of its property. Of a shape, by the moment that grows (of
// first order, second, …); of a hue, what most objects have there.
const ENDS = { x: ["left", "right"], y: ["up", "down"], size: ["smaller", "larger"], lightness: ["darker", "lighter"],
               saturation: ["greyer", "more colourful"], turn: ["anticlockwise", "clockwise"] };
const SHAPES = ["one-sided", "longer", "three-cornered", "four-cornered"];
const HUES = ["red", "orange", "yellow", "yellowish green", "green", "bluish green", "turquoise", "greenish blue", "blue",
              "violet", "magenta", "purplish red"];  // every 30 degrees
const endsOf = ({ property, sign, moment, hues }) => (!sign ? null
  : property === "hue" ? hues.map((hue) => HUES[Math.round(hue / 30) % 12])
  : property === "shape" ? ["rounder", SHAPES[moment - 1]] : ENDS[property]);
const MOVES = {
  frame: "A drag sets the two numbers of the slot that are its place.",
  probe: "A drag moves the slot along the direction in which, for this model, place was found to lie.",
  measured: "A drag changes all numbers of the slot a little, in the way that, as just measured, moves its mask.",
};
const KEYS = [
  ["click, or <kbd>1</kbd> … <kbd>9</kbd>, <kbd>[</kbd> <kbd>]</kbd>", "choose a slot"],
  ["drag, or <kbd>←</kbd> <kbd>→</kbd> <kbd>↑</kbd> <kbd>↓</kbd>", "move the object; with Shift by five pixels"],
  ["wheel over the chosen object, pinch, or <kbd>+</kbd> <kbd>-</kbd>", "larger, smaller"],
  ["<kbd>Delete</kbd>", "take the object out, or put it back"],
  ["<kbd>D</kbd>", "duplicate it"],
  ["<kbd>Ctrl</kbd> <kbd>Z</kbd>, <kbd>Ctrl</kbd> <kbd>Y</kbd>", "undo, redo"],
  ["<kbd>R</kbd>", "back to what was inferred"],
  ["<kbd>I</kbd>", "infer again, from another start"],
  ["<kbd>N</kbd>", "next scene"],
  ["<kbd>V</kbd>", "composed, picture, masks"],
];
const SEEN = [  // of an evaluation: field, words, term; how it is drawn
  ["means", "what it paints", "mean μ"],
  ["masks", "where it paints", "mask m", "lightness"],
  ["maskPosterior", "where it fits best", "mask posterior", "lightness"],
  ["meansGradient", "be brighter (red), darker (blue)", "-∂L/∂μ", "downhill"],
  ["maskGradient", "claim more (red), less (blue)", "-∂L/∂(mask logits)", "downhill"],
  ["logLikelihood", "how well all slots explain", "log-likelihood", "lightness"],
  ["leaveOneOut", "needed (red), in the way (blue)", "leave one out", "signed"],
  ["attention", "where it looked", "attention", "lightness"],
];
const VIEWS = { composed: "Composed", picture: "Picture", masks: "Masks" };
const WELCOME = "Drag an object; click chooses it.";  // what is said when there is nothing else to say
const FRAMES = 7;                // of a film strip
const SHOWN = 8;                 // sliders without a name that are not folded away, where none has a name
const SHOWN_OF_EACH = 3;         // sliders of one property that are not folded away
const MOSTLY = 0.5;              // of a number's effect: below, its name is said not to be all
const VISIBLE = 0.002;           // mean change of a picture below which a slider is folded away

// ---- elements ---------------------------------------------------------------------------------------------

// An element: properties, attributes (where there is no such property), children.
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") element.style.cssText = value;
    else if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
const button = (text, click, title) => el("button", { type: "button", textContent: text, onclick: click, title });
const wait = (milliseconds) => new Promise((go) => { setTimeout(go, milliseconds); });
const clamp = (v, low, high) => Math.min(high, Math.max(low, v));

const STAGE = `
  <header><div><h1>Take a scene apart</h1><p class="lead"></p></div>
    <div class="choose"></div></header>
  <main>
    <section aria-label="The scene">
      <div class="bar"><div class="views" role="group" aria-label="What is shown"></div><span class="grow"></span></div>
      <div class="canvas" tabindex="0" role="application"><canvas></canvas>
        <svg aria-hidden="true"><path class="hover"/><path class="under"/><path class="line"/></svg></div>
      <div class="bar edit"></div>
      <p class="said" role="status" aria-live="polite"></p>
      <div class="scenes" role="group" aria-label="Scenes"></div>
    </section>
    <section>
      <h2>Slots</h2>
      <p class="soft"><small>A slot is a short list of numbers, from which the decoder paints one object and says
        where it is.</small></p>
      <div class="slots" role="group" aria-label="Slots"></div>
      <h2 class="title"></h2><p class="soft"><small class="moves"></small></p>
      <div class="sliders named"></div>
      <details class="folded"><summary></summary><div><div class="sliders"></div></div></details>
    </section>
  </main>
  <div class="more">
    <details class="history"><summary>How it got there<small>every refinement, what it saw and what it changed</small>
      </summary><div><div class="bar times" role="group" aria-label="Iterations"></div><p class="soft at"></p>
      <div class="frames"></div></div></details>
    <details class="other"><summary>Two scenes<small>exchange and blend slots</small></summary><div class="two"></div>
      </details>
    <details class="take"><summary>Take it with you<small>pictures, a link, a line of Python</small></summary><div>
      <div class="bar"></div><p class="soft" style="margin:10px 0 4px">This line of Python makes the same picture:</p>
      <textarea rows="3" readonly aria-label="A line of Python that makes this picture"></textarea></div></details>
    <details class="help"><summary>Help<small>all gestures and keys</small></summary><div><table></table>
      <p class="soft" style="margin-top:10px">Everything is computed on this machine; no picture leaves it.</p></div>
      </details>
  </div>`;

// ---- the page ---------------------------------------------------------------------------------------------

export class Explorer {
  constructor(root, { models, open, widget = false, state }) {
    Object.assign(this, { root, models, open, widget, view: "composed", slot: 0, t: 0, opened: {}, times: [] });
    root.classList.add("iodine");
    root.explorer = this;  // for tests and for the console
    const inner = el("div", { className: "inner" });
    inner.innerHTML = STAGE;
    root.replaceChildren(inner);
    this.canvas = this.find(".canvas canvas");
    this.shadeAs(root);
    this.buildChoices();
    this.buildEditing();
    this.buildTaking();
    this.listen();
    this.find(".help table").innerHTML = KEYS.map(([key, what]) => `<tr><td>${key}</td><td>${what}</td></tr>`).join("");
    this.ready = this.openState(state);
  }
  // What a link holds: a state, or only a scene; the first scene if it holds nothing.
  openState(state) {
    const { models } = this, latents = Object.fromEntries(models.map((m) => [m.name, m.latent]));
    const given = state ? fromText(state, latents) : null;
    if (state && !given) this.notice = "state: not of one of the models here, so this is the first scene";
    return this.choose(given?.model ?? models[0].name, given);
  }
  find(selector) { return this.root.querySelector(selector); }
  say(sentence, wrong = false) {
    const said = this.find(".said");
    if (said.textContent !== sentence) said.textContent = sentence;  // else it would be read aloud again
    said.classList.toggle("wrong", wrong);
  }
  // Dark where the notebook, the page around it or the system is.
  shadeAs(root) {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const shade = () => {
      const { jpThemeLight, vscodeThemeKind } = document.body.dataset, { theme } = document.documentElement.dataset;
      const dark = theme ? theme === "dark" : jpThemeLight ? jpThemeLight === "false"
        : vscodeThemeKind ? vscodeThemeKind.includes("dark") : system.matches;
      root.classList.toggle("dark", dark);
    };
    system.addEventListener("change", shade);
    shade();
  }

  // ---- opening --------------------------------------------------------------------------------------------

  buildChoices() {
    const groups = Map.groupBy ? Map.groupBy(this.models, (m) => m.data) : new Map([["", this.models]]);
    this.select = el("select", { ariaLabel: "Data set and model", onchange: () => this.choose(this.select.value) },
      ...[...groups].map(([data, models]) => el("optgroup", { label: data },
        ...models.map((m) => el("option", { value: m.name, textContent: m.title })))));
    const file = el("input", { type: "file", accept: "image/*", onchange: () => {
      if (file.files[0]) this.openFile(file.files[0]);
      file.value = "";
    } });
    this.find(".choose").append(this.select, button("Next scene", () => this.nextScene(), "key N"),
      el("label", { className: "file button", title: "it does not leave this machine" }, "Own picture…", file));
    for (const [name, title] of Object.entries(VIEWS))
      this.find(".views").append(button(title, () => this.show(name), "key V"));
  }

  async choose(name, given = null) {
    const model = this.models.find((m) => m.name === name);
    this.select.value = name;
    const turn = this.leave();
    this.say(`${name} is being opened …`);
    try {
      this.opened[name] ??= this.open(name);
      const { host, scenes } = await this.opened[name];
      if (this.turn !== turn) return;
      const [C, H, W] = model.image, count = scenes.length / (C * H * W);
      Object.assign(this, { model, host, C, H, W, N: H * W, D: model.latent, size: { C, H, W } });
      this.images = Array.from({ length: count }, (_, i) =>
        Float32Array.from(scenes.subarray(i * C * H * W, (i + 1) * C * H * W), (v) => v / 255));
      this.root.style.setProperty("--aspect", `${W} / ${H}`);
      this.find(".canvas svg").setAttribute("viewBox", `0 0 ${W} ${H}`);
      this.mate = null;
      this.buildScenes();
      this.buildOther();
      if (given && !given.slots && given.scene >= count) {
        this.notice = `scene: this page has ${count} of ${name}, so this is the first one`;
        given = null;
      }
      await this.openScene(given ? given.scene : 0, given?.start, given?.slots);
    } catch (error) { this.say(error.message, true); }
  }

  // The scene that is open ends, and what was still to be done for it.
  leave() {
    clearTimeout(this.timer);
    Object.assign(this, { history: null, sliderTurn: {}, wish: null, held: null, timer: null, turn: {} });
    return this.turn;
  }

  buildScenes() {
    const strip = this.find(".scenes");
    strip.replaceChildren(...this.images.map((image, i) => el("button",
      { type: "button", ariaLabel: `Scene ${i + 1}`, title: `scene ${i + 1}`, onclick: () => this.openScene(i) },
      draw(newCanvas(1, 1), image, this.size))));
    strip.hidden = this.images.length < 2;
  }

  openScene(index, start, slots) {
    const i = index >= 0 && index < this.images.length ? index : -1;  // -1: one's own picture, which no link holds
    this.scene = i;
    return this.openImage(i < 0 ? null : this.images[i], start ?? this.model.starts[i] ?? 0, slots);
  }
  nextScene() { return this.openScene((this.scene + 1) % this.images.length); }

  async openFile(file) {
    try {
      const { image, said } = await readPicture(file, this.model.image);
      this.scene = -1;
      await this.openImage(image, 0);
      this.say(said);
    } catch (error) { this.say(error.message, true); }
  }

  // Infers a picture, draws after each refinement, and keeps what was known; `given` slots are shown instead of
  // the inferred ones.
  async openImage(image, start, given) {
    const turn = this.leave();
    Object.assign(this, { image, start, trace: [], measured: new Map() });
    this.drawScenes();
    if (image) {
      this.say("The picture is being taken apart …");
      draw(this.canvas, image, this.size);
      this.clearOutlines();
      const message = { do: "infer", model: this.model.name, image, seed: start };
      await this.host.ask(message, (e, t) => { if (this.turn === turn) this.refined(e, t); });
      if (this.turn !== turn) return;
    }
    const rows = given ? given.map((s) => s.z) : this.rowsOf(this.trace.at(-1).latents);
    const slots = await this.decode(rows);
    if (this.turn !== turn) return;
    this.inferred = given ? slots.map((s, i) => ({ ...s, shown: given[i].shown })) : slots;
    this.history = new History(this.inferred);
    this.t = this.trace.length - 1;
    this.composed = compose(this.inferred, this.C);
    this.slot = this.firstObject();
    this.changed();
    if (this.notice) this.say(this.notice, true);
    this.notice = null;
    this.drawTimes();
  }

  refined(e, t) {
    this.trace.push(e);
    const slots = this.slotsOf(e.means, e.maskLogits), { picture } = compose(slots, this.C);
    draw(this.canvas, picture, this.size);
    const of = this.model.iterations ? ` of ${this.model.iterations}` : "";
    this.say(t ? `Refinement ${t}${of} …` : "A first guess …");
  }
  rowsOf(v) { return Array.from({ length: v.length / this.D }, (_, k) => v.slice(k * this.D, (k + 1) * this.D)); }
  slotsOf(means, maskLogits, rows = []) {
    const { N, C } = this, K = maskLogits.length / N;
    return Array.from({ length: K }, (_, k) => ({ z: rows[k], shown: true,
      means: means.slice(k * N * C, (k + 1) * N * C), maskLogits: maskLogits.slice(k * N, (k + 1) * N) }));
  }
  // Slots of these latents, an array of [D].
  async decode(rows) {
    const z = new Float32Array(rows.length * this.D);
    rows.forEach((row, k) => z.set(row, k * this.D));
    const { means, maskLogits } = await this.host.ask({ do: "decode", model: this.model.name, z });
    return this.slotsOf(means, maskLogits, rows.map((row) => Float32Array.from(row)));
  }
  // The chosen slot at first: the object with the largest area.
  firstObject() {
    return largest(this.slots, this.composed, this.C, this.W);
  }

  // ---- changing -------------------------------------------------------------------------------------------

  get slots() { return this.history.now; }
  mask(slot) { return maskOf(this.composed, slot, this.N); }
  object(slot) {  // is asked for often, so it is kept as long as the scene is as it is
    const kept = this.composed.objects ??= [];
    return kept[slot] ??= objectOf(this.slots, this.composed, slot, this.C, this.W);
  }
  // Pixels that the slot owns, of an object only those where it matters.
  pixelsOf(slot) {
    const { owner } = this.composed, object = this.background(slot) ? null : this.object(slot);
    const mine = owner.map((o, p) => (o === slot && (!object || object[p] > 0) ? 1 : 0)), { W } = this;
    return mine.map((v, p) => v && (mine[p - 1] || mine[p + 1] || mine[p - W] || mine[p + W] || 0));  // no lone ones
  }
  background(slot) { return isBackground(this.mask(slot), this.object(slot), this.W); }

  // The scene becomes these slots; `what`: changes of one kind that follow each other are one to undo.
  become(slots, what) {
    this.history.set(slots, what);
    this.changed(what !== undefined);
  }
  changed(going = false) {  // going: more of the same is to be expected, so what takes long waits
    this.composed = compose(this.slots, this.C);
    this.slot = Math.min(this.slot, this.slots.length - 1);
    this.drawAll();
    if (!going) this.settle();
  }
  // What is drawn when a change is over: film strips and text.
  settle() {
    this.history?.close();
    this.drawSliders();
    this.drawTaking();
    this.drawSeen();
  }
  async put(slot, z, what) {
    const { history } = this, [fresh] = await this.decode([z]);
    if (history !== this.history) return;
    this.become(this.slots.with(slot, fresh), what);
  }
  edit(change) { return () => { if (this.history) this.run(change); }; }
  // Does something, and knows that it is being done; what goes wrong becomes a sentence.
  async run(change) {
    this.running = (this.running ?? 0) + 1;
    try { await change(); } catch (error) { this.say(error.message, true); } finally { this.running--; }
  }
  // Nothing is being done, and nothing is about to be; only film strips may still be drawn (`stale`).
  get idle() {
    return Boolean(this.history && !this.running && !this.busy && !this.held && !this.timer);
  }

  buildEditing() {
    const b = this.buttons = {
      undo: button("↶ Undo", this.edit(() => this.undo()), "Ctrl Z"),
      redo: button("↷", this.edit(() => this.redo()), "redo, Ctrl Y"),
      reset: button("Reset", this.edit(() => this.reset()), "key R"),
      remove: button("Delete", this.edit(() => this.remove()), "take the chosen object out, or put it back: Delete"),
      duplicate: button("Duplicate", this.edit(() => this.duplicate()), "key D"),
      again: button("Infer again", this.edit(() => this.again()), "from another start: key I"),
    };
    b.redo.setAttribute("aria-label", "Redo");
    this.find(".edit").append(b.undo, b.redo, b.reset, el("span", { className: "grow" }), b.remove, b.duplicate);
    this.find(".bar").append(b.again);
  }
  undo() { this.history.undo(); this.changed(); }
  redo() { this.history.redo(); this.changed(); }
  reset() { this.become(this.inferred); }
  again() { if (this.image) return this.openImage(this.image, this.start + 1); }
  remove(slot = this.slot) {
    this.become(this.slots.with(slot, { ...this.slots[slot], shown: !this.slots[slot].shown }));
  }
  async duplicate() {
    const { history, slots } = this, d = await this.directions(this.slot), { z } = slots[this.slot];
    const aside = Math.round(this.W / 8), { x } = whereIs(this.object(this.slot), this.W);
    const moved = this.background(this.slot) ? z : along(z, d.x, x + 1.5 * aside < this.W ? aside : -aside);
    const [copy] = await this.decode([moved]);
    if (history !== this.history) return;
    this.slot = slots.length;
    this.become([...this.slots, copy]);
    this.say(`Slot ${this.slot + 1} is a copy, a little aside.`);
  }

  // How this slot is moved and made larger; measured where nothing about it is known beforehand.
  async directions(slot) {
    const known = knownDirections(this.model), { z } = this.slots[slot];
    if (known.x && known.size) return known;
    if (!this.measured.has(z)) this.measured.set(z, this.measure(slot, known.how === "frame" ? 2 : 0));
    const measured = await this.measured.get(z);
    return { how: known.how, x: known.x ?? measured.x, y: known.y ?? measured.y, size: known.size ?? measured.size };
  }
  async measure(slot, from) {  // numbers before `from` are left alone
    const { slots, model, W, C } = this, { z } = slots[slot], before = this.object(slot);
    const step = model.reach.map((r, d) => (d < from ? 0 : 0.1 * r));
    const others = await this.decode(step.map((s, d) => z.with(d, z[d] + s)));
    const tried = others.map((other) => {
      const changed = slots.with(slot, other);
      return objectOf(changed, compose(changed, C), slot, C, W);
    });
    return measuredDirections(before, tried, step, model.reach, W);
  }

  // Moves a slot by pixels from where it was at the gesture's beginning: at once where its place is known, else by
  // a step towards there. Returns whether there is more to go.
  async moveTo(grip, dx, dy, what) {
    const { d, z, slot } = grip;
    if (d.how === "frame") await this.put(slot, along(along(z, d.x, dx), d.y, dy), what);
    else return this.follow(grip, dx, dy, what);
  }
  // At most two pixels along the known directions, or, where they do not lead nearer, along those just measured.
  async follow({ slot, from, d }, dx, dy, what) {
    const { history, slots, W, C } = this, { z } = slots[slot], now = whereIs(this.object(slot), W);
    const x = from.x + dx - now.x, y = from.y + dy - now.y, far = Math.hypot(x, y);
    if (!(far > 0.4)) return false;
    for (const measured of d.how === "probe" ? [false, true] : [true]) {
      const by = measured ? await this.measure(slot, 0) : d;
      for (let scale = Math.min(1, 2 / far), tries = 0; tries < 3; tries++, scale /= 2) {
        const [fresh] = await this.decode([along(along(z, by.x, scale * x), by.y, scale * y)]);
        if (history !== this.history) return false;
        const next = slots.with(slot, fresh), at = whereIs(objectOf(next, compose(next, C), slot, C, W), W);
        if (!(Math.hypot(from.x + dx - at.x, from.y + dy - at.y) < far - 0.1)) continue;
        this.become(next, what);
        return true;
      }
    }
    return false;
  }
  // Goes on until the slot is there, or no step leads nearer. The steps underway may have led into a dead end: then
  // once more from the gesture's beginning, and the nearer of the two stays.
  async arrive(grip, dx, dy, history) {
    const go = async () => {
      for (let i = 0; i < 16 && this.history === history; i++) if (!await this.follow(grip, dx, dy, "drag")) break;
      if (this.history !== history) return 0;
      const { x, y, area } = whereIs(this.object(grip.slot), this.W);
      return area > 0 ? Math.hypot(grip.from.x + dx - x, grip.from.y + dy - y) : Infinity;
    };
    const far = await go(), { slots } = this;
    if (far < 0.5) return;
    await this.put(grip.slot, grip.z, "drag");
    if (await go() > far) this.become(slots, "drag");
  }
  async grip(slot) {
    const { z } = this.slots[slot], from = whereIs(this.object(slot), this.W);
    return { slot, z, from, d: await this.directions(slot) };
  }
  async nudge(dx, dy) {
    if (this.background(this.slot)) return this.say("This slot paints the background, which has no place to move from.");
    const { history } = this, grip = await this.grip(this.slot);
    for (let i = 0; i < 8 && history === this.history; i++)
      if (!await this.moveTo(grip, dx, dy, `nudge ${this.slot}`)) break;
    this.later();
  }
  async resize(steps) {  // by tenths
    const { slot, history } = this, { size } = await this.directions(slot);
    if (history === this.history) await this.put(slot, along(this.slots[slot].z, size, steps), `size ${slot}`);
  }
  // After a while without another change, the change is over.
  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.timer = null;
      if (this.busy || this.touches.size) this.later(); else if (this.history) this.settle();
    }, 250);
  }

  // ---- drawing --------------------------------------------------------------------------------------------

  drawAll() {
    this.say(WELCOME);  // what was said was about an action that is over now
    this.drawStage();
    this.drawSlots();
    const { buttons: b, history } = this;
    b.undo.disabled = !history.past.length;
    b.redo.disabled = !history.future.length;
    b.again.disabled = !this.image;
    b.reset.disabled = this.slots === this.inferred;
    b.remove.textContent = this.slots[this.slot].shown ? "Delete" : "Put back";
    this.find(".lead").textContent = `A model that was never told what an object is has divided this picture among `
      + `${this.slots.length} slots. Drag an object, or change one of its numbers.`;
  }
  show(view) {
    this.view = view;
    if (this.history) this.drawStage();
  }
  drawStage() {
    const { canvas, view, size, composed } = this;
    if (view === "masks") drawOwners(canvas, composed.owner, size);
    else draw(canvas, view === "picture" && this.image ? this.image : composed.picture, size);
    [...this.find(".views").children].forEach((b, i) => {
      b.setAttribute("aria-pressed", Object.keys(VIEWS)[i] === view);
    });
    const lines = outline(this.pixelsOf(this.slot), this.W);
    this.find(".canvas .under").setAttribute("d", lines);
    this.find(".canvas .line").setAttribute("d", lines);
    this.find(".canvas").setAttribute("aria-label", this.described());
  }
  clearOutlines() { for (const path of this.root.querySelectorAll(".canvas path")) path.setAttribute("d", ""); }
  described() {
    const { x, y, area } = whereIs(this.object(this.slot), this.W), words = this.nameOf(this.slot);
    return `The scene, composed from ${this.slots.length} slots. Chosen: ${words}`
      + (area ? `, at column ${Math.round(x)} and row ${Math.round(y)} of ${this.W} by ${this.H}.` : ".")
      + " Arrow keys move it, plus and minus change its size.";
  }
  nameOf(slot) {
    const owned = this.composed.owner.reduce((n, o) => n + (o === slot), 0);
    const kind = !this.slots[slot].shown ? "taken out" : this.background(slot) ? "background"
      : owned < 0.002 * this.N ? "empty" : "";
    return `slot ${slot + 1}${kind && `, ${kind}`}`;
  }
  drawSlots() {
    const list = this.find(".slots");
    while (list.children.length > this.slots.length) list.lastChild.remove();
    for (let s = list.children.length; s < this.slots.length; s++)
      list.append(el("button", { type: "button", className: "slot", style: `--colour:${colourOf(s)}`,
        onclick: () => this.pick(s) }, newCanvas(1, 1), el("span")));
    this.slots.forEach((slot, s) => {
      const item = list.children[s], [, kind = ""] = this.nameOf(s).split(", ");
      draw(item.firstChild, slot.means, this.size, { mask: slot.shown ? this.mask(s) : undefined });
      item.classList.toggle("away", !slot.shown);
      item.setAttribute("aria-pressed", s === this.slot);
      item.setAttribute("aria-label", this.nameOf(s));
      item.lastChild.innerHTML = `<span class="dot"></span>${s + 1}<i>${kind && ` ${kind}`}</i>`;
    });
  }
  drawScenes() {
    const strip = this.find(".scenes"), all = [...strip.children];
    all.forEach((b, i) => b.setAttribute("aria-pressed", i === this.scene));
    const chosen = all[this.scene];  // is moved into sight, the page around it stays
    if (chosen) strip.scrollLeft = clamp(strip.scrollLeft, chosen.offsetLeft + chosen.offsetWidth - strip.offsetLeft - strip.clientWidth,
                                         chosen.offsetLeft - strip.offsetLeft);
  }
  pick(slot) {
    this.slot = slot;
    this.drawAll();
    this.settle();
  }

  // ---- sliders --------------------------------------------------------------------------------------------

  // For every number of the chosen slot: its words, its range, and the slider's element, which is made once.
  rowsOfNumbers() {
    const latents = this.model.latents ?? [], named = new Map(latents.map((l) => [l.dimension, l]));
    const stronger = (one) => latents.filter((l) => l.property === one.property && l.effect > one.effect).length;
    return Array.from({ length: this.D }, (_, d) => {
      const { property, effect = 0, range, sign = 0, moment, hues } = named.get(d) ?? {}, value = this.slots[this.slot].z[d];
      const [low, high] = range ?? [this.model.low[d], this.model.high[d]];
      const spare = property ? stronger({ property, effect }) >= SHOWN_OF_EACH : latents.length > 0;
      return { d, spare, property, effect, sign, moment, hues, value, low: Math.min(low, value), high: Math.max(high, value) };
    });
  }
  async drawSliders() {
    const { model, slot } = this, turn = this.sliderTurn = {};
    if (this.builtFor !== model.name) this.buildSliders();
    this.find(".title").textContent = `Numbers of ${this.nameOf(slot)}`;
    this.find(".moves").textContent = this.background(slot) ? "" : MOVES[knownDirections(model).how];
    const rows = this.rowsOfNumbers();
    this.stale = true;
    for (const row of rows) this.setSlider(row);
    for (const { element } of this.sliders) element.classList.add("stale");
    await wait(0);
    if (this.sliderTurn !== turn) return;
    const effects = [];
    for (const row of this.order(rows)) {
      const effect = await this.drawStrip(row, turn);
      if (this.sliderTurn !== turn) return;
      effects[row.d] = effect;
      this.arrange(rows, effects);
    }
    this.arrange(rows, effects, true);
    this.stale = false;
  }
  // As PROPERTIES are ordered, the strongest first; then those that several others outdo, or without a name.
  order(rows) {
    const place = (row) => (row.property ? Object.keys(PROPERTIES).indexOf(row.property) : 99);
    return [...rows].sort((a, b) => a.spare - b.spare || place(a) - place(b) || b.effect - a.effect);
  }

  buildSliders() {
    this.builtFor = this.model.name;
    this.find(".sliders.named").replaceChildren();
    this.find(".folded .sliders").replaceChildren();
    this.sliders = this.rowsOfNumbers().map((row) => this.newSlider(row));
    for (const { d, spare } of this.order(this.rowsOfNumbers()))
      this.find(spare ? ".folded .sliders" : ".sliders.named").append(this.sliders[d].element);
  }
  // To the right is always more of the property: a number of which more is less is shown from high to low.
  newSlider({ d, property, effect, sign, moment, hues }) {
    const input = el("input", { type: "range", step: "any", id: `iodine-${this.root.id}-${d}` }), value = el("output");
    const words = property ? PROPERTIES[property] + (effect < MOSTLY ? " and more" : "") : `number ${d}`;
    const way = sign < 0 ? -1 : 1, ends = endsOf({ property, sign, moment, hues });
    const why = property ? `${Math.round(100 * effect)} % of what this number changes, over many slots`
      + (ends ? "" : "; which way it goes differs between objects") : "";
    const strip = el("div", { className: "strip" }, ...Array.from({ length: FRAMES }, (_, i) => {
      const frame = newCanvas(1, 1);
      frame.setAttribute("aria-hidden", "true");  // the slider beside it says the same
      frame.onclick = () => { input.value = this.frameValue(input, i); slide(); this.settle(); };
      return frame;
    }));
    const slide = () => this.slide(d, way * Number(input.value));
    input.addEventListener("input", slide);
    input.addEventListener("change", () => this.later());
    input.setAttribute("aria-label", property ? `${words} (number ${d})${ends ? `, ${ends.join(" to ")}` : ""}` : words);
    const label = el("label", { htmlFor: input.id, title: why }, el("b", { textContent: words }));
    if (property) label.append(el("small", { textContent: `number ${d}` }));
    label.append(value);
    const said = el("div", { className: "ends" }, ...(ends ?? []).map((end) => el("small", { textContent: end })));
    said.setAttribute("aria-hidden", "true");  // the slider's name says it
    return { input, value, strip, way, element: el("div", { className: "slider" }, label, input, said, strip) };
  }
  // Frames lie below the values that they show: the middle of each seventh of the range.
  frameValue(input, i) { return Number(input.min) + (Number(input.max) - input.min) * (i + 0.5) / FRAMES; }
  setSlider({ d, value, low, high }) {
    const { input, way } = this.sliders[d], [min, max] = way > 0 ? [low, high] : [-high, -low];
    Object.assign(input, { min, max, value: way * value });
    this.sayValue(d, value);
  }
  sayValue(d, value) {
    const { input, value: shown } = this.sliders[d];
    shown.textContent = value.toFixed(2);
    input.setAttribute("aria-valuetext", value.toFixed(2));
  }
  // Only the newest wish is decoded: those in between are skipped while the decoder is busy.
  slide(d, value) {
    this.sayValue(d, value);
    this.sliderTurn = {};  // film strips wait
    const { slot } = this;
    this.latest(() => this.put(slot, this.slots[slot].z.with(d, value), `number ${slot} ${d}`));
    this.later();
  }
  async latest(job) {
    this.wish = job;
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.wish) {
        const next = this.wish;
        this.wish = null;
        await next();
      }
    } catch (error) { this.say(error.message, true); } finally { this.busy = false; }
  }

  // The part of the picture that a film strip shows: a square around the object, or all of it if the object leaves
  // that square or vanishes.
  windowFor(places) {
    const { W, H } = this, { x, y, area } = whereIs(this.mask(this.slot), W), whole = Math.min(W, H);
    const side = Math.max(Math.round(whole / 2.2), Math.round(2.4 * Math.sqrt(area)));
    const near = (p) => !(Math.hypot(p.x - x, p.y - y) > side / 6);
    if (!area || side >= whole || !places.every(near)) return undefined;
    return { w: side, h: side, x: clamp(Math.round(x - side / 2), 0, W - side), y: clamp(Math.round(y - side / 2), 0, H - side) };
  }
  // Seven previews; returns how much the picture changes along them.
  async drawStrip({ d }, turn) {
    const { input, strip, way, element } = this.sliders[d], { slot, slots } = this, { z } = slots[slot];
    const frames = [], places = [];
    for (let i = 0; i < FRAMES; i++) {
      const [changed] = await this.decode([z.with(d, way * this.frameValue(input, i))]);
      if (this.sliderTurn !== turn) return 0;
      const composed = compose(slots.with(slot, changed), this.C);
      frames.push(composed.picture);
      places.push(whereIs(objectOf(slots.with(slot, changed), composed, slot, this.C, this.W), this.W));
    }
    const window = this.windowFor(places);
    frames.forEach((frame, i) => draw(strip.children[i], frame, this.size, { window }));
    const now = clamp(Math.floor((way * z[d] - input.min) / ((input.max - input.min) || 1) * FRAMES), 0, FRAMES - 1);
    [...strip.children].forEach((frame, i) => frame.classList.toggle("now", i === now));
    element.classList.remove("stale");
    return Math.max(...frames.map((f) => f.reduce((sum, v, i) => sum + Math.abs(v - frames[FRAMES >> 1][i]), 0) / f.length));
  }
  // Folded away are sliders that change nothing here, all but the strongest of each property, and all but the strongest
  // of those without a name. Where some have names, spare ones begin there, and a strong one comes forth.
  arrange(rows, effects, whole = false) {
    const named = this.find(".sliders.named"), rest = this.find(".folded .sliders");
    const known = rows.filter((r) => effects[r.d] !== undefined), anyName = rows.some((r) => r.property);
    const nameless = known.filter((r) => !r.property && effects[r.d] >= VISIBLE)
      .sort((a, b) => effects[b.d] - effects[a.d]).slice(0, anyName ? 2 : SHOWN);
    const folded = known.filter((r) => effects[r.d] < VISIBLE || (r.property ? r.spare : !nameless.includes(r)));
    for (const { d } of folded) if (this.sliders[d].element.parentElement !== rest) rest.append(this.sliders[d].element);
    const isHere = ({ d }) => this.sliders[d].element.parentElement === named;
    const here = this.order(rows).filter((r) => !folded.includes(r) && (known.includes(r) || isHere(r)));
    if (!anyName) {  // by effect, as soon as all effects are known; till then as they are
      const at = ({ d }) => [...named.children].indexOf(this.sliders[d].element) >>> 0;
      here.sort((a, b) => (whole ? effects[b.d] - effects[a.d] : at(a) - at(b)));
    }
    here.forEach(({ d }, i) => {  // one that is in its place stays, as moving it would take the focus from it
      const { element } = this.sliders[d];
      if (named.children[i] !== element) named.insertBefore(element, named.children[i] ?? null);
    });
    const nothing = folded.filter((r) => effects[r.d] < VISIBLE).length, less = folded.length - nothing;
    this.find(".folded").hidden = !folded.length;
    this.find(".folded summary").textContent = [nothing && `${nothing} numbers that change nothing to be seen here`,
      less && `${less} with less effect`].filter(Boolean).join(", ").replace("1 numbers that change", "1 number that changes");
  }

  // ---- listening ------------------------------------------------------------------------------------------

  listen() {
    const stage = this.find(".canvas"), touches = this.touches = new Map();
    stage.addEventListener("pointerdown", (event) => this.press(event));
    stage.addEventListener("pointermove", (event) => this.movePointer(event));
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => {
      touches.delete(event.pointerId);
      if (touches.size === 0) this.run(() => this.release());
    });
    stage.addEventListener("pointerleave", () => this.hover(-1));
    stage.addEventListener("wheel", (event) => {
      if (!this.history || this.slotAt(event) !== this.slot || this.background(this.slot)) return;
      event.preventDefault();
      this.resizeSoon(-event.deltaY / 100);
    }, { passive: false });
    this.root.addEventListener("keydown", (event) => this.key(event));
    if (!this.widget) document.addEventListener("keydown", (event) => {
      if (event.target === document.body) this.key(event);
    });
    for (const name of ["history", "other", "take"])
      this.find(`.${name}`).addEventListener("toggle", () => this.history && this.settle());
  }
  pixelAt(event) {  // with a fraction
    const box = this.canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width * this.W, y: (event.clientY - box.top) / box.height * this.H };
  }
  slotAt(event) {
    const { x, y } = this.pixelAt(event), column = Math.floor(x), row = Math.floor(y);
    return column < 0 || row < 0 || column >= this.W || row >= this.H ? -1 : this.composed.owner[row * this.W + column];
  }
  hover(slot) {
    this.find(".canvas").classList.toggle("over", slot >= 0 && !this.background(slot));
    if (slot === this.hovered) return;
    this.hovered = slot;
    this.find(".canvas .hover").setAttribute("d", slot >= 0 && slot !== this.slot && !this.background(slot)
      ? outline(this.pixelsOf(slot), this.W) : "");
  }
  press(event) {
    if (!this.history || event.button > 0) return;
    this.touches.set(event.pointerId, this.pixelAt(event));
    this.find(".canvas").setPointerCapture(event.pointerId);
    if (this.touches.size === 2) { this.pinch = this.spread(); this.held = null; return; }
    const slot = this.slotAt(event);
    if (slot < 0) return;
    if (slot !== this.slot) { this.slot = slot; this.drawAll(); this.fresh = true; }
    if (this.background(slot)) { this.say("This slot paints the background: choose its numbers, or drag an object."); return; }
    this.hover(-1);
    this.find(".canvas").classList.add("held");
    this.held = { at: this.pixelAt(event), grip: this.grip(slot), history: this.history };
  }
  spread() {
    const [a, b] = [...this.touches.values()];
    return Math.max(1, Math.hypot(a.x - b.x, a.y - b.y));
  }
  movePointer(event) {
    if (!this.history) return;
    if (this.touches.has(event.pointerId)) this.touches.set(event.pointerId, this.pixelAt(event));
    if (this.touches.size === 2) {
      const spread = this.spread(), steps = Math.log(spread / this.pinch) / Math.log(1.1);
      this.pinch = spread;
      this.resizeSoon(steps);
      return;
    }
    const { held } = this;
    if (!held) { this.hover(this.slotAt(event)); return; }
    const { x, y } = this.pixelAt(event), began = event.timeStamp;
    if (!held.moved && Math.hypot(x - held.at.x, y - held.at.y) < 0.4) return;
    held.moved = true;
    this.sliderTurn = {};
    this.latest(async () => {
      const grip = await held.grip;
      if (held.history !== this.history) return;
      held.last = [x - held.at.x, y - held.at.y];
      await this.moveTo(grip, ...held.last, "drag");
      this.times.push(performance.now() - began);
    });
  }
  async release() {
    const { held, pinch } = this;
    this.held = this.pinch = null;
    this.find(".canvas").classList.remove("held");
    if (!this.history) return;
    while (this.busy) await wait(5);
    const grip = await held?.grip;
    if (held?.last && grip.d.how !== "frame") await this.arrive(grip, ...held.last, held.history);
    if (!this.history) return;
    if (held || pinch || this.fresh) this.settle();
    this.fresh = false;
  }
  // Wheel and pinch come faster than decoding: their steps are added up.
  resizeSoon(steps) {
    this.sliderTurn = {};
    this.steps = (this.steps ?? 0) + steps;
    this.latest(async () => {
      const all = clamp(this.steps, -6, 6);
      this.steps = 0;
      await this.resize(all);
    });
    this.later();
  }
  key(event) {
    if (!this.history || event.altKey || event.target.matches("textarea, select, .times *")) return;
    const slider = event.target.matches("input"), command = event.ctrlKey || event.metaKey;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key, far = event.shiftKey ? 5 : 1;
    const keys = {
      ArrowLeft: () => this.nudge(-far, 0), ArrowRight: () => this.nudge(far, 0),
      ArrowUp: () => this.nudge(0, -far), ArrowDown: () => this.nudge(0, far),
      "+": () => this.resizeSoon(1), "=": () => this.resizeSoon(1), "-": () => this.resizeSoon(-1),
      "[": () => this.pick((this.slot + this.slots.length - 1) % this.slots.length),
      "]": () => this.pick((this.slot + 1) % this.slots.length),
      Delete: () => this.remove(), Backspace: () => this.remove(), d: () => this.duplicate(), r: () => this.reset(),
      i: () => this.again(), n: () => this.nextScene(),
      v: () => this.show(Object.keys(VIEWS)[(Object.keys(VIEWS).indexOf(this.view) + 1) % 3]),
    };
    const commands = { z: () => (event.shiftKey ? this.redo() : this.undo()), y: () => this.redo() };
    const number = !command && /^[1-9]$/.test(key) ? Number(key) - 1 : -1;
    const act = command ? commands[key] : number >= 0 ? (number < this.slots.length && (() => this.pick(number))) : keys[key];
    if (!act || (slider && (key.startsWith("Arrow") || key.startsWith("Page")))) return;
    if (key.startsWith("Arrow") && !event.target.matches(".canvas, body")) return;
    event.preventDefault();
    event.stopPropagation();  // a notebook has keys of its own
    this.run(act);
  }

  // ---- how it got there -----------------------------------------------------------------------------------

  drawTimes() {
    const list = this.find(".times");
    list.replaceChildren(...this.trace.map((e, t) => {
      const { picture } = compose(this.slotsOf(e.means, e.maskLogits), this.C);
      return el("button", { type: "button", ariaLabel: `Iteration ${t}`, onclick: () => { this.t = t; this.drawSeen(); },
        onkeydown: (event) => { if (event.key.startsWith("Arrow")) { event.preventDefault(); this.step(event.key); } } },
        draw(newCanvas(1, 1), picture, this.size), t ? `after ${t}` : "first guess");
    }));
    this.find(".history").hidden = !this.trace.length;
    this.drawSeen();
  }
  step(key) {
    this.t = clamp(this.t + (key === "ArrowRight" || key === "ArrowDown" ? 1 : -1), 0, this.trace.length - 1);
    this.drawSeen();
    this.find(".times").children[this.t].focus();
  }
  // What refinement t + 1 saw of the chosen slot, and what it made of it.
  drawSeen() {
    const { t, slot, trace, N } = this, e = trace[t];
    if (!e || !this.find(".history").open) return;
    [...this.find(".times").children].forEach((b, i) => b.setAttribute("aria-pressed", i === t));
    const inferred = e.maskLogits.length / N, s = Math.min(slot, inferred - 1), next = trace[t + 1];
    const loss = e.loss === undefined ? "" : `, loss ${e.kl ? `${e.loss.toFixed(0)} nats` : e.loss.toPrecision(3)}`;
    this.find(".at").textContent = (t ? `After ${t} refinement${t > 1 ? "s" : ""}` : "The first guess") + loss
      + (next ? `. What the next refinement saw of slot ${s + 1}, and what it changed:` : `: slot ${s + 1}, where it ended.`);
    const frame = (canvas, words, term) => {
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", words);
      return el("figure", {}, canvas, el("figcaption", {}, words, el("small", { textContent: term })));
    };
    const seen = SEEN.filter(([field]) => e[field]).map(([field, words, term, how]) =>
      frame(this.drawField(e, s, field, how), words, term));
    if (next) {
      const of = (evaluation) => compose(this.slotsOf(evaluation.means, evaluation.maskLogits), this.C).picture;
      const before = of(e), change = of(next).map((v, i) => v - before[i]);
      seen.push(frame(draw(newCanvas(1, 1), this.of(next.means, s, this.C), this.size, { mask: this.of(next.masks, s) }),
                      "what it paints next", `iteration ${t + 1}`),
                frame(drawSigned(newCanvas(1, 1), change, this.size, this.C), "what became brighter (red), darker (blue)", "of the whole picture"));
    }
    this.find(".history .frames").replaceChildren(...seen);
  }
  of(values, slot, channels = 1) {
    const n = this.N * channels;
    return values.length === n ? values : values.subarray(slot * n, (slot + 1) * n);
  }
  drawField(e, slot, field, how) {
    const { size, C } = this, channels = field === "means" || field === "meansGradient" ? C : 1, canvas = newCanvas(1, 1);
    if (field === "attention") {
      const [h, w] = e.grid, n = h * w;
      return drawLightness(canvas, e.attention.slice(slot * n, (slot + 1) * n), { W: w, H: h });
    }
    const values = this.of(e[field], slot, channels);
    if (how === "signed") return drawSigned(canvas, values, size, channels);
    if (how === "downhill") return drawSigned(canvas, values.map((v) => -v), size, channels);
    return how === "lightness" && field !== "masks" && field !== "maskPosterior"
      ? drawLightness(canvas, values.slice(), size)
      : draw(canvas, values, { ...size, C: channels });
  }

  // ---- two scenes -----------------------------------------------------------------------------------------

  buildOther() {
    const box = this.find(".two"), list = el("div", { className: "scenes" });
    list.append(...this.images.map((image, i) => el("button", { type: "button", ariaLabel: `The other scene: ${i + 1}`,
      onclick: () => this.run(() => this.openMate(i)) }, draw(newCanvas(1, 1), image, this.size))));
    const slots = el("div", { className: "slots", role: "group", ariaLabel: "Slots of the other scene" });
    const bring = button("Bring its slot here", () => this.bring()), swap = button("Exchange with the chosen slot", () => this.swap());
    const blend = el("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0, ariaLabel: "Blend from this scene to the other" });
    blend.addEventListener("input", () => this.latest(() => this.blend(Number(blend.value))));
    blend.addEventListener("change", () => this.later());
    const words = el("p", { className: "soft", textContent: "Choose another scene; it is taken apart by the same model." });
    const rest = el("div", { hidden: true }, slots, el("div", { className: "bar" }, bring, swap),
      el("label", { className: "soft", style: "display:block;margin-top:12px" }, "Blend this scene (left) with the other one (right), slot by slot:", blend));
    box.replaceChildren(words, list, rest);
    Object.assign(this, { mateList: list, mateSlots: slots, mateRest: rest, mateBlend: blend });
  }
  async openMate(index) {
    const { turn } = this;
    let last;
    const message = { do: "infer", model: this.model.name, image: this.images[index], seed: this.model.starts[index] ?? 0 };
    await this.host.ask(message, (e) => { last = e; });
    if (turn !== this.turn) return;
    const slots = await this.decode(this.rowsOf(last.latents));
    if (turn !== this.turn) return;
    const composed = compose(slots, this.C), chosen = largest(slots, composed, this.C, this.W);
    this.mate = { slots, composed, chosen, from: this.slots, index };
    this.mateRest.hidden = false;
    this.mateBlend.value = 0;
    this.drawMate();
  }
  drawMate() {
    const { slots, composed, index } = this.mate;
    [...this.mateList.children].forEach((b, i) => b.setAttribute("aria-pressed", i === index));
    this.mateSlots.replaceChildren(...slots.map((slot, s) => {
      const item = el("button", { type: "button", className: "slot", style: `--colour:${colourOf(s)}`, ariaLabel: `Its slot ${s + 1}`,
        onclick: () => { this.mate.chosen = s; this.drawMate(); } },
        draw(newCanvas(1, 1), slot.means, this.size, { mask: maskOf(composed, s, this.N) }), `${s + 1}`);
      item.setAttribute("aria-pressed", s === this.mate.chosen);
      return item;
    }));
  }
  bring() {
    const slot = this.mate.slots[this.mate.chosen];
    this.slot = this.slots.length;
    this.become([...this.slots, slot]);
  }
  swap() {
    const { slots, chosen } = this.mate, mine = this.slots[this.slot];
    this.mate.slots = slots.with(chosen, { ...mine, shown: true });
    this.mate.composed = compose(this.mate.slots, this.C);
    this.become(this.slots.with(this.slot, slots[chosen]));
    this.drawMate();
  }
  async blend(amount) {
    const { mate, history } = this;
    if (history.what !== "blend") mate.from = this.slots;  // where this blend begins
    const to = partners(mate.from, mate.slots, this.model.reach);
    const slots = await this.decode(mate.from.map((s, k) =>
      (to[k] < 0 ? s.z : s.z.map((v, d) => (1 - amount) * v + amount * mate.slots[to[k]].z[d]))));
    if (history === this.history) this.become(slots, "blend");
  }

  // ---- to take away ---------------------------------------------------------------------------------------

  buildTaking() {
    const bar = this.find(".take .bar");
    bar.append(...["PNG", "SVG"].flatMap((kind) => [button(`Picture, ${kind}`, () => this.save("picture", kind)),
      button(`Film strips, ${kind}`, () => this.save("strips", kind))]));
    if (!this.widget) bar.append(button("Copy link", () => this.copy(this.link(), "The link is copied; it holds this state, not an own picture.")));
    bar.append(button("Copy Python", () => this.copy(this.python(), "The line of Python is copied.")));
  }
  state() {
    const { model: { name: model }, scene, start, slots } = this;
    return toText({ model, scene, start, slots });
  }
  link() { return `${location.href.split("#")[0]}#${this.state()}`; }
  python() {
    return `from iodine_nb.tools.explorer import picture_of; picture_of("${this.state()}")`;
  }
  drawTaking() { if (this.find(".take").open) this.find(".take textarea").value = this.python(); }
  async copy(text, sentence) {
    try { await navigator.clipboard.writeText(text); this.say(sentence); } catch {
      const area = this.find(".take textarea");
      area.value = text; area.focus(); area.select();
      this.say("This browser does not let a page copy: the text below is selected, press Ctrl C.", true);
    }
  }
  sheet(what) {
    const scale = Math.max(1, Math.round(512 / this.H)), { W, H } = this;
    if (what === "picture") return [[{ canvas: draw(newCanvas(1, 1), this.composed.picture, this.size), x: 0, y: 0, w: W * scale, h: H * scale }], W * scale, H * scale];
    const rows = [...this.find(".sliders.named").querySelectorAll(".slider")], side = 72, things = [];
    rows.forEach((row, i) => {
      things.push({ text: row.querySelector("b").textContent, x: 8, y: 8 + i * (side + 8) + side / 2 });
      [...row.querySelectorAll("canvas")].forEach((canvas, j) =>
        things.push({ canvas, x: 130 + j * (side + 4), y: 8 + i * (side + 8), w: side, h: side }));
    });
    return [things, 130 + FRAMES * (side + 4) + 4, 8 + rows.length * (side + 8)];
  }
  async save(what, kind) {
    const sheet = this.sheet(what);
    const blob = kind === "SVG" ? new Blob([sheetToSVG(...sheet)], { type: "image/svg+xml" })
      : await new Promise((go) => { sheetToCanvas(...sheet).toBlob(go); });
    const link = el("a", { href: URL.createObjectURL(blob), download: `iodine-${what}.${kind.toLowerCase()}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
}

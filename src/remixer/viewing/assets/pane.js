"use strict";
// One graph to look at: panned by dragging, zoomed by the wheel.
const CALM = window.matchMedia("(prefers-reduced-motion: reduce)");

class Pane {
  constructor(side, picked) {
    this.side = side;
    this.view = { x: 0, y: 0, k: 1 }; // where the graph's origin is on the screen, and the scale
    this.title = viewer.make("strong");
    this.facts = viewer.make("span", { class: "facts" });
    this.world = viewer.draw("g");
    this.svg = viewer.draw("svg", { class: "graph", "aria-label": `graph, ${side}` }, arrows(side), this.world);
    this.empty = viewer.make("p", { class: "empty" });
    this.root = viewer.make(
      "section",
      { class: `pane ${side}`, "data-side": side },
      viewer.make("header", {}, this.title, this.facts, this.buttons()),
      this.svg,
    );
    this.drawing = new viewer.Drawing(this.world, picked);
    this.cull = viewer.soon(() => this.drawing.cull(this.window()));
    this.listen(picked);
    new ResizeObserver(() => this.cull()).observe(this.svg);
  }

  buttons() {
    const button = (text, title, act) => viewer.make("button", { type: "button", title, "aria-label": title, click: act }, text);
    return viewer.make(
      "span",
      { class: "buttons" },
      button("−", "Zoom out", () => this.zoom(1 / 1.25)),
      button("+", "Zoom in", () => this.zoom(1.25)),
      button("⤢", "Show all", () => this.fit()),
    );
  }

  show(graph, tree, open, looks) {
    this.tree = tree;
    this.layout = viewer.layout(tree, tree.root, open);
    this.drawing.show(this.layout, { ...looks, arrow: `arrow-${this.side}` });
    this.drawing.cull(this.window());
  }

  // The same graph in other looks, as after a selection.
  redraw(looks) {
    this.drawing.show(this.layout, { ...looks, arrow: `arrow-${this.side}` });
    this.drawing.cull(this.window());
  }

  size() {
    return { w: this.svg.clientWidth || 1, h: this.svg.clientHeight || 1 };
  }

  // What is in view, in the graph's own coordinates.
  window() {
    const { x, y, k } = this.view;
    const { w, h } = this.size();
    return { x: -x / k, y: -y / k, w: w / k, h: h / k };
  }

  place(key) {
    return this.drawing.places.get(key);
  }

  look(view) {
    this.view = view;
    this.world.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.k})`);
    this.cull();
  }

  glide(to) {
    cancelAnimationFrame(this.gliding);
    if (CALM.matches) return this.look(to);
    const from = this.view;
    const start = performance.now();
    const step = now => {
      const part = Math.min((now - start) / 260, 1);
      const eased = 1 - (1 - part) ** 3;
      const between = name => from[name] + (to[name] - from[name]) * eased;
      this.look({ x: between("x"), y: between("y"), k: between("k") });
      if (part < 1) this.gliding = requestAnimationFrame(step);
    };
    this.gliding = requestAnimationFrame(step);
    return undefined;
  }

  fit() {
    const { w, h } = this.size();
    const k = Math.min((w - 40) / this.layout.w, (h - 40) / this.layout.h, 1.1);
    this.glide({ k, x: (w - this.layout.w * k) / 2, y: Math.max((h - this.layout.h * k) / 2, 20) });
  }

  // The first sight: all of the graph if it can be read then, else its top.
  begin() {
    const { w } = this.size();
    const { h } = this.size();
    const whole = Math.min((w - 40) / this.layout.w, (h - 40) / this.layout.h, 1);
    const k = Math.max(whole, Math.min(0.62, (w - 24) / this.layout.w));
    this.look({ k, x: (w - this.layout.w * k) / 2, y: Math.max((h - this.layout.h * k) / 2, 20) });
  }

  // The scale at which a box can be seen whole, as far as its texts can be read then.
  scaleFor(key) {
    const place = this.place(key);
    const { w, h } = this.size();
    return place ? Math.max(Math.min((w - 48) / place.w, (h - 90) / place.h, 1), 0.45) : 1;
  }

  // Bring a box to the middle; tall ones by their top.
  centre(key, k = this.scaleFor(key)) {
    const place = this.place(key);
    if (!place) return;
    const { w, h } = this.size();
    const y = place.h * k > h - 90 ? 45 - place.y * k : h / 2 - (place.y + place.h / 2) * k;
    this.glide({ k, x: w / 2 - (place.x + place.w / 2) * k, y });
  }

  inView(key) {
    const place = this.place(key);
    if (!place) return true;
    const view = this.window();
    const y = place.y + Math.min(place.h / 2, 20); // where its title is
    return place.x + place.w > view.x && place.x < view.x + view.w && y > view.y && y < view.y + view.h;
  }

  zoom(by, at) {
    const { w, h } = this.size();
    const { x, y } = at || { x: w / 2, y: h / 2 };
    const k = Math.min(Math.max(this.view.k * by, 0.03), 3);
    const scale = k / this.view.k;
    this.look({ k, x: x - (x - this.view.x) * scale, y: y - (y - this.view.y) * scale });
  }

  // Do something that moves boxes, and keep one of them where it is on the screen.
  holding(key, act) {
    const before = this.place(key);
    act();
    const after = this.place(key);
    if (!before || !after) return;
    const { k } = this.view;
    const middle = place => place.x + place.w / 2;
    this.look({ k, x: this.view.x + (middle(before) - middle(after)) * k, y: this.view.y + (before.y - after.y) * k });
  }

  listen(picked) {
    let drag = null;
    this.svg.addEventListener("pointerdown", event => {
      if (event.button !== 0) return;
      cancelAnimationFrame(this.gliding);
      drag = { x: event.clientX, y: event.clientY, view: this.view, moved: false };
    });
    this.svg.addEventListener("pointermove", event => {
      if (!drag) return;
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      if (!drag.moved && Math.hypot(dx, dy) < 4) return;
      if (!drag.moved) this.svg.setPointerCapture(event.pointerId);
      drag.moved = true;
      this.svg.classList.add("dragged");
      this.look({ k: drag.view.k, x: drag.view.x + dx, y: drag.view.y + dy });
    });
    this.svg.addEventListener("pointerup", event => {
      const clicked = drag && !drag.moved;
      drag = null;
      this.svg.classList.remove("dragged");
      if (clicked) this.click(event, picked);
    });
    this.svg.addEventListener("pointercancel", () => {
      drag = null;
    });
    this.svg.addEventListener(
      "wheel",
      event => {
        event.preventDefault();
        const edge = this.svg.getBoundingClientRect();
        const by = Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015));
        this.zoom(by, { x: event.clientX - edge.left, y: event.clientY - edge.top });
      },
      { passive: false },
    );
  }

  click(event, picked) {
    const element = event.target.closest("[data-key]");
    if (!element) return picked(null, "select");
    const { box } = this.place(element.dataset.key);
    const closed = box.item instanceof viewer.Group && !box.inner;
    const toggled = closed || event.target.closest(".chevron");
    return picked(box.item, toggled ? (event.shiftKey ? "toggle all" : "toggle") : "select");
  }
}

viewer.Pane = Pane;

function arrows(side) {
  const head = viewer.draw("path", { d: "M0 0 L8 4 L0 8 z" });
  const marker = { id: `arrow-${side}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto", class: "arrow" };
  return viewer.draw("defs", {}, viewer.draw("marker", marker, head));
}

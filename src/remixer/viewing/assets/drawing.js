"use strict";
// A layout as SVG. Only what is in view, and a margin around it, has elements.
const MARGIN = 300;

class Drawing {
  constructor(world, picked) {
    this.layers = ["groups", "edges", "boxes"].map(name => viewer.draw("g", { class: name }));
    world.append(...this.layers);
    this.picked = picked; // called with an item and what was done to it: "select", "toggle"
    this.items = [];
    this.shown = new Map();
    this.places = new Map();
  }

  // Take another layout; `looks` says how an item looks.
  show(layout, looks) {
    this.looks = looks;
    for (const element of this.shown.values()) element.remove();
    this.shown.clear();
    this.items = [];
    this.places.clear();
    this.flatten(layout, 0, 0, 0);
  }

  flatten(layout, x, y, depth) {
    for (const line of layout.lines) this.enterLine(line, layout, x, y);
    for (const box of layout.boxes) {
      const place = { box, x: x + box.x, y: y + box.y, w: box.w, h: box.h, depth };
      const key = viewer.keyOf(box.item);
      this.places.set(key, place);
      const make = () => (box.inner ? this.opened(place) : this.closed(place));
      this.items.push({ key, layer: box.inner ? 0 : 2, x: place.x, y: place.y, w: box.w, h: box.h, make });
      if (box.inner) this.flatten(box.inner, place.x + viewer.inset(box), place.y + viewer.TITLE, depth + 1);
    }
  }

  enterLine(line, layout, x, y) {
    const points = line.points.map(point => ({ x: point.x + x, y: point.y + y }));
    // From a port, a line begins at the border of the open module, above its title.
    if (line.from.startsWith("in ")) points.unshift({ x: points[0].x, y: points[0].y - viewer.TITLE });
    if (line.to.startsWith("out ")) points.push({ x: points[points.length - 1].x, y: points[points.length - 1].y + 14 });
    const xs = points.map(point => point.x);
    const ys = points.map(point => point.y);
    const left = Math.min(...xs);
    const top = Math.min(...ys);
    const ends = layout.boxes.find(box => viewer.keyOf(box.item) === line.to);
    this.items.push({
      key: `${line.from}>${line.to}@${x},${y}`,
      layer: 1,
      x: left,
      y: top,
      w: Math.max(...xs) - left,
      h: Math.max(...ys) - top,
      make: () => this.edge(line, points, Boolean(ends && !ends.inner)),
    });
  }

  // Make what came into view, and drop what left it.
  cull(view) {
    for (const item of this.items) {
      const near =
        item.x < view.x + view.w + MARGIN &&
        item.x + item.w > view.x - MARGIN &&
        item.y < view.y + view.h + MARGIN &&
        item.y + item.h > view.y - MARGIN;
      const element = this.shown.get(item.key);
      if (near && !element) {
        const made = item.make();
        this.shown.set(item.key, made);
        this.layers[item.layer].append(made);
      } else if (!near && element) {
        element.remove();
        this.shown.delete(item.key);
      }
    }
  }

  edge(line, points, arrow) {
    const lit = this.looks.lit(line);
    return viewer.draw(
      "path",
      { d: curve(points), class: `edge ${this.looks.edge(line)}${lit ? " lit" : ""}`, "marker-end": arrow ? `url(#${this.looks.arrow})` : null },
      viewer.draw("title", {}, [...line.names].join(", ")),
    );
  }

  opened(place) {
    const { box, x, y, w, h, depth } = place;
    const group = box.item;
    const kind = viewer.data.classes.get(group.path);
    const title = viewer.titleOf(group);
    return this.framed(place, `group open ${depth % 2 ? "odd" : "even"}`, [
      viewer.draw("rect", { class: "frame", x, y, width: w, height: h, rx: 8 }),
      viewer.draw("rect", { class: "bar", x, y, width: w, height: viewer.TITLE - 4, rx: 8 }),
      viewer.draw("text", { class: "chevron", x: x + 10, y: y + 17 }, "▾"),
      viewer.draw("text", { class: "title", x: x + 24, y: y + 17 }, title),
      kind && viewer.draw("text", { class: "below", x: x + 32 + viewer.widthOf(title, FONT), y: y + 17 }, kind),
    ]);
  }

  closed(place) {
    const { box, x, w } = place;
    const lift = box.tags.length ? 16 : 0;
    const y = place.y + lift;
    const h = place.h - lift;
    const group = box.item instanceof viewer.Group;
    const [title, below] = viewer.wordsOf(box.item);
    const middle = x + w / 2;
    return this.framed(place, group ? "group" : `op ${kindOf(box.item)}`, [
      group && viewer.draw("rect", { class: "stack", x: x + 3, y: y + 3, width: w, height: h, rx: 7 }),
      viewer.draw("rect", { class: "frame", x, y, width: w, height: h, rx: group ? 7 : 5 }),
      group && viewer.draw("text", { class: "chevron", x: x + 10, y: y + h / 2 + 4 }, "▸"),
      viewer.draw("text", { class: "title", x: middle + (group ? 6 : 0), y: below ? y + 17 : y + 18, "text-anchor": "middle" }, title),
      below && viewer.draw("text", { class: "below", x: middle + (group ? 6 : 0), y: y + 32, "text-anchor": "middle" }, below),
      ...tagsOf(box, x, place.y),
    ]);
  }

  // A box that can be pointed at, in the looks of its item, with its chips.
  framed(place, base, parts) {
    const { box } = place;
    const looks = this.looks.box(box.item);
    const act = what => this.picked(box.item, what);
    const element = viewer.draw(
      "g",
      {
        class: ["box", base, ...looks.classes].join(" "),
        "data-key": viewer.keyOf(box.item),
        tabindex: 0,
        role: "button",
        "aria-label": looks.label,
        keydown: event => {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          act(box.item instanceof viewer.Group ? (event.shiftKey ? "toggle all" : "toggle") : "select");
        },
      },
      ...parts,
      ...chipsOf(place, looks.chips),
    );
    return element;
  }
}

viewer.Drawing = Drawing;

function kindOf(node) {
  return node.op === "placeholder" || node.op === "output" ? "end" : "";
}

function tagsOf(box, x, y) {
  let from = x + 4;
  return box.tags.flatMap(tag => {
    const width = viewer.widthOf(tag.text, SMALL) + 10;
    const made = [
      viewer.draw("rect", { class: "tag", x: from, y, width, height: 15, rx: 3 }),
      viewer.draw("text", { class: "tag-text", x: from + 5, y: y + 11 }, tag.text),
    ];
    from += width + 6;
    return made;
  });
}

// Small marks on the upper border, from the right; on the lower one where tags stand above.
function chipsOf(place, chips) {
  const top = place.y + (place.box.tags.length ? place.h : 0);
  let right = place.x + place.w - 6;
  return chips.flatMap(({ text, look }) => {
    const width = viewer.widthOf(text, SMALL) + 10;
    right -= width;
    const made = [
      viewer.draw("rect", { class: `chip ${look}`, x: right, y: top - 7, width, height: 14, rx: 7 }),
      viewer.draw("text", { class: `chip-text ${look}`, x: right + width / 2, y: top + 3.5, "text-anchor": "middle" }, text),
    ];
    right -= 4;
    return made;
  });
}

function curve(points) {
  const at = point => `${point.x.toFixed(1)} ${point.y.toFixed(1)}`;
  let path = `M${at(points[0])}`;
  for (let index = 1; index < points.length - 1; index += 1) {
    const point = points[index];
    const next = points[index + 1];
    const end = index === points.length - 2 ? next : { x: (point.x + next.x) / 2, y: (point.y + next.y) / 2 };
    path += `Q${at(point)} ${at(end)}`;
  }
  return points.length === 2 ? `${path}L${at(points[1])}` : path;
}

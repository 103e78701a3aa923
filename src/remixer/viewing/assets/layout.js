"use strict";
// Where everything stands. Each open module is laid out on its own, its inside first; what is closed costs
// nothing. An edge that crosses the border of an open module goes on inside from a port at the border.
const TITLE = 28; // height of an open module's title
const PAD = 14;
const MANY = 4; // a value with more readers than this is named at each of them, rather than drawn to it
const FONT = '600 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const SMALL = '10.5px ui-monospace, "SF Mono", Menlo, Consolas, monospace';

viewer.layout = (() => {
  const known = new Map();
  // The inside of a group; `open` holds the paths of open modules.
  return (tree, group, open) => {
    const inside = [...open].filter(path => path.startsWith(group.path)).sort().join(" ");
    const key = `${tree.graph.index} ${group.path}:${inside}`;
    if (!known.has(key)) known.set(key, arranged(tree, group, open));
    return known.get(key);
  };
})();

function arranged(tree, group, open) {
  const boxes = group.children.map(item => boxOf(tree, item, open));
  const { edges, tags } = flows(tree, group);
  for (const box of boxes) widen(box, tags.get(viewer.keyOf(box.item)));
  return placed(viewer.solve(boxes, edges), boxes, edges);
}

function boxOf(tree, item, open) {
  if (item instanceof viewer.Group && open.has(item.path)) {
    const inner = viewer.layout(tree, item, open);
    const title = viewer.widthOf(viewer.titleOf(item), FONT) + 110;
    return { item, inner, tags: [], w: Math.max(inner.w + 2 * PAD, title), h: inner.h + TITLE + PAD };
  }
  const [title, below] = viewer.wordsOf(item);
  const width = Math.max(viewer.widthOf(title, FONT) + 18, viewer.widthOf(below, SMALL)) + 24;
  return { item, inner: null, tags: [], w: Math.max(Math.ceil(width), item instanceof viewer.Group ? 132 : 72), h: below ? 40 : 28 };
}

function widen(box, tags = []) {
  box.tags = tags;
  if (!tags.length) return;
  const width = tags.reduce((sum, tag) => sum + viewer.widthOf(tag.text, SMALL) + 16, 8);
  box.w = Math.max(box.w, width);
  box.h += 16; // the tags stand above the box
}

// The edges between the children of a group and its border, and the tags that stand for those of widely read values.
function flows(tree, group) {
  const edges = new Map();
  const add = (from, to, name) => {
    const key = `${from}\n${to}`;
    if (!edges.has(key)) edges.set(key, { from, to, names: new Set() });
    edges.get(key).names.add(name);
  };
  for (const node of tree.nodesIn(group)) {
    const here = viewer.keyOf(tree.childOf(group, node));
    for (const name of node.inputs) {
      const source = tree.graph.named.get(name);
      if (!source || !tree.owners.has(name)) continue;
      const item = tree.childOf(group, source);
      const from = item ? viewer.keyOf(item) : `in ${meeting(tree, group, source)}`;
      if (from !== here) add(from, here, name);
    }
    for (const reader of tree.graph.readers.get(node.name) || [])
      if (tree.owners.has(reader.name) && !tree.childOf(group, reader))
        add(here, `out ${meeting(tree, group, reader)}`, node.name);
  }
  return withTags([...edges.values()]);
}

// Where an outside node and a group meet: the key of the outermost box around the node that isn't around the group.
function meeting(tree, group, node) {
  for (let around = group.parent; around; around = around.parent) {
    const item = tree.childOf(around, node);
    if (item) return viewer.keyOf(item);
  }
  return viewer.keyOf(node);
}

function withTags(edges) {
  const readers = new Map();
  for (const edge of edges)
    if (!edge.to.startsWith("out ")) readers.set(edge.from, (readers.get(edge.from) || 0) + 1);
  const tags = new Map();
  const drawn = edges.filter(edge => {
    if ((readers.get(edge.from) || 0) <= MANY || edge.to.startsWith("out ")) return true;
    if (!tags.has(edge.to)) tags.set(edge.to, []);
    tags.get(edge.to).push({ text: shortened([...edge.names].join(", ")), names: edge.names });
    return false;
  });
  return { edges: drawn, tags };
}

function shortened(text) {
  return text.length > 24 ? `${text.slice(0, 23)}…` : text;
}

function placed(solution, boxes, edges) {
  const ports = new Map(solution.ports.map(key => [key, solution.middleOf(key).x]));
  for (const box of boxes) {
    const { x, y } = solution.middleOf(viewer.keyOf(box.item));
    Object.assign(box, { x: x - box.w / 2, y: y - box.h / 2 });
  }
  const byKey = new Map(boxes.map(box => [viewer.keyOf(box.item), box]));
  const left = Math.min(0, ...boxes.map(box => box.x));
  const lines = edges.map((edge, index) => ({ ...edge, points: solution.lines[index] }));
  const all = [...boxes.flatMap(box => [box.y, box.y + box.h]), ...lines.flatMap(line => line.points.map(point => point.y))];
  const top = all.length ? Math.min(...all) : 0;
  const bottom = all.length ? Math.max(...all) : 0;
  for (const line of lines) connect(line, byKey, ports, top, bottom);
  const right = Math.max(...boxes.map(box => box.x + box.w), ...lines.flatMap(line => line.points.map(point => point.x)), 0);
  for (const box of boxes) {
    box.x -= left;
    box.y -= top;
  }
  for (const line of lines)
    for (const point of line.points) {
      point.x -= left;
      point.y -= top;
    }
  for (const [key, x] of ports) ports.set(key, x - left);
  return { boxes, lines, ports, w: right - left, h: bottom - top };
}

// Let an edge begin and end where its ends are: at the port of an open module, else at the border of its box.
function connect(line, byKey, ports, top, bottom) {
  const { points, from, to } = line;
  const source = byKey.get(from);
  const target = byKey.get(to);
  const first = points[0];
  const last = points[points.length - 1];
  const back = source && target && target.y < source.y; // into a module that was left before
  if (source) {
    first.x = source.inner ? portAt(source, `out ${to.replace(/^out /, "")}`, first.x) : first.x;
    first.y = back ? source.y : source.y + source.h;
  } else points[0] = { x: ports.get(from), y: top };
  if (target) {
    last.x = target.inner ? portAt(target, `in ${from.replace(/^in /, "")}`, last.x) : last.x;
    last.y = back ? target.y + target.h : target.y + (target.tags.length ? 16 : 0);
  } else points[points.length - 1] = { x: ports.get(to), y: bottom };
  eased(points, Boolean(source && source.inner), Boolean(target && target.inner));
}

// Let a line that was moved to a port come to it from straight above, or leave it straight below.
function eased(points, left, entered) {
  const last = points.length - 1;
  if (last === 2 && (left || entered)) points[1].x = (points[0].x + points[2].x) / 2;
  if (last < 3) return;
  if (left) points[1].x = points[0].x;
  if (entered) points[last - 1].x = points[last].x;
}

function portAt(box, key, otherwise) {
  const x = box.inner.ports.get(key);
  return x === undefined ? otherwise : box.x + inset(box) + x;
}

// Where the inside of an open module begins, from the left of its box.
function inset(box) {
  return (box.w - box.inner.w) / 2;
}

viewer.inset = inset;
viewer.TITLE = TITLE;

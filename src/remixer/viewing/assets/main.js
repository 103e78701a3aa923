"use strict";
// The state of the page, and what changes it.
viewer.state = { right: viewer.data.stages.length - 1, versus: "first", open: new Set([""]), selected: null };

viewer.right = () => viewer.graph(viewer.state.right);
viewer.left = () => viewer.graph(viewer.state.versus === "first" ? 0 : Math.max(viewer.state.right - 1, 0));

const panes = viewer.data.stages.length > 1 ? [new viewer.Pane("left", picked), new viewer.Pane("right", picked)] : [new viewer.Pane("right", picked)];
const graphOf = pane => (pane.side === "left" ? viewer.left() : viewer.right());

// Lay out and draw what is open, in both panes.
function refresh() {
  for (const pane of panes) {
    const graph = graphOf(pane);
    pane.show(graph, viewer.tree(graph), viewer.state.open, looksOf(pane));
    describe(pane, graph);
  }
}

function describe(pane, graph) {
  pane.title.replaceChildren(graph.stage.title);
  const most = viewer.largest(graph);
  const count = viewer.countText(graph.nodes.length, "node");
  pane.facts.replaceChildren(most ? `${count} · largest` : count);
  if (!most) return;
  const link = make(
    "button",
    { type: "button", class: `link ${most.node.steep ? "steep" : ""}`, title: "The largest value at this length, weights aside", click: () => viewer.select({ kind: "node", name: most.node.name }) },
    `${most.node.value.shape} ${viewer.bytesText(most.bytes)}`,
  );
  pane.facts.append(link);
}

// How the items of a pane look: their classes, chips and words.
function looksOf(pane) {
  const tree = viewer.tree(graphOf(pane));
  const changes = viewer.changes(viewer.left(), viewer.right())[pane.side];
  const marks = marksOf(tree, changes);
  const keys = selectedKeys(tree);
  const own = [...keys].filter(key => key.startsWith("node "));
  const lit = own.length ? new Set(own) : keys;
  const sites = new Map(viewer.data.sites.map(site => [viewer.siteModule(site), site]));
  return {
    // An attention's own edges are lit, not those of the module around it.
    lit: line => lit.has(line.from.replace(/^in /, "")) || lit.has(line.to.replace(/^out /, "")),
    edge: line => ([...line.names].every(name => changes.get(name) === "removed") ? "removed" : [...line.names].every(name => changes.get(name) === "added") ? "added" : ""),
    box: item => {
      const group = item instanceof viewer.Group;
      const mark = marks.get(item) || {};
      const chips = [];
      const steep = group ? !viewer.state.open.has(item.path) && mark.steep : item.steep;
      if (steep) chips.push({ text: viewer.growthText(`n^${steep}`), look: "steep" });
      for (const [look, sign] of [["removed", "−"], ["added", "+"], ["changed", "~"]])
        if (group && mark[look]) chips.push({ text: `${sign}${mark[look]}`, look });
      const site = group ? sites.get(item.path) : item.site;
      const classes = [group ? overall(mark) : changes.get(item.name), site && "attention", keys.has(viewer.keyOf(item)) && "selected"];
      return { classes: classes.filter(Boolean), chips, label: group ? `module ${item.path}` : `${item.label} ${item.name}` };
    },
  };
}

function overall(mark) {
  return ["removed", "added", "changed"].some(look => mark[look]) ? "touched" : "";
}

// Counts of what changed and the steepest growth in each group.
function marksOf(tree, changes) {
  const marks = new Map();
  for (const node of tree.graph.drawn) {
    const look = changes.get(node.name);
    if (!look && !node.steep) continue;
    for (let group = tree.owners.get(node.name); group; group = group.parent) {
      if (!marks.has(group)) marks.set(group, {});
      const mark = marks.get(group);
      if (look) mark[look] = (mark[look] || 0) + 1;
      mark.steep = Math.max(mark.steep || 0, node.steep);
    }
  }
  return marks;
}

// The boxes that stand for the selection in a tree: its own, or the closed module that it is in.
function selectedKeys(tree) {
  const { selected } = viewer.state;
  if (!selected) return new Set();
  if (selected.kind === "module") return new Set([tree.nearest(selected.path).key]);
  if (selected.kind === "node") return new Set([`node ${selected.name}`]);
  const site = viewer.data.sites.find(one => one.name === selected.name);
  const anchor = tree.graph.anchor(site.name);
  const keys = new Set([anchor ? viewer.keyOf(anchor) : ""]);
  const group = tree.byPath.get(viewer.siteModule(site));
  if (group && group.parent) keys.add(group.key);
  return keys;
}

// The box to bring into view for the selection.
function targetIn(tree) {
  const { selected } = viewer.state;
  if (selected.kind === "module") return tree.nearest(selected.path);
  const node = selected.kind === "node" ? tree.graph.named.get(selected.name) : tree.graph.anchor(selected.name);
  if (selected.kind === "site") {
    const group = tree.byPath.get(viewer.siteModule({ name: selected.name }));
    if (group && group.parent) return group;
  }
  if (node && tree.owners.has(node.name)) return node;
  const other = viewer.data.nodes.find(one => one.name === selected.name);
  return tree.nearest(other ? other.path : "");
}

viewer.select = selected => {
  viewer.state.selected = selected;
  if (selected) for (const pane of panes) reveal(viewer.tree(graphOf(pane)), selected.kind === "site");
  refresh();
  after();
  if (!selected) return;
  const targets = panes.map(pane => targetIn(viewer.tree(graphOf(pane)))).map(target => (target.parent === null ? "" : viewer.keyOf(target)));
  const scale = Math.min(...panes.map((pane, index) => pane.scaleFor(targets[index])));
  for (const [index, pane] of panes.entries()) pane.centre(targets[index], scale);
};

// Open all modules around the selection, and that of an attention itself.
function reveal(tree, itself) {
  const target = targetIn(tree);
  let group = target instanceof viewer.Group ? (itself ? target : target.parent) : tree.owners.get(target.name);
  for (; group; group = group.parent) viewer.state.open.add(group.path);
}

// Something in a pane was clicked.
function picked(item, what) {
  if (!item) return viewer.select(null);
  const { open } = viewer.state;
  const group = item instanceof viewer.Group;
  viewer.state.selected = group ? selectionOf(item) : { kind: "node", name: item.name };
  if (what !== "select" && group) {
    const opening = !open.has(item.path);
    for (const one of what === "toggle" ? [item] : withGroups(item)) {
      if (opening) open.add(one.path);
      else open.delete(one.path);
    }
  }
  holding(viewer.keyOf(item), refresh);
  after();
  for (const one of panes) if (!one.inView(viewer.keyOf(item))) one.centre(viewer.keyOf(item), one.view.k);
  return undefined;
}

// A group and all in it.
function withGroups(group) {
  return [group, ...group.groups.flatMap(withGroups)];
}

function selectionOf(group) {
  const site = viewer.data.sites.find(one => viewer.siteModule(one) === group.path && group.path);
  return site ? { kind: "site", name: site.name } : { kind: "module", path: group.path };
}

// Both panes keep a box where it is while something is opened or closed.
function holding(key, act) {
  const chain = panes.reduce((inner, pane) => () => pane.holding(key, inner), act);
  chain();
}

// What follows every change.
function after() {
  viewer.panel();
  viewer.listSites();
}

viewer.go = index => {
  viewer.state.right = index;
  move();
};

viewer.compare = versus => {
  viewer.state.versus = versus;
  move();
};

// Other graphs in the panes; what is selected stays where it is.
function move() {
  const key = viewer.state.selected ? [...selectedKeys(viewer.tree(viewer.right()))].pop() || "" : "";
  holding(key, refresh);
  viewer.showPass();
  viewer.panel();
  viewer.search(document.getElementById("search").value);
}

function setLength(length) {
  if (!(length >= 1)) return;
  viewer.length = Math.round(length);
  for (const pane of panes) describe(pane, graphOf(pane));
  viewer.panel();
}

// Open modules from the top as long as that stays easy to take in: first those that lead to attentions.
function openSome(tree, most) {
  let boxes = tree.root.children.length;
  const waiting = [...tree.root.groups];
  const { sites } = viewer.data;
  const leads = group => !sites.length || sites.some(site => `${site.name}.`.startsWith(`${group.path}.`));
  while (waiting.length) {
    const group = waiting.shift();
    if (!leads(group) || boxes + group.children.length > most) continue;
    viewer.state.open.add(group.path);
    boxes += group.children.length;
    waiting.push(...group.groups);
  }
}

function summary() {
  const { report, stages } = viewer.data;
  const steepest = graph => Math.max(0, ...graph.drawn.map(node => node.steep));
  const [first, last] = [steepest(viewer.graph(0)), steepest(viewer.graph(stages.length - 1))];
  document.getElementById("model").textContent = viewer.data.model;
  document.querySelector(".brand").title = Object.entries(viewer.data.versions).map(([name, version]) => `${name} ${version}`).join(", ");
  const parts = [viewer.countText(viewer.data.sites.length, "attention")];
  if (report) parts.push(`grows as ${viewer.growthText(report.order)}${first > last ? `, was ${viewer.growthText(`n^${first}`)}` : ""}`);
  document.getElementById("summary").textContent = parts.join(" · ");
  document.getElementById("letters").textContent = viewer.data.letters.filter(letter => letter !== "B").join(" = ");
  document.querySelector(".length").hidden = !viewer.data.letters.some(letter => letter !== "B");
}

function listen() {
  const [number, slider, search] = ["length", "length-slider", "search"].map(id => document.getElementById(id));
  number.addEventListener("input", () => {
    setLength(Number(number.value));
    slider.value = Math.round(Math.log2(viewer.length));
  });
  slider.addEventListener("input", () => {
    number.value = 2 ** Number(slider.value);
    setLength(Number(number.value));
  });
  search.addEventListener("input", () => viewer.search(search.value));
  document.addEventListener("keydown", event => {
    if (event.key === "/" && document.activeElement !== search) {
      event.preventDefault();
      search.focus();
    }
    if (event.key === "Escape") viewer.select(null);
  });
}

document.getElementById("panes").append(...panes.map(pane => pane.root));
summary();
viewer.listPasses();
viewer.showPass();
viewer.listNotes();
viewer.legend();
for (const graph of [viewer.right(), viewer.left()]) openSome(viewer.tree(graph), 28);
refresh();
after();
for (const pane of panes) pane.begin();
listen();

"use strict";
// What is known of what was picked: an attention, a module, a node; of the pass if nothing was.
viewer.panel = (() => {
  const panel = document.getElementById("panel");
  const shown = { site: ofSite, module: ofModule, node: ofNode };

  return () => {
    const { selected } = viewer.state;
    panel.replaceChildren();
    panel.classList.toggle("filled", Boolean(selected));
    if (!selected) return;
    const close = make("button", { type: "button", class: "close", "aria-label": "Close", click: () => viewer.select(null) }, "×");
    panel.append(close, ...shown[selected.kind](selected).filter(Boolean));
    panel.scrollTop = 0;
  };
})();

function head(kind, title, ...marks) {
  return make("div", { class: "head" }, make("p", { class: "kind" }, kind), make("h2", {}, ...viewer.dotted(title)), make("p", { class: "marks" }, ...marks));
}

function ofSite({ name }) {
  const site = viewer.data.sites.find(one => one.name === name);
  const [before, after] = [viewer.left(), viewer.right()];
  const inside = [...new Set([...nodesOfSite(before, site), ...nodesOfSite(after, site)])];
  return [
    head("attention", site.name, viewer.chip(site.status, site.status), viewer.chip(site.kind)),
    viewer.part("Why", site.reason && make("p", {}, site.reason)),
    viewer.part("What it computes", site.spec ? make("p", { class: "words" }, site.spec.words) : make("p", {}, "Not understood."), specFacts(site.spec)),
    viewer.part("Rule", viewer.facts([[site.status === "missed" ? "came nearest" : "matched", site.rule && make("code", {}, site.rule)], ["at", site.source && make("code", {}, site.source)]])),
    viewer.part("Proof", site.spec && proofOf(site)),
    viewer.part("Mixer", mixerOf(site)),
    viewer.part("Parameters", parametersOf(site)),
    viewer.part("In the graph", viewer.facts(anchorsOf(site, before, after))),
    viewer.part("Source", ...viewer.sourceLines(inside)),
  ];
}

function nodesOfSite(graph, site) {
  const path = viewer.siteModule(site);
  const anchor = graph.anchor(site.name);
  const own = graph.drawn.filter(node => path && (node.path === path || node.path.startsWith(`${path}.`)));
  return own.length ? own : anchor ? [anchor] : [];
}

function specFacts(spec) {
  if (!spec) return null;
  const rows = Object.entries(spec).filter(([name, value]) => name !== "words" && value !== null && value !== false);
  return make("details", {}, make("summary", {}, "every field"), viewer.facts(rows.map(([name, value]) => [name, written(value)])));
}

function written(value) {
  if (value === null) return "none";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6)));
  return typeof value === "string" ? value : JSON.stringify(value);
}

function proofOf(site) {
  if (site.error === null) return make("p", {}, "Not proven.");
  const error = site.error ? site.error.toExponential(1) : "0";
  return make("p", {}, "Ran beside the graph it was read from, on random inputs of several sizes: largest error ", make("b", {}, error), ".");
}

function mixerOf(site) {
  if (!site.config) return make("p", {}, site.status === "understood" ? "Nothing was replaced." : "The attention was kept.");
  const { mixer, name, ...options } = site.config;
  const rows = Object.entries(options).map(([option, value]) => [option, written(value)]);
  return make("div", {}, make("p", {}, viewer.chip(site.mixer, "mixer")), viewer.facts(rows));
}

function parametersOf(site) {
  const [before, after] = site.parameters;
  if (before === after) return make("p", {}, viewer.numberText(before));
  const share = before ? ` (${after > before ? "+" : "−"}${Math.abs(Math.round((100 * (after - before)) / before))} %)` : "";
  return make("p", {}, `${viewer.numberText(before)} → ${viewer.numberText(after)}${share}`);
}

function anchorsOf(site, before, after) {
  const there = graph => {
    const node = graph.anchor(site.name);
    return node && viewer.nodeLink(node.name);
  };
  const path = viewer.siteModule(site);
  const held = [before, after].some(graph => viewer.tree(graph).byPath.has(path));
  return [["module", held && viewer.moduleLink(path)], ["node before", there(before)], ["node after", there(after)]];
}

function ofModule({ path }) {
  const trees = [viewer.left(), viewer.right()].map(graph => viewer.tree(graph));
  const groups = trees.map(tree => tree.byPath.get(path));
  const nodes = groups.map((group, side) => (group ? [...trees[side].nodesIn(group)] : []));
  const site = viewer.data.sites.find(one => viewer.siteModule(one) === path && path);
  const changes = viewer.changes(viewer.left(), viewer.right());
  const count = (side, look) => nodes[side === "left" ? 0 : 1].filter(node => changes[side].get(node.name) === look).length;
  return [
    head("module", path || viewer.data.model, viewer.chip(viewer.data.classes.get(path) || "")),
    site && viewer.part("Attention", siteLink(site)),
    viewer.part("Operators", viewer.facts([
      ["before", String(nodes[0].length)],
      ["after", String(nodes[1].length)],
      ["removed", count("left", "removed") || ""],
      ["added", count("right", "added") || ""],
      ["rewired", count("right", "changed") || ""],
    ])),
    viewer.part("Made of", tally(nodes[0], nodes[1])),
    viewer.part("Source", ...viewer.sourceLines(nodes.flat())),
  ];
}

function siteLink(site) {
  return make("button", { type: "button", class: "link", click: () => viewer.select({ kind: "site", name: site.name }) }, site.spec ? site.spec.words : site.name);
}

// How often each operator occurs, before and after.
function tally(before, after) {
  const counts = new Map();
  for (const [side, nodes] of [before, after].entries())
    for (const node of nodes) {
      if (!counts.has(node.label)) counts.set(node.label, [0, 0]);
      counts.get(node.label)[side] += 1;
    }
  const rows = [...counts].sort(([, one], [, other]) => Math.max(...other) - Math.max(...one)).slice(0, 24);
  return viewer.facts(rows.map(([label, [was, is]]) => [label, was === is ? String(is) : `${was} → ${is}`]));
}

function ofNode({ name }) {
  const [before, after] = [viewer.left(), viewer.right()];
  const [old, now] = [before.named.get(name), after.named.get(name)];
  const node = now || old;
  const graph = now ? after : before;
  if (!node) return [head("node", name), make("p", {}, "It is in neither of these two graphs.")];
  const look = viewer.changes(before, after)[now ? "right" : "left"].get(name);
  const site = viewer.data.sites.find(one => one.name === node.site);
  return [
    head(node.op === "placeholder" ? "input" : "node", node.name, look && viewer.chip(LOOKS[look], look)),
    site && viewer.part("Attention", siteLink(site)),
    viewer.part("Operator", viewer.facts([["calls", make("code", {}, node.target)], ["module", viewer.moduleLink(node.path)], ["added by", node.rule]])),
    viewer.part("Value", viewer.facts(viewer.valueFacts(node))),
    viewer.part("Called with", viewer.facts(node.args.map(([argument, text]) => [argument, make("code", {}, text)]))),
    look === "changed" && viewer.part("Before it was", viewer.facts(differing(old, now))),
    viewer.part("Reads", viewer.facts(node.inputs.map(input => [linked(graph, input), shapeIn(graph, input)]))),
    viewer.part("Read by", viewer.facts((graph.readers.get(name) || []).map(reader => [linked(graph, reader.name), reader.value.shape || reader.op]))),
    viewer.part("Source", ...viewer.sourceLines([node])),
  ];
}

const LOOKS = { added: "added", removed: "removed", changed: "rewired" };

function differing(old, now) {
  const before = new Map(old.args);
  const rows = now.args.filter(([argument, text]) => before.get(argument) !== text).map(([argument]) => [argument, make("code", {}, before.get(argument) || "not given")]);
  const others = [["shape", old.value.shape, now.value.shape], ["attention", old.site, now.site], ["path", old.path, now.path]];
  return [...rows, ...others.filter(([, was, is]) => was !== is).map(([label, was]) => [label, was || "none"])];
}

// Weights and sizes have no box to go to.
function linked(graph, name) {
  const node = graph.named.get(name);
  return node && viewer.tree(graph).owners.has(name) ? viewer.nodeLink(name) : make("span", {}, node && node.op === "get_attr" ? node.target : name);
}

function shapeIn(graph, name) {
  const node = graph.named.get(name);
  return node ? make("code", {}, node.value.shape) : "";
}

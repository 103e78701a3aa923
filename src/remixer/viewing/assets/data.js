"use strict";
// What the page was given. `viewer` holds what the other files define.
const viewer = {};

viewer.data = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const values = data.values.map(([shape, dtype, elements, tree, bytes, order], id) => ({
    id, shape, dtype, elements, tree, bytes, order,
  }));
  const nodes = data.nodes.map((row, id) => {
    const [name, op, label, target, args, inputs, path, value, source, site, rule, replaces, work, steep] = row;
    const [place, code] = data.sources[source];
    const known = { path: data.paths[path], value: values[value], place, code };
    return { id, name, op, label, target, args, inputs, ...known, site, rule, replaces, work, steep };
  });
  const sites = data.report ? data.report.sites : [];
  const classes = new Map(Object.entries(data.classes)); // names of modules may be those of an object's own methods
  return { ...data, values, nodes, sites, classes };
})();

// A stage's graph, put together when it is first looked at.
viewer.graph = (() => {
  const made = new Map();
  return index => {
    if (!made.has(index)) made.set(index, new Graph(viewer.data.stages[index], index));
    return made.get(index);
  };
})();

class Graph {
  constructor(stage, index) {
    this.stage = stage;
    this.index = index;
    this.nodes = stage.nodes.map(id => viewer.data.nodes[id]);
    this.named = new Map(this.nodes.map(node => [node.name, node]));
    this.drawn = this.nodes.filter(node => !folded(node));
    this.readers = new Map();
    for (const node of this.nodes)
      for (const input of node.inputs) {
        if (!this.readers.has(input)) this.readers.set(input, []);
        this.readers.get(input).push(node);
      }
  }

  // The node of an attention: its own, or the one that gave its output before it was understood, or where
  // understanding it ended.
  anchor(site) {
    return this.nodes.find(node => node.site === site) || this.named.get(replacedBy(site)) || null;
  }
}

// Weights and sizes are told with the operators that read them, and have no boxes of their own.
function folded(node) {
  return node.op === "get_attr" || node.value.dtype === "size";
}

function replacedBy(site) {
  const known = viewer.data.nodes.find(node => node.site === site && node.replaces);
  if (known) return known.replaces;
  const misses = viewer.data.stages.flatMap(stage => stage.misses);
  const miss = misses.find(one => one.site === site && one.node);
  return miss ? miss.node : "";
}

// The module that an attention is in: its name, without the number behind a second one there.
viewer.siteModule = site => site.name.replace(/\[\d+\]$/, "");

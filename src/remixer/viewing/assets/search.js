"use strict";
// Search over both graphs: nodes by name, operator or shape; modules by path or class.
const MOST = 60;

viewer.search = text => {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const results = document.getElementById("results");
  if (!words.length) return results.replaceChildren();
  const found = matches(words);
  const rows = found.slice(0, MOST).map(({ title, below, target }) =>
    make("li", {}, make("button", { type: "button", click: () => viewer.select(target) }, make("span", { class: "name" }, ...viewer.dotted(title)), make("span", { class: "words" }, below))),
  );
  return results.replaceChildren(
    make("p", { class: "count" }, found.length > MOST ? `${found.length} found, the first ${MOST}:` : `${found.length} found`),
    make("ul", {}, ...rows),
  );
};

function matches(words) {
  const fits = (...texts) => words.every(word => texts.some(text => text.toLowerCase().includes(word)));
  const graphs = [viewer.right(), viewer.left()];
  const found = [];
  const seen = new Set();
  const enter = (key, hit) => {
    if (!seen.has(key)) found.push(hit);
    seen.add(key);
  };
  for (const graph of graphs)
    for (const group of new Set(viewer.tree(graph).byPath.values())) {
      const kind = viewer.data.classes.get(group.path) || "";
      if (group.path && fits(group.path, kind))
        enter(group.key, { title: group.path, below: kind || "module", target: { kind: "module", path: group.path } });
    }
  for (const graph of graphs)
    for (const node of graph.nodes) if (fits(node.name, node.label, node.target, node.value.shape)) enter(`node ${node.name}`, hitOf(graph, node));
  return found;
}

// A weight or size is found at its first reader.
function hitOf(graph, node) {
  let shown = node;
  for (let step = 0; step < 20 && shown && !viewer.tree(graph).owners.has(shown.name); step += 1) [shown] = graph.readers.get(shown.name) || [];
  return { title: node.op === "get_attr" ? node.target : node.name, below: [node.label, node.value.shape].filter(Boolean).join(" "), target: { kind: "node", name: (shown || node).name } };
}

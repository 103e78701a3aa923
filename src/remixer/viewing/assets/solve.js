"use strict";
// What dagre makes of boxes and edges. Layers of a model are alike, and so are most modules before and after: a
// problem that was met before is not solved again.
viewer.solve = (() => {
  const known = new Map();
  // `boxes` have w and h; `edges` have the keys that they go from and to, "in ..." and "out ..." for ports.
  // Gives the middle of each key's box or port, and the points of each edge.
  return (boxes, edges) => {
    const ids = new Map(boxes.map((box, index) => [viewer.keyOf(box.item), String(index)]));
    const idOf = key => {
      if (!ids.has(key)) ids.set(key, `${key.startsWith("in ") ? "in" : "out"} ${ids.size}`);
      return ids.get(key);
    };
    const ends = edges.map(({ from, to }) => [idOf(from), idOf(to)]);
    const sizes = boxes.map(({ w, h }) => [w, h]);
    const problem = JSON.stringify([sizes, ends]);
    if (!known.has(problem)) known.set(problem, solved(sizes, ends));
    const { middles, lines } = known.get(problem);
    return {
      middleOf: key => middles.get(ids.get(key)),
      ports: [...ids.keys()].slice(boxes.length),
      lines: lines.map(points => points.map(({ x, y }) => ({ x, y }))),
    };
  };
})();

function solved(sizes, ends) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "TB", nodesep: 22, ranksep: 30, edgesep: 10 });
  for (const [index, [width, height]] of sizes.entries()) graph.setNode(String(index), { width, height });
  for (const [from, to] of ends) {
    if (from.startsWith("in ")) port(graph, from, "top", from);
    if (to.startsWith("out ")) port(graph, to, to, "bottom");
    graph.setEdge(from, to, { weight: 1, minlen: 1 });
  }
  dagre.layout(graph);
  return {
    middles: new Map(graph.nodes().map(id => [id, { x: graph.node(id).x, y: graph.node(id).y }])),
    lines: ends.map(([from, to]) => graph.edge(from, to).points),
  };
}

// Ports are kept at the borders by heavy edges to one unseen node above, or below, all.
function port(graph, id, from, to) {
  if (graph.hasNode(id)) return;
  graph.setNode(id, { width: 10, height: 1 });
  for (const end of [from, to]) if (!graph.hasNode(end)) graph.setNode(end, { width: 1, height: 1 });
  graph.setEdge(from, to, { weight: 20, minlen: 1 });
}

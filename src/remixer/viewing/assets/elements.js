"use strict";
// Sizes at a length: the polynomials of the data, worked out for B = 1 and one length for all lengths.
viewer.length = 4096;

viewer.elementsAt = (value, length = viewer.length) => (value.tree === null ? null : evaluated(value.tree, length));

viewer.bytesAt = (value, length = viewer.length) => {
  const count = viewer.elementsAt(value, length);
  return count === null ? null : count * value.bytes;
};

function evaluated(tree, length) {
  if (typeof tree === "number") return tree;
  if (typeof tree === "string") return tree === "B" ? 1 : length;
  const [operator, ...parts] = tree;
  const [first, ...rest] = parts.map(part => evaluated(part, length));
  return rest.reduce(OPERATORS[operator], first);
}

const OPERATORS = {
  "+": (a, b) => a + b,
  "*": (a, b) => a * b,
  "^": (a, b) => a ** b,
  "//": (a, b) => Math.floor(a / b),
  "%": (a, b) => ((a % b) + b) % b,
  min: (a, b) => Math.min(a, b),
  max: (a, b) => Math.max(a, b),
};

viewer.bytesText = bytes => {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) {
    bytes /= 1000;
    unit += 1;
  }
  return `${bytes >= 100 || unit === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
};

viewer.numberText = number => number.toLocaleString("en-US");

// "12*B*T**2" as people set it: 12·B·T².
viewer.polynomialText = text =>
  text.replace(/\*\*(\d+)/g, (_, digits) => [...digits].map(digit => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")).replace(/\*/g, "·");

// The largest value of a graph at the length, weights aside.
viewer.largest = graph => {
  let best = null;
  let most = -1;
  for (const node of graph.drawn) {
    const bytes = viewer.bytesAt(node.value);
    if (bytes !== null && bytes > most) [best, most] = [node, bytes];
  }
  return best && { node: best, bytes: most };
};

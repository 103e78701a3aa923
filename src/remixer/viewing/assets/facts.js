"use strict";
// Pieces that the panel is put together from.
const { make } = viewer;

viewer.facts = rows =>
  make("dl", {}, ...rows.filter(row => row && row[1] !== null && row[1] !== false && row[1] !== "").flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));

viewer.part = (title, ...children) => {
  const kept = children.flat().filter(Boolean);
  return kept.length ? make("section", { class: "part" }, make("h3", {}, title), ...kept) : null;
};

viewer.chip = (text, look = "") => make("span", { class: `mark ${look}` }, text);

viewer.nodeLink = name => make("button", { type: "button", class: "link", click: () => viewer.select({ kind: "node", name }) }, name);

viewer.moduleLink = path =>
  make("button", { type: "button", class: "link", click: () => viewer.select({ kind: "module", path }) }, ...viewer.dotted(path || viewer.data.model));

// A value: its shape, how many numbers that is as a polynomial, and at the length.
viewer.valueFacts = node => {
  const { value } = node;
  if (!value.shape) return [];
  const bytes = viewer.bytesAt(value);
  const growth = order => order && make("span", { class: node.steep && order.startsWith("n^") ? "steep" : "" }, viewer.growthText(order));
  return [
    ["shape", make("code", {}, value.shape)],
    ["type", value.dtype],
    ["elements", value.elements && make("code", { class: "polynomial" }, viewer.polynomialText(value.elements))],
    [viewer.atLength(), bytes === null ? "" : `${viewer.numberText(viewer.elementsAt(value))} elements, ${viewer.bytesText(bytes)}`],
    ["grows as", growth(value.order)],
    ["its work as", growth(node.work)],
  ];
};

viewer.atLength = () => {
  const lengths = viewer.data.letters.filter(letter => letter !== "B");
  const rows = viewer.data.letters.includes("B") ? "B = 1, " : "";
  return `at ${rows}${lengths.length ? `${lengths.join(" = ")} = ${viewer.numberText(viewer.length)}` : ""}`.replace(/, $/, "");
};

// The lines of source that nodes came from, by file, each with its code.
viewer.sourceLines = nodes => {
  const files = new Map();
  for (const node of nodes) {
    if (!node.place) continue;
    const cut = node.place.lastIndexOf(":");
    const file = node.place.slice(0, cut);
    if (!files.has(file)) files.set(file, new Map());
    files.get(file).set(Number(node.place.slice(cut + 1)), node.code);
  }
  const most = [...files].sort(([, one], [, other]) => other.size - one.size);
  return most.map(([file, lines]) => {
    const rows = [...lines].sort(([one], [other]) => one - other);
    const listing = rows.flatMap(([line, code]) => [make("span", { class: "line" }, String(line)), make("code", {}, code || " ")]);
    return make("figure", { class: "source" }, make("figcaption", {}, file), make("div", { class: "lines" }, ...listing));
  });
};

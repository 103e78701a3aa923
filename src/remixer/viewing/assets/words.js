"use strict";
// What stands in boxes.
viewer.titleOf = group => {
  if (!group.parent) return group.label;
  return /^\d+(\.|$)/.test(group.label) ? `${lastPart(group.parent.label)}.${group.label}` : group.label;
};

// The two lines of a closed box.
viewer.wordsOf = item => {
  if (item instanceof viewer.Group) {
    const kind = viewer.data.classes.get(item.path);
    return [viewer.titleOf(item), `${kind ? `${kind} · ` : ""}${viewer.countText(item.count, "op")}`];
  }
  if (item.op === "placeholder") return [item.name, item.value.shape];
  return [item.label, item.value.shape];
};

viewer.countText = (count, word) => `${viewer.numberText(count)} ${word}${count === 1 ? "" : "s"}`;

viewer.growthText = order => {
  const power = /^n\^([\d.]+)(.*)$/.exec(order);
  if (!power) return order;
  return `n${[...power[1]].map(digit => (digit === "." ? "·" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])).join("")}${power[2]}`;
};

function lastPart(label) {
  return label.slice(label.lastIndexOf(".") + 1);
}

"use strict";
// What differs between two graphs: nodes have the same number in both unless something about them changed.
viewer.changes = (() => {
  const known = new Map();
  return (before, after) => {
    const key = `${before.index} ${after.index}`;
    if (!known.has(key)) known.set(key, compared(before, after));
    return known.get(key);
  };
})();

// Maps of names to "added", "removed" or "changed", as each side shows it.
function compared(before, after) {
  const left = new Map();
  const right = new Map();
  for (const node of after.nodes) {
    const old = before.named.get(node.name);
    if (!old) right.set(node.name, "added");
    else if (old.id !== node.id) right.set(node.name, "changed");
  }
  for (const node of before.nodes) {
    const now = after.named.get(node.name);
    if (!now) left.set(node.name, "removed");
    else if (now.id !== node.id) left.set(node.name, "changed");
  }
  return { left, right };
}

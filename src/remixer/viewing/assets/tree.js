"use strict";
// The modules of a graph as a tree: a group holds groups and nodes, in the graph's order.
class Group {
  constructor(path, label, parent) {
    Object.assign(this, { path, label, parent, children: [], count: 0, depth: parent ? parent.depth + 1 : 0 });
  }

  get key() {
    return `module ${this.path}`;
  }

  get groups() {
    return this.children.filter(child => child instanceof Group);
  }
}

viewer.Group = Group;
viewer.keyOf = item => (item instanceof Group ? item.key : `node ${item.name}`);

class Tree {
  constructor(graph) {
    this.graph = graph;
    this.root = new Group("", viewer.data.model, null);
    this.byPath = new Map([["", this.root]]);
    this.owners = new Map();
    for (const node of graph.drawn) this.enter(node);
    for (const group of this.root.groups) this.compress(group);
    this.count(this.root);
  }

  enter(node) {
    const group = this.groupAt(node.path);
    group.children.push(node);
    this.owners.set(node.name, group);
  }

  groupAt(path) {
    if (!this.byPath.has(path)) {
      const cut = path.lastIndexOf(".");
      const parent = this.groupAt(cut < 0 ? "" : path.slice(0, cut));
      const group = new Group(path, path.slice(cut + 1), parent);
      parent.children.push(group);
      this.byPath.set(path, group);
    }
    return this.byPath.get(path);
  }

  // A module that holds nothing but one other stands with it in one box.
  compress(group) {
    while (group.children.length === 1 && group.children[0] instanceof Group) {
      const [only] = group.children;
      this.byPath.set(group.path, group);
      Object.assign(group, { label: `${group.label}.${only.label}`, path: only.path, children: only.children });
      this.byPath.set(only.path, group);
      for (const child of group.children)
        if (child instanceof Group) child.parent = group;
        else this.owners.set(child.name, group);
    }
    for (const child of group.groups) {
      child.depth = group.depth + 1;
      this.compress(child);
    }
  }

  count(group) {
    group.count = 0;
    for (const child of group.children) group.count += child instanceof Group ? this.count(child) : 1;
    return group.count;
  }

  // The child of a group that a node is in; null for nodes outside of it.
  childOf(group, node) {
    let item = node;
    let owner = this.owners.get(node.name);
    while (owner && owner !== group) {
      item = owner;
      owner = owner.parent;
    }
    return owner ? item : null;
  }

  // The deepest group at a path or above it.
  nearest(path) {
    while (path && !this.byPath.has(path)) path = path.slice(0, Math.max(path.lastIndexOf("."), 0));
    return this.byPath.get(path);
  }

  *nodesIn(group) {
    for (const child of group.children)
      if (child instanceof Group) yield* this.nodesIn(child);
      else yield child;
  }
}

viewer.tree = (() => {
  const known = new Map();
  return graph => {
    if (!known.has(graph)) known.set(graph, new Tree(graph));
    return known.get(graph);
  };
})();

"use strict";
// The attentions of the model, with what became of each.
viewer.listSites = () => {
  const { sites } = viewer.data;
  const counts = new Map();
  for (const { status } of sites) counts.set(status, (counts.get(status) || 0) + 1);
  const told = [...counts].map(([status, count]) => `${count} ${status}`).join(", ");
  document.getElementById("sites").replaceChildren(
    make("h2", {}, viewer.countText(sites.length, "attention"), make("small", {}, told)),
    make("ul", { class: "sites" }, ...sites.map(siteRow)),
  );
};

function siteRow(site) {
  const { selected } = viewer.state;
  const current = selected && selected.kind === "site" && selected.name === site.name;
  return make(
    "li",
    {},
    make(
      "button",
      { type: "button", class: `site ${site.status}`, "data-site": site.name, "aria-current": current ? "true" : null, click: () => viewer.select({ kind: "site", name: site.name }) },
      make("span", { class: "name", title: site.name }, ...viewer.dotted(site.name)),
      make("span", { class: "become" }, site.status === "replaced" ? site.mixer : site.status),
      make("span", { class: "words" }, site.spec ? site.spec.words : site.reason),
    ),
  );
}

viewer.listNotes = () => {
  document.getElementById("notes").replaceChildren(...viewer.data.notes.map(note => make("li", {}, note)));
};

viewer.legend = () => {
  const entries = [["added", "added"], ["removed", "removed"], ["changed", "rewired"], ["attention", "attention"], ["steep", "grows faster than n"]];
  document.getElementById("legend").replaceChildren(...entries.map(([look, text]) => make("span", { class: `key ${look}` }, text)));
};

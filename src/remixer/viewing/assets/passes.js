"use strict";
// The slider over the passes, and what the chosen one did.
viewer.listPasses = () => {
  const { stages } = viewer.data;
  const slider = document.getElementById("slider");
  slider.max = stages.length - 1;
  slider.style.setProperty("--count", stages.length); // its ends stand under the first step and the last
  document.getElementById("passes").classList.toggle("single", stages.length === 1);
  document.getElementById("steps").replaceChildren(
    ...stages.map((stage, index) =>
      make("li", { class: stage.changed ? "" : "idle" }, make("button", { type: "button", title: stage.about || stage.detail, click: () => viewer.go(index) }, stage.title)),
    ),
  );
  slider.addEventListener("input", () => viewer.go(Number(slider.value)));
};

viewer.showPass = () => {
  const { stages } = viewer.data;
  const { right, versus } = viewer.state;
  const stage = stages[right];
  document.getElementById("slider").value = right;
  document.getElementById("slider").setAttribute("aria-valuetext", stage.title);
  for (const [index, step] of [...document.getElementById("steps").children].entries()) step.classList.toggle("current", index === right);
  const kinds = new Map();
  for (const { rule } of stage.rewrites) kinds.set(rule, (kinds.get(rule) || 0) + 1);
  const rules = [...kinds].map(([rule, times]) => `${rule} × ${times}`).join(", ");
  const before = right ? stages[right - 1].nodes.length : stage.nodes.length;
  const nodes = before === stage.nodes.length ? `${viewer.numberText(before)} nodes` : `${viewer.numberText(before)} → ${viewer.numberText(stage.nodes.length)} nodes`;
  const doing = stage.changed ? nodes : `${nodes}, nothing changed`;
  document.getElementById("pass").replaceChildren(
    make("strong", {}, stage.title),
    make("span", { class: "about" }, stage.about),
    make("span", {}, doing),
    stage.seconds ? make("span", {}, `${stage.seconds.toFixed(2)} s`) : "",
    rules ? make("span", { class: "rules", title: rules }, rules) : "",
    stage.misses.length ? missesOf(stage) : "",
    stages.length > 1 ? versusButtons(versus) : "",
  );
};

function missesOf(stage) {
  const rows = stage.misses.map(({ reason, site, node, rule }) => make("li", {}, make("b", {}, site || node || "attention"), ` ${rule ? `${rule}: ` : ""}${reason}`));
  return make("details", { class: "misses" }, make("summary", {}, viewer.countText(rows.length, "miss").replace("misss", "misses")), make("ul", {}, ...rows));
}

function versusButtons(versus) {
  const button = (value, text) =>
    make("button", { type: "button", "aria-pressed": String(versus === value), click: () => viewer.compare(value) }, text);
  return make("span", { class: "versus" }, "compare with ", button("first", viewer.data.stages[0].title), button("previous", "the pass before"));
}

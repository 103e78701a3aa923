"use strict";
// Elements. Text only ever goes in as text, never as markup.
viewer.make = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);

viewer.draw = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

// A dotted path that may break behind its dots.
viewer.dotted = path => path.split(/(?<=\.)/).flatMap((part, index) => (index ? [viewer.make("wbr"), part] : [part]));

// What waits for the next frame, each at most once.
viewer.soon = work => {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      work();
    });
  };
};

// How wide texts are, measured once each.
viewer.widthOf = (() => {
  const pen = document.createElement("canvas").getContext("2d");
  const known = new Map();
  return (text, font) => {
    const key = font + text;
    if (!known.has(key)) {
      pen.font = font;
      known.set(key, pen.measureText(text).width);
    }
    return known.get(key);
  };
})();
